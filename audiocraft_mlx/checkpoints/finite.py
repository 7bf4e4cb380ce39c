"""Weights that are NaN or infinite: of a damaged checkpoint, or of a training that diverged.

Where all is computed in floats they show in the logits, which are looked at. Integers have no NaN: quantized
weights and inputs swallow it, and the music is wrong without a word. Hence these are checked when they are
read.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.ops.device import on_gpu


def mark_unless_finite(scales: mx.array, weight: mx.array, group_size: int) -> mx.array:
    """The `scales` of a quantized `weight`, lazy: NaN for each group in which a weight isn't finite.

    (MLX's own are those of the weights that are, or zero.)
    """
    groups = weight.reshape(*weight.shape[:-1], -1, group_size)
    return mx.where(all_finite(groups, axis=-1), scales, mx.array(float("nan"), scales.dtype))


# Of each type: the integer of its size, the bits without the sign, and infinity. What has more is NaN.
_BITS = {
    mx.float16: (mx.uint16, 0x7FFF, 0x7C00),
    mx.bfloat16: (mx.uint16, 0x7FFF, 0x7F80),
    mx.float32: (mx.uint32, 0x7FFFFFFF, 0x7F800000),
}


def all_finite(weight: mx.array, axis: int | None = None) -> mx.array:
    """Lazy bools, one or along an axis; true for integers.

    Of the bits: on a CPU `mx.isfinite` takes ten times as long, a fifth of a second for a small model.
    """
    if weight.dtype not in _BITS:
        return mx.isfinite(weight).all(axis=axis)
    kind, without_sign, infinity = _BITS[weight.dtype]
    return (weight.view(kind) & without_sign).max(axis=axis) < infinity


# Of each type: the integers of its size, infinity, and negative infinity as the unsigned one.
# What has more is NaN.
_NUMPY_BITS = {
    mx.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    mx.float32: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
}


def is_finite(weight: mx.array) -> bool:
    """The same of an array that is computed: where NumPy reads MLX's memory, in a fifth of the time."""
    if on_gpu() or weight.dtype not in _NUMPY_BITS:
        return bool(all_finite(weight).item())
    signed, unsigned, infinity, negative = _NUMPY_BITS[weight.dtype]
    values = np.asarray(weight)
    # The largest signed integer is a positive weight's, the largest unsigned one a negative weight's, if any.
    return bool(values.view(signed).max() < infinity and values.view(unsigned).max() < negative)


def not_finite_error(name: str, values: mx.array) -> CheckpointError:
    """The error for the tensor `name`. Of scales (`mark_unless_finite`) and biases it names the weight."""
    layer, _, part = name.rpartition(".")
    if part not in ("scales", "biases"):
        return _damaged(name)
    if mx.isnan(values).any():
        return _damaged(f"{layer}.weight")
    return CheckpointError(f"{layer}.weight has values that are too large to be quantized; don't quantize it")


def _damaged(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} has values that are NaN or infinite: the checkpoint is damaged, or its training diverged"
    )
