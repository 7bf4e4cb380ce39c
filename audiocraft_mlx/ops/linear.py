"""A linear layer with what stands around it in a transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops import activations
from audiocraft_mlx.ops.cpu import extension, tiled_linear
from audiocraft_mlx.ops.device import on_gpu


def linear(
    layer: nn.Linear | nn.QuantizedLinear,
    x: mx.array,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: mx.array | None = None,
) -> mx.array:
    """`layer(norm(x))`, then GELU, then added to `residual`, as far as they are given: `[..., outputs]`."""
    in_tiles = tiled_linear.in_tiles(layer)
    fused = None if in_tiles else extension.linear(layer, x, norm, gelu, residual)
    if fused is not None:
        return fused
    if norm is not None:
        x = norm(x)
    bias = layer.get("bias")
    if in_tiles:
        y = tiled_linear.product(x, layer.weight)
        y = y if bias is None else y + bias
    elif type(layer) is nn.Linear and residual is not None and not gelu:
        return mx.addmm(residual if bias is None else residual + bias, x, layer.weight.T)
    else:
        y = layer(x)
    y = activations.gelu(y) if gelu else y
    return y if residual is None else residual + y


def optimize_layout(network: nn.Module) -> None:
    """Bring the weights of linear layers into the order that is read fastest here.

    For good, and only `linear` knows these orders: for networks that are loaded to be used.
    """
    if on_gpu():
        return
    own = tiled_linear if extension.load_extension() is None else extension
    for layer in network.modules():
        own.optimize_layout(layer)
