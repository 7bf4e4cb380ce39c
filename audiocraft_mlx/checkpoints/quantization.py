"""Quantization of the weights that are read at every step: MLX's affine one, to 4 or 8 bits.

A group of neighbouring weights shares a scale and a bias; a weight is its integer times the scale plus the
bias. Quantized are the linear layers of the LM and of T5, and T5's embedding. The LM's embeddings, of which
a step reads one row per codebook, and the codec are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from audiocraft_mlx.checkpoints.finite import mark_unless_finite
from audiocraft_mlx.checkpoints.quantization_config import DEFAULT_GROUP_SIZE, Quantization
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear

if TYPE_CHECKING:
    from audiocraft_mlx.checkpoints.bundle import ModelBundle

_SCALES_DTYPE = mx.float16
"""Of linear layers' scales and biases: precise enough, and half the size of float32. (Not of T5's embedding:
its output has the dtype of its scales, and float16 overflows in T5.)"""


def quantize(bundle: ModelBundle, bits: int, group_size: int = DEFAULT_GROUP_SIZE) -> None:
    """Quantize the weights of a loaded model, in place.

    Like all lazy weights, those of a lazy model are computed when they are first used, or one after the
    other by `ModelBundle.materialize`, which then refuses those that were NaN or infinite, as saving does.

    Raises:
        UsageError: values that aren't supported, a model that is quantized already or wasn't loaded with
            `lazy=True`, or one whose layers' widths aren't multiples of `group_size`.
    """
    quantization = Quantization(bits, group_size)
    present = quantization_of(bundle.lm)
    if present is not None:
        raise UsageError(
            f"quantization to {bits} bits: the model is quantized to {present.bits} bits already;"
            " leave the quantization out, or give the model that it was quantized from"
        )
    bundle.require_file_layout("quantizing")
    networks = (bundle.lm, bundle.text_conditioner.t5)
    precise = [
        {path: layer.weight for path, layer in network.named_modules() if "weight" in layer}
        for network in networks
    ]
    quantize_layers(*networks, quantization)
    for network, weights in zip(networks, precise, strict=True):
        for path, layer in network.named_modules():
            if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
                layer.scales = mark_unless_finite(layer.scales, weights[path], group_size)


def quantization_of(network: nn.Module) -> Quantization | None:
    """How a network's linear layers are quantized; None if they are not."""
    for layer in network.modules():
        if isinstance(layer, (nn.QuantizedLinear, TiledQuantizedLinear)):
            return Quantization(layer.bits, layer.group_size)
    return None


def quantize_layers(lm: LM, t5: T5Encoder, quantization: Quantization) -> None:
    """Quantize all layers whose width is a multiple of the group size; `UsageError` if none of `lm` is."""
    group_size, bits = quantization.group_size, quantization.bits
    _replace_layers(lm, t5, quantization, lambda layer: layer.to_quantized(group_size, bits))
    for layer in [*lm.modules(), *t5.modules()]:
        if isinstance(layer, nn.QuantizedLinear) and layer.biases is not None:
            layer.scales = layer.scales.astype(_SCALES_DTYPE)
            layer.biases = layer.biases.astype(_SCALES_DTYPE)


def use_quantized_layers(lm: LM, t5: T5Encoder, quantization: Quantization) -> None:
    """Replace the same layers by quantized ones, whose arrays are still to be loaded; raises the same."""

    def unloaded(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Linear):
            return layer.to_quantized(quantization.group_size, quantization.bits)
        # Not from weights: to quantize the hundreds of a model takes long, even lazily.
        quantized = nn.QuantizedLinear.__new__(nn.QuantizedLinear)
        nn.Module.__init__(quantized)
        quantized.group_size, quantized.bits = quantization.group_size, quantization.bits
        quantized.mode = "affine"
        outputs, inputs = layer.weight.shape
        quantized.weight = mx.zeros((outputs, inputs * quantization.bits // 32), mx.uint32)
        groups = mx.zeros((outputs, inputs // quantization.group_size), _SCALES_DTYPE)
        quantized.scales = quantized.biases = groups
        if "bias" in layer:
            quantized.bias = layer.bias
        return quantized

    _replace_layers(lm, t5, quantization, unloaded)


def _replace_layers(
    lm: LM, t5: T5Encoder, quantization: Quantization, to_quantized: Callable[[nn.Module], nn.Module]
) -> None:
    def replace(layer: nn.Module) -> nn.Module:
        wanted = isinstance(layer, nn.Linear) or layer is t5.embed
        return (
            to_quantized(layer) if wanted and layer.weight.shape[-1] % quantization.group_size == 0 else layer
        )

    for network in (lm, t5):
        network.update_modules(tree_map(replace, network.leaf_modules(), is_leaf=nn.Module.is_module))
        network.train(network.training)  # the new layers too
    if quantization_of(lm) is None:
        raise UsageError(
            f"group_size {quantization.group_size} doesn't divide any layer's width"
            f" ({lm.config.dim}, {lm.config.hidden_dim}); choose a smaller one"
        )


def enable_int8_activations(lm: LM) -> None:
    """Quantize the inputs of the quantized layers to 8 bits too, where the native extension computes them.

    Raises `UsageError` for a model that isn't quantized.
    """
    if quantization_of(lm) is None:
        raise UsageError("8-bit activations need a quantized model; quantize it too (-q 4, or quantize=4)")
    for layer in lm.modules():
        if isinstance(layer, (nn.QuantizedLinear, TiledQuantizedLinear)):
            layer.int8_activations = True
