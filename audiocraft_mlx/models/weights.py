"""From upstream's tensors to a network's parameters: packing, renaming, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from audiocraft_mlx.errors import CheckpointError

Weights = dict[str, mx.array]


def pack(weights: Weights, names: Sequence[str], packed: str) -> None:
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


def load_strict(module: nn.Module, weights: Weights, dtype: mx.Dtype, where: str) -> None:
    """Give `module` exactly `weights`, as `dtype`, emptying `weights` on the way.

    Tensors are converted one at a time and let go of, so that the peak stays near what is kept.
    Raises `CheckpointError` naming up to five missing, unexpected or mis-shaped tensors.
    """
    expected = {name: value.shape for name, value in dict(tree_flatten(module.parameters())).items()}
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is unexpected" for name in weights if name not in expected]
    faults += [
        f"{name} has shape {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{where} doesn't fit its configuration: {'; '.join(faults[:5])}{more}")
    for name in list(weights):
        value = weights.pop(name).astype(dtype)
        mx.eval(value)
        module.load_weights([(name, value)], strict=False)
    module.eval()
