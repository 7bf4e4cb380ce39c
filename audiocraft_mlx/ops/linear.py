"""A linear layer with what stands around it in a transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops import native


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
    if residual is not None and not gelu and type(layer) is nn.Linear and "bias" not in layer:
        return mx.addmm(residual, x, layer.weight.T)
    y = layer(x)
    if gelu:
        y = nn.gelu(y)
    return y if residual is None else residual + y
