"""A linear layer with what stands around it in a transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops import native
from audiocraft_mlx.ops.device import on_gpu


def linear(
    layer: nn.Linear | nn.QuantizedLinear,
    x: mx.array,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: mx.array | None = None,
) -> mx.array:
    """`layer(norm(x))`, then GELU, then added to `residual`, as far as they are given: `[..., outputs]`."""
    fused = native.linear(layer, x, norm, gelu, residual)
    if fused is not None:
        return fused
    if norm is not None:
        x = norm(x)
    if residual is not None and not gelu and type(layer) is nn.Linear and not _few_rows_on_a_cpu(x):
        bias = layer.get("bias")
        return mx.addmm(residual if bias is None else residual + bias, x, layer.weight.T)
    y = _product(layer, x)
    if gelu:
        y = nn.gelu(y)
    return y if residual is None else residual + y


def _product(layer: nn.Linear | nn.QuantizedLinear, x: mx.array) -> mx.array:
    """`layer(x)`. For a few rows BLAS libraries are quicker with the large matrix in front."""
    if type(layer) is not nn.Linear or not _few_rows_on_a_cpu(x):
        return layer(x)
    columns = layer.weight @ x.reshape(-1, x.shape[-1]).T
    y = columns.T.reshape(*x.shape[:-1], -1)
    return y + layer.bias if "bias" in layer else y


def _few_rows_on_a_cpu(x: mx.array) -> bool:
    return x.size <= native.FEW_ROWS * x.shape[-1] and not on_gpu()
