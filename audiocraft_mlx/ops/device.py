"""The device that MLX computes on by default."""

from __future__ import annotations

import mlx.core as mx


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return mx.default_device() == mx.gpu
