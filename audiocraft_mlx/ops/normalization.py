"""Normalization over whole sequences, accurate at any length."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.ops.cpu import extension


def group_norm(x: mx.array, gain: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Group norm with one group: normalize each `[T, C]` of `[N, T, C]`, scale and shift each channel."""
    kernels = extension.float32_extension(x)
    if kernels is not None:
        y: mx.array = kernels.group_norm(x, gain, bias, eps)
        return y
    mean, variance = moments(x)
    return (x - mean) * (mx.rsqrt(variance + eps) * gain) + bias


def moments(x: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and variance over all axes but the first: `[N, 1, …]` each."""
    mean = _mean(x)
    return mean, _mean(mx.square(x - mean))


def _mean(x: mx.array) -> mx.array:
    """In stages: one float32 sum over the millions of values in a segment would be off by percents."""
    rows = x.sum(axis=-1).reshape(x.shape[0], -1)
    rows = mx.pad(rows, [(0, 0), (0, -rows.shape[1] % 1024)]).reshape(x.shape[0], -1, 1024)
    total = rows.sum(axis=-1).sum(axis=-1)
    return (total / (x.size // x.shape[0])).reshape(-1, *[1] * (x.ndim - 1))
