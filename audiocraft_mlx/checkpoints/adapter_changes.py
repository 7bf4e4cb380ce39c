"""What an adapter changes in a model: places in its networks' parameters, and the weights that come there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.finite import all_finite
from audiocraft_mlx.networks.weights import flat_parameters


@dataclass(frozen=True)
class Place:
    """A parameter of one of a model's networks, or one of the equal parts of its rows.

    q, k and v are parts of one matrix in our networks, as are all codebooks' tables and heads.
    """

    network: str
    """As `ModelBundle.networks` names it."""
    parameter: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix `[rows, columns]` by `scale * up @ down`, of a low rank r (Hu et al. 2021).

    With `magnitude` (DoRA: Liu et al. 2024) the changed matrix is then scaled so that its norms along
    `norm_axis` are these.
    """

    up: mx.array
    """`[rows, r]`"""
    down: mx.array
    """`[r, columns]`"""
    scale: float
    magnitude: mx.array | None = None
    """`[rows]`, or `[columns]` if `norm_axis` is 0."""
    norm_axis: int = 1

    def apply(self, weight: mx.array, strength: float) -> mx.array:
        """Float32 of float32, `strength` of the way from `weight` to the changed one."""
        up, down = self.up.astype(mx.float32), self.down.astype(mx.float32)
        if self.magnitude is None:
            return weight + (self.scale * strength) * (up @ down)
        changed = weight + self.scale * (up @ down)
        norms = mx.sqrt((changed * changed).sum(axis=self.norm_axis, keepdims=True))
        changed = changed * (mx.expand_dims(self.magnitude.astype(mx.float32), self.norm_axis) / norms)
        return changed if strength == 1 else weight + strength * (changed - weight)


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained as a whole."""

    tensor: mx.array

    def apply(self, weight: mx.array, strength: float) -> mx.array:
        """As `LowRank.apply`."""
        tensor = self.tensor.astype(mx.float32)
        return tensor if strength == 1 else weight + strength * (tensor - weight)


@dataclass(frozen=True)
class Change:
    place: Place
    how: LowRank | Replacement


class Target:
    """The model that adapters are read for, and the shapes of its parameters."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.networks = bundle.networks
        self.num_codebooks = bundle.lm.config.num_codebooks
        self._shapes = {
            (network, parameter): weight.shape
            for network, module in self.networks.items()
            for parameter, weight in flat_parameters(module).items()
        }

    def shape_at(self, place: Place) -> tuple[int, ...] | None:
        """The shape of what is at `place`; None if there is no such place."""
        shape = self._shapes.get((place.network, place.parameter))
        if not shape or shape[0] % place.parts:
            return None
        return (shape[0] // place.parts, *shape[1:])


def apply_changes(bundle: ModelBundle, changes: Sequence[tuple[Change, float]], keep_halves: bool) -> None:
    """Make the changes, each with a strength, in the lazy weights of `bundle`, in float32; they stay lazy.

    With `keep_halves` a linear layer of the language model whose weights are all exact halves gets the halves
    that are nearest to the changed ones, as `ops.cpu.extension.store_fp16_if_exact` stores those that no
    adapter changes. That is computed here, one layer after the other.
    """
    by_parameter: dict[tuple[str, str], list[tuple[Change, float]]] = {}
    for change, strength in changes:
        key = (change.place.network, change.place.parameter)
        by_parameter.setdefault(key, []).append((change, strength))
    loaded = {name: flat_parameters(network) for name, network in bundle.networks.items()}
    linear = {f"{path}.weight" for path, layer in bundle.lm.named_modules() if isinstance(layer, nn.Linear)}
    for (network, parameter), own in by_parameter.items():
        weight = loaded[network].pop(parameter).astype(mx.float32)
        result = _changed(weight, own)
        if keep_halves and network == "lm" and parameter in linear:
            result = _as_halves_if(weight, result)
        # At once: what is replaced can be freed.
        bundle.networks[network].load_weights([(parameter, result)], strict=False)


def _changed(weight: mx.array, changes: Iterable[tuple[Change, float]]) -> mx.array:
    for change, strength in changes:
        place = change.place
        parts = list(mx.split(weight, place.parts)) if place.parts > 1 else [weight]
        parts[place.part] = change.how.apply(parts[place.part], strength)
        weight = mx.concatenate(parts) if place.parts > 1 else parts[0]
    return weight


def _as_halves_if(weight: mx.array, changed: mx.array) -> mx.array:
    """`changed` as float16 if that holds all of `weight` exactly, and its range all of `changed`."""
    if not mx.array_equal(weight.astype(mx.float16), weight):
        return changed
    halves = changed.astype(mx.float16)
    return halves if all_finite(halves).item() else changed
