"""Values in 8 bits, with a scale for each row: what a long clip's keys and values can be kept as."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.ops.cpu import extension


@dataclass(frozen=True)
class Int8Rows:
    """`data` int8 `[..., size]` times `scales` float32 `[...]`."""

    data: mx.array
    scales: mx.array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def dequantize(self) -> mx.array:
        return self.data * self.scales[..., None]


def quantize_int8(x: mx.array) -> Int8Rows:
    """`x` float `[..., size]` in 8 bits: each row's largest value is 127 of its scale."""
    x = x.astype(mx.float32)
    kernels = extension.cpu_extension()
    if kernels is not None:
        return Int8Rows(*kernels.quantize_rows_int8(x))
    scales = mx.abs(x).max(axis=-1) / 127
    # Half away from zero, as the extension does; a row of zeros has a scale of zero.
    steps = x / mx.where(scales == 0, 1, scales)[..., None]
    return Int8Rows(mx.where(steps < 0, mx.ceil(steps - 0.5), mx.floor(steps + 0.5)).astype(mx.int8), scales)
