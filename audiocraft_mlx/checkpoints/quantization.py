"""Fewer bits for the weights that are read at every step: MLX's affine quantization, 4 or 8 bits.

A group of neighbouring weights shares a scale and a bias; each weight is a whole number of scales above the
bias. What is quantized are the linear layers of the code transformer and of T5, and T5's table of words.
The transformer's own tables, of which a step reads one row, and the codec are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear

if TYPE_CHECKING:
    from audiocraft_mlx.checkpoints.bundle import ModelBundle

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64


@dataclass(frozen=True)
class Quantization:
    """`bits` of each weight, and how many share a scale and a bias. Raises `UsageError` for other values."""

    bits: int
    group_size: int = DEFAULT_GROUP_SIZE

    def __post_init__(self) -> None:
        for name, value, known in (("bits", self.bits, BITS), ("group_size", self.group_size, GROUP_SIZES)):
            if isinstance(value, bool) or value not in known:
                raise UsageError(f"{name} must be one of {', '.join(map(str, known))}, not {value!r}")


def quantize(checkpoint: ModelBundle, bits: int, group_size: int = DEFAULT_GROUP_SIZE) -> None:
    """Quantize the weights of a loaded model, in place.

    Like all weights that are only promised yet they are computed when they are first used, or by
    `checkpoint.evaluate()` one layer after the other.

    Raises:
        UsageError: values that aren't supported, a model that is quantized already, or one whose layers
            aren't divisible into such groups.
    """
    wanted = Quantization(bits, group_size)
    present = quantization_of(checkpoint.lm)
    if present is not None:
        raise UsageError(
            f"quantization to {bits} bits: the model is quantized to {present.bits} bits already;"
            " leave the quantization out, or give the model that it was made from"
        )
    quantize_layers(checkpoint.lm, checkpoint.text_conditioner.t5, wanted)


def quantization_of(network: nn.Module) -> Quantization | None:
    """How a network's layers are quantized; None if they are not."""
    for layer in network.modules():
        if isinstance(layer, (nn.QuantizedLinear, TiledQuantizedLinear)):
            return Quantization(layer.bits, layer.group_size)
    return None


def quantize_layers(lm: LM, t5: T5Encoder, quantization: Quantization) -> None:
    """Replace the layers that `quantization` is for. Raises `UsageError` if it fits none of `lm`."""

    def fits(layer: nn.Module) -> bool:
        return bool(layer.weight.shape[-1] % quantization.group_size == 0)

    def of_lm(path: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and fits(layer)

    def of_t5(path: str, layer: nn.Module) -> bool:
        return (isinstance(layer, nn.Linear) or path == "embed") and fits(layer)

    nn.quantize(lm, quantization.group_size, quantization.bits, class_predicate=of_lm)
    nn.quantize(t5, quantization.group_size, quantization.bits, class_predicate=of_t5)
    if quantization_of(lm) is None:
        raise UsageError(
            f"group_size {quantization.group_size} doesn't divide any layer's width"
            f" ({lm.config.dim}, {lm.config.hidden_dim}); choose a smaller one"
        )
    for layer in [*lm.modules(), *t5.modules()]:
        # Precise enough, and half of what float32 would cost. (Not T5's table of words: its scales' type is
        # that of what comes out of it, and float16 overflows in T5.)
        if isinstance(layer, nn.QuantizedLinear) and layer.biases is not None:
            layer.scales = layer.scales.astype(mx.float16)
            layer.biases = layer.biases.astype(mx.float16)


def enable_int8_activations(lm: LM) -> None:
    """Have the quantized layers take their inputs in 8 bits too, where the native extension computes them.

    Raises `UsageError` for a model that isn't quantized.
    """
    if quantization_of(lm) is None:
        raise UsageError("8-bit activations need a quantized model; quantize it to 4 or 8 bits too")
    for layer in lm.modules():
        if isinstance(layer, (nn.QuantizedLinear, TiledQuantizedLinear)):
            layer.int8_activations = True
