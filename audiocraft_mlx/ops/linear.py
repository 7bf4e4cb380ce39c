"""A linear layer with what stands around it in a transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops import activations, few_rows, native
from audiocraft_mlx.ops.few_rows import few_rows_on_a_cpu


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
    bias = layer.get("bias")
    if type(layer) is nn.Linear and few_rows_on_a_cpu(x):
        y = few_rows.product(x, layer.weight, bias, gelu)
    elif type(layer) is nn.Linear and residual is not None and not gelu:
        return mx.addmm(residual if bias is None else residual + bias, x, layer.weight.T)
    else:
        y = activations.gelu(layer(x)) if gelu else layer(x)
    return y if residual is None else residual + y
