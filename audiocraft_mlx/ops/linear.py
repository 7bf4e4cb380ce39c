"""A linear layer with the norm, activation and residual around it in a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from audiocraft_mlx.ops import activations, training
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
        x = training.layer_norm(norm, x) if layer.training else norm(x)
    if type(layer) is nn.Linear and residual is not None and not gelu:
        bias = layer.get("bias")
        return mx.addmm(residual if bias is None else residual + bias, x, layer.weight.T)
    y = layer(x)
    if gelu:
        y = training.gelu(y) if layer.training else activations.gelu(y)
    return y if residual is None else residual + y


def has_optimized_layout(network: nn.Module) -> bool:
    """Whether `network` has layers whose weights aren't in MLX's order."""
    return any(isinstance(layer, (TiledLinear, TiledQuantizedLinear)) for layer in network.modules())


def optimize_layout(network: nn.Module) -> None:
    """Replace linear layers by ones whose weights lie in the order that this machine reads fastest.

    For networks that are loaded to be used.
    """
    if on_gpu():
        use_plain_layout(network)
    elif extension.load_extension() is None:
        use_plain_layout(network)
        replace_layers(network, TiledLinear.supports, TiledLinear.from_linear)
    else:
        tile_quantized_layers(network)


def tile_quantized_layers(network: nn.Module) -> None:
    """Replace quantized layers by `TiledQuantizedLinear`: the order of our files, and the extension's."""
    replace_layers(network, TiledQuantizedLinear.supports, TiledQuantizedLinear.from_linear)


def use_plain_layout(network: nn.Module) -> None:
    """Undo `tile_quantized_layers`."""
    replace_layers(
        network, lambda layer: isinstance(layer, TiledQuantizedLinear), TiledQuantizedLinear.to_linear
    )


def replace_layers(
    network: nn.Module, wanted: Callable[[nn.Module], bool], replacement: Callable[[Any], nn.Module]
) -> None:
    """Put `replacement(layer)` into the place of each layer of `network` that is wanted."""
    if not any(map(wanted, network.modules())):
        return

    def replace(layer: nn.Module) -> nn.Module:
        return replacement(layer) if wanted(layer) else layer

    network.update_modules(tree_map(replace, network.leaf_modules(), is_leaf=nn.Module.is_module))
    network.train(network.training)  # the new layers too
