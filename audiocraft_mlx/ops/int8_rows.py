"""Values in 8 bits, with a scale for each row: what a long clip's keys and values can be kept as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import mlx.core as mx

from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import on_gpu


@dataclass(frozen=True)
class Int8Rows:
    """`data` int8 `[..., size]` times `scales` float32 `[...]`."""

    data: mx.array
    scales: mx.array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def dequantize(self, dtype: mx.Dtype = mx.float32) -> mx.array:
        """The values, computed in float32, as `dtype`."""
        dequantize = _compiled_dequantize(dtype) if on_gpu() else partial(_dequantize, dtype)
        values: mx.array = dequantize(self.data, self.scales[..., None])
        return values


def quantize_int8(x: mx.array) -> Int8Rows:
    """`x` float `[..., size]` in 8 bits: each row's largest value is 127 of its scale."""
    kernels = extension.cpu_extension()
    if kernels is not None:
        return Int8Rows(*kernels.quantize_rows_int8(x.astype(mx.float32)))
    data, scales = (_compiled_quantize if on_gpu() else _quantize)(x)
    return Int8Rows(data, scales.squeeze(-1))


def _quantize(x: mx.array) -> tuple[mx.array, mx.array]:
    """`quantize_int8`, but for an axis of size 1 at the end of the scales."""
    scales = mx.abs(x).max(axis=-1, keepdims=True).astype(mx.float32) / 127
    # Half away from zero, as the extension does; a row of zeros has a scale of zero.
    steps = x.astype(mx.float32) / mx.where(scales == 0, 1, scales)
    return mx.where(steps < 0, mx.ceil(steps - 0.5), mx.floor(steps + 0.5)).astype(mx.int8), scales


def _dequantize(dtype: mx.Dtype, data: mx.array, scales: mx.array) -> mx.array:
    return (data * scales).astype(dtype)


# On a GPU a few kernels instead of twelve, and one instead of three.
_compiled_quantize = mx.compile(_quantize, shapeless=True)


@cache
def _compiled_dequantize(dtype: mx.Dtype) -> Callable[[mx.array, mx.array], mx.array]:
    compiled: Callable[[mx.array, mx.array], mx.array] = mx.compile(
        partial(_dequantize, dtype), shapeless=True
    )
    return compiled
