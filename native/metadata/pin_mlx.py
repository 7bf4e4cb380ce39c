"""The wheel's dependency on exactly the MLX that it is built against (scikit-build-core calls this).

MLX keeps no binary interface between versions: the extension works with this version alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fragment of `[project]` with the dependencies."""
    return {"dependencies": [f"mlx[cpu]=={version('mlx')}"]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """The fields that may differ between the source distribution and a wheel built from it."""
    return {"dependencies": True}
