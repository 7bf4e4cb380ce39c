"""Where MLX computes, if it isn't told otherwise."""

from __future__ import annotations

import mlx.core as mx


def on_gpu() -> bool:
    return mx.default_device() == mx.gpu
