"""Activations: MLX's own on a GPU, faster equivalents on a CPU."""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import on_gpu


def elu(x: mx.array) -> mx.array:
    """`x` where it is positive, `exp(x) - 1` elsewhere."""
    if on_gpu():
        return nn.elu(x)
    kernels = extension.float32_extension(x)
    return _elu(x) if kernels is None else kernels.elu(x)


@partial(mx.compile, shapeless=True)
def _elu(x: mx.array) -> mx.array:
    # On x86 MLX's power takes half the time of its exp, and `maximum` is faster than `where`.
    return mx.maximum(x, mx.power(math.e, mx.minimum(x, 0)) - 1)


def gelu(x: mx.array) -> mx.array:
    """`x` times the normal distribution's cumulative probability of `x` (the exact GELU, with erf)."""
    if on_gpu():
        return nn.gelu(x) if x.dtype == mx.float32 else _gelu_in_float32(x)
    kernels = extension.float32_extension(x)
    return _gelu(x) if kernels is None else kernels.gelu(x)


@partial(mx.compile, shapeless=True)
def _gelu_in_float32(x: mx.array) -> mx.array:
    # As torch does: on its way to the result `nn.gelu` doubles `x`, which overflows half precision.
    return nn.gelu(x.astype(mx.float32)).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _gelu(x: mx.array) -> mx.array:
    # erf as in Abramowitz & Stegun 7.1.26, within 1.5e-7; MLX's own takes four times as long on CPUs.
    size = mx.abs(x)
    z = size * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return 0.5 * (x + size * (1 - p * mx.power(math.e, -z * z)))


def glu(x: mx.array) -> mx.array:
    """`[..., 2 * C]` → `[..., C]`: the first half times the sigmoid of the second."""
    if on_gpu():
        return nn.glu(x)
    kernels = extension.float32_extension(x)
    if kernels is not None:
        y: mx.array = kernels.glu(x)
        return y
    values, gates = mx.split(x, 2, axis=-1)
    # On x86 MLX's power takes half the time of its sigmoid.
    return values / (1 + mx.power(math.e, -gates))
