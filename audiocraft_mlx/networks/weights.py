"""From upstream's tensors to a network's parameters: packing, renaming, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from audiocraft_mlx.errors import CheckpointError

Weights = dict[str, mx.array]
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def concat_tensors(weights: Weights, names: Sequence[str], packed: str) -> None:
    """Replace the tensors `names` by one, concatenated along the first axis, under the name `packed`.

    If one of them is absent nothing changes, and the strict loader names what is missing.
    Raises `CheckpointError` if their shapes don't fit together.
    """
    if not all(name in weights for name in names):
        return
    parts = [weights.pop(name) for name in names]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise CheckpointError(f"tensors that belong together have different shapes: {shapes}")
    weights[packed] = mx.concatenate(parts)


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


def pop_prefix(weights: Weights, prefix: str) -> Weights:
    """Remove the tensors whose names begin with `prefix`, and return them without it."""
    return {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def parameters(module: nn.Module) -> Weights:
    """All parameters by their names."""
    return dict(tree_flatten(module.parameters()))


def load_strict(module: nn.Module, weights: Weights, dtype: mx.Dtype, where: str) -> None:
    """Give `module` exactly `weights`, as `dtype`, emptying `weights` on the way.

    What belongs to a quantized layer keeps the type that it has. Nothing is read or converted before it is
    first used, so that whoever goes on to change the weights never holds two copies of all.
    Raises `CheckpointError` naming up to five missing, unexpected, mis-shaped or mistyped tensors.
    """
    expected = parameters(module)
    quantized = quantized_parameters(module)
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is unexpected" for name in weights if name not in expected]
    for name in expected:
        if name in weights:
            value, allowed = weights[name], quantized.get(name, _FLOATS)
            if value.shape != expected[name].shape:
                faults.append(f"{name} has shape {list(value.shape)} instead of {list(expected[name].shape)}")
            elif value.dtype not in allowed:
                found, wanted = dtype_name(value.dtype), dtype_name(allowed[0])
                faults.append(f"{name} is of type {found} instead of {wanted}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{where} doesn't fit its configuration: {'; '.join(faults[:5])}{more}")
    module.load_weights(
        [(name, value if name in quantized else value.astype(dtype)) for name, value in weights.items()]
    )
    weights.clear()
    module.eval()


def quantized_parameters(module: nn.Module) -> dict[str, tuple[mx.Dtype, ...]]:
    """The parameters that belong to quantized layers, with the types that they may have."""
    return {
        f"{path}.{part}": (mx.uint32,) if part == "weight" else (mx.float16, mx.float32)
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        for part in ("weight", "scales", "biases")
    }


def dtype_name(dtype: mx.Dtype) -> str:
    """`float16`, say."""
    return str(dtype).removeprefix("mlx.core.")
