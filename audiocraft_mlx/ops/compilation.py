"""Parts of a step whose graph is the same at every step."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from audiocraft_mlx.ops import native
from audiocraft_mlx.ops.device import on_gpu

Arrays = tuple[mx.array, ...]


def compiled(function: Callable[..., Arrays], rows: int) -> Callable[..., Arrays]:
    """`function`, for inputs of `rows` rows, with its graph kept: then a call costs the host little.

    Not on a CPU where MLX computes the layers itself: it would have each new combination of element-wise
    operations built by the system's C++ compiler, which takes seconds and saves nothing there.
    """
    if on_gpu() or (rows <= native.FEW_ROWS and native.on_cpu() is not None):
        return mx.compile(function)
    return function
