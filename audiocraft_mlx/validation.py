"""Checks of what a caller passes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from audiocraft_mlx.errors import UsageError


def validate_number(name: str, value: Any, wanted: str, fits: Callable[[float], bool]) -> None:
    """Refuse with `UsageError` what is not a finite number that `fits`; `wanted` says it in words."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not fits(number):
        raise UsageError(f"{name} must be {wanted}, not {value!r}")


def validate_int(name: str, value: Any, wanted: str, fits: Callable[[int], bool]) -> None:
    """The same for whole numbers."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not fits(int(value)):
        raise UsageError(f"{name} must be {wanted}, not {value!r}")
