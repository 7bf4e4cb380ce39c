"""From a checkpoint's tensors to a network's parameters: renaming, packing, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear

Weights = dict[str, mx.array]
_Tensor = TypeVar("_Tensor")
FLOATS = (mx.float32, mx.float16, mx.bfloat16)
"""Of weights that aren't quantized."""
# torch's two spellings of a weight norm: gain and direction.
_WEIGHT_NORMS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def rename(weights: Weights, rules: Iterable[tuple[str, str]]) -> Weights:
    """Apply each rule (regular expression, replacement) once, in order, to every name."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    result = {}
    for name in list(weights):
        new = name
        for pattern, replacement in compiled:
            new = pattern.sub(replacement, new)
        result[new] = weights.pop(name)
    return result


def pop_prefix(weights: dict[str, _Tensor], prefix: str) -> dict[str, _Tensor]:
    """Remove the tensors whose names begin with `prefix`, and return them without it."""
    return {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def concat_tensors(weights: Weights, names: Sequence[str], packed: str) -> None:
    """Replace the tensors `names` by one, concatenated along the first axis, under the name `packed`.

    If one of them is absent nothing changes, and the strict loader names what is missing.
    Raises `CheckpointError` if their shapes don't match, or one isn't of floats: together they would be.
    """
    if not all(name in weights for name in names):
        return
    for name in names:
        _check_floats(weights, name)
    parts = [weights.pop(name) for name in names]
    if len({part.shape for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise CheckpointError(f"tensors that belong together have different shapes: {shapes}")
    weights[packed] = mx.concatenate(parts)


def fold_weight_norm(weights: Weights, dim: int = 0) -> None:
    """Replace each weight norm's gain `g` and direction `v` by the float32 `weight` = `g * v / |v|`.

    The norm is over all axes of `v` but `dim`, as in `torch.nn.utils.weight_norm`; both of torch's spellings
    are understood. If one of the two is absent nothing changes, and the strict loader names what is missing.
    Raises `CheckpointError` unless `v` is a convolution's `[out, in, kernel]` and `g` has one gain for each
    index of its axis `dim`.
    """
    for gain, direction in _WEIGHT_NORMS:
        for name in [name for name in weights if name.endswith(direction)]:
            layer = name.removesuffix(direction)
            if layer + gain in weights:
                check_tensor(weights, name, [None] * 3)
                axes = [axis for axis in range(3) if axis != dim]
                gains = [weights[name].shape[axis] if axis == dim else 1 for axis in range(3)]
                check_tensor(weights, layer + gain, gains)
                v, g = (weights.pop(layer + part).astype(mx.float32) for part in (direction, gain))
                weights[f"{layer}.weight"] = v * (g / mx.sqrt((v * v).sum(axis=axes, keepdims=True)))


def check_tensor(weights: Weights, name: str, shape: Sequence[int | None]) -> None:
    """Raise `CheckpointError` unless the tensor is of floats and has this shape; None is any size."""
    if name not in weights:
        raise CheckpointError(f"{shown_text(name)} is missing")
    _check_floats(weights, name)
    found = weights[name]
    if len(found.shape) != len(shape) or any(
        size not in (None, actual) for size, actual in zip(shape, found.shape, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(f"{shown_text(name)} has shape {list(found.shape)} instead of [{expected}]")


def _check_floats(weights: Weights, name: str) -> None:
    dtype = weights[name].dtype
    if dtype not in FLOATS:
        raise CheckpointError(f"{shown_text(name)} is of type {dtype_name(dtype)} instead of float32")


def flat_parameters(module: nn.Module) -> Weights:
    """All parameters by their dotted names."""
    return dict(tree_flatten(module.parameters()))


def quantized_parameters(module: nn.Module) -> dict[str, tuple[mx.Dtype, ...]]:
    """The parameters of quantized layers, with the dtypes that each may have."""
    return {
        f"{path}.{part}": (mx.uint32,) if part == "weight" else (mx.float16, mx.float32)
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding, TiledQuantizedLinear))
        for part in ("weight", "scales", "biases")
    }


def load_strict(
    module: nn.Module, weights: Weights, dtype: mx.Dtype, source: str, as_stored: tuple[str, ...] = ()
) -> None:
    """Load exactly `weights` into `module`, converted to `dtype`; `weights` is emptied.

    Parameters of quantized layers keep their dtype, and so do those whose names begin with `as_stored`. Lazy
    weights stay lazy, so that code that transforms them afterwards never holds two copies of all. Raises
    `CheckpointError`; see `check_weights`.
    """
    quantized = check_weights(module, weights, source)
    module.load_weights(
        [
            (name, value if name in quantized or name.startswith(as_stored) else value.astype(dtype))
            for name, value in weights.items()
        ],
        strict=False,  # checked above
    )
    weights.clear()
    module.eval()


def check_weights(
    module: nn.Module, weights: Mapping[str, mx.array], source: str
) -> Mapping[str, tuple[mx.Dtype, ...]]:
    """Raise `CheckpointError` unless `weights` are `module`'s parameters, by name, shape and type.

    It names `source` and up to five missing, unexpected, mis-shaped or mistyped tensors. Lazy weights stay
    lazy. Returns `quantized_parameters`.
    """
    expected = flat_parameters(module)
    quantized = quantized_parameters(module)
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{shown_text(name)} is unexpected" for name in weights if name not in expected]
    for name in expected:
        if name in weights:
            value, allowed = weights[name], quantized.get(name, FLOATS)
            if value.shape != expected[name].shape:
                faults.append(f"{name} has shape {list(value.shape)} instead of {list(expected[name].shape)}")
            elif value.dtype not in allowed:
                faults.append(
                    f"{name} is of type {dtype_name(value.dtype)} instead of {dtype_name(allowed[0])}"
                )
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source} doesn't fit its configuration: {'; '.join(faults[:5])}{more}")
    return quantized


def dtype_name(dtype: mx.Dtype) -> str:
    """`float16` for `mx.float16`."""
    return str(dtype).removeprefix("mlx.core.")
