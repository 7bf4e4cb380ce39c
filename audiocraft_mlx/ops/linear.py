"""A linear layer with the norm, activation and residual around it in a transformer."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from audiocraft_mlx.ops import activations
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.cpu.tiled_linear import TiledLinear
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear
from audiocraft_mlx.ops.device import on_gpu


def linear(
    layer: nn.Module,
    x: mx.array,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: mx.array | None = None,
) -> mx.array:
    """`layer(norm(x))`, then GELU, then added to `residual`, as far as they are given: `[..., outputs]`.

    `layer` may be any module of one argument: `nn.Linear`, quantized, tiled, with an adapter. While it is in
    training mode the result is differentiable.
    """
    fused = None if layer.training else extension.linear(layer, x, norm, gelu, residual)
    if fused is not None:
        return fused
    if norm is not None:
        x = norm(x)
    if type(layer) is nn.Linear and residual is not None and not gelu:
        bias = layer.get("bias")
        return mx.addmm(residual if bias is None else residual + bias, x, layer.weight.T)
    y = layer(x)
    if gelu:
        y = nn.gelu(y) if layer.training else activations.gelu(y)
    return y if residual is None else residual + y


def has_optimized_layout(network: nn.Module) -> bool:
    """Whether `optimize_layout` has replaced layers: its weights are not in the order of the files then."""
    return any(isinstance(layer, (TiledLinear, TiledQuantizedLinear)) for layer in network.modules())


def optimize_layout(network: nn.Module) -> None:
    """Replace linear layers by ones whose weights lie in the order that this machine reads fastest.

    For networks that are loaded to be used: the weights are no longer in the order of the files.
    """
    if on_gpu():
        return
    tiled: Any = TiledLinear if extension.load_extension() is None else TiledQuantizedLinear

    def replace(layer: nn.Module) -> nn.Module:
        return tiled.from_linear(layer) if tiled.supports(layer) else layer

    leaves = tree_map(replace, network.leaf_modules(), is_leaf=nn.Module.is_module)
    network.update_modules(leaves)
