"""Normalising whole sequences, of any length."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.ops.cpu import extension


def group_norm(x: mx.array, gain: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Normalise all of each `[T, C]` in `[N, T, C]` together, then scale and shift each channel."""
    kernels = extension.float32_extension(x)
    if kernels is not None:
        y: mx.array = kernels.group_norm(x, gain, bias, eps)
        return y
    mean, variance = moments(x)
    return (x - mean) * (mx.rsqrt(variance + eps) * gain) + bias


def moments(x: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and variance of all along the first axis, `[N, 1…]`."""
    mean = _mean(x)
    return mean, _mean(mx.square(x - mean))


def _mean(x: mx.array) -> mx.array:
    """Step by step: one sum in float32 of the millions that a segment has is wrong by percents."""
    rows = x.sum(axis=-1).reshape(x.shape[0], -1)
    rows = mx.pad(rows, [(0, 0), (0, -rows.shape[1] % 1024)]).reshape(x.shape[0], -1, 1024)
    total = rows.sum(axis=-1).sum(axis=-1)
    return (total / (x.size // x.shape[0])).reshape(-1, *[1] * (x.ndim - 1))
