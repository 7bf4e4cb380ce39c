"""LoRA: a product of two small matrices beside each of a network's linear layers (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.adapter_places import LayerModules
from audiocraft_mlx.checkpoints.adapter_writing import LowRankMatrices
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.ops.training import dropout, random_key
from audiocraft_mlx.tuning.options import ALL_TARGETS, HEADS, LoRAConfig


class KeyedDropout(nn.Dropout):
    """Dropout whose key is set before it is used, so that a block that is computed twice has the same."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self._p = p
        self._key: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or self._p == 0:
            return x
        return dropout(x, self._p, random_key() if self._key is None else self._key)


def seed_dropout(network: nn.Module, key: mx.array) -> None:
    """Give each dropout within `network` a key of its own, made of `key`: uint32 `[2]`."""
    dropouts = [module for _, module in network.named_modules() if isinstance(module, KeyedDropout)]
    for module, own in zip(dropouts, mx.random.split(key, len(dropouts)) if dropouts else (), strict=True):
        module._key = own


class LoRALinear(nn.Module):
    """A linear layer plus `scale * B(A(dropout(x)))`, of each of its parts that is adapted.

    Our layers may be several of the reference's below each other (q, k and v; the heads), each of which has
    matrices of its own there. `base` may be quantized.

    Attributes:
        lora_a: float32 `[parts, rank, inputs]` of the adapted parts.
        lora_b: float32 `[parts, outputs of a part, rank]`, zeros at first.
    """

    def __init__(
        self, base: nn.Module, part_outputs: int, adapted: Sequence[bool], config: LoRAConfig
    ) -> None:
        """`adapted`: for each part of `base`, whether it is."""
        super().__init__()
        self.base = base
        self.adapted = tuple(adapted)
        self.part_outputs = part_outputs
        self.scale = config.scale
        self.dropout = KeyedDropout(config.dropout)
        inputs, parts = _num_inputs(base), sum(adapted)
        # As PEFT (`kaiming_uniform_` with a = sqrt(5)).
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (parts, config.rank, inputs))
        self.lora_b = mx.zeros((parts, part_outputs, config.rank))

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., inputs]` → `[..., outputs]`."""
        parts, rank, inputs = self.lora_a.shape
        hidden = self.scale * (self.dropout(x) @ self.lora_a.reshape(parts * rank, inputs).T)
        y: mx.array = self.base(x)
        return mx.addmm(y, hidden.astype(y.dtype), self._joined_b().astype(y.dtype).T)

    def _joined_b(self) -> mx.array:
        """B of all parts, `[outputs, parts * rank]`: each part has its own rows and columns.

        The product with its zeros takes less time than to put the parts' products beside each other.
        """
        parts, outputs, rank = self.lora_b.shape
        if len(self.adapted) == 1:
            return self.lora_b[0]
        rows, index = [], 0
        for adapted in self.adapted:
            if adapted:
                before, behind = index * rank, (parts - 1 - index) * rank
                rows.append(mx.pad(self.lora_b[index], [(0, 0), (before, behind)]))
                index += 1
            else:
                rows.append(mx.zeros((outputs, parts * rank), self.lora_b.dtype))
        return mx.concatenate(rows)


def _num_inputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.QuantizedLinear):
        return int(layer.scales.shape[1] * layer.group_size)
    return int(layer.weight.shape[1])


def adapted_parts(place: LayerModules, targets: Sequence[str]) -> list[bool]:
    """Of each of the modules at `place`, whether it is a target.

    As in PEFT a target is a module's name, or its end behind a dot; `lm_heads` is all of them.
    """
    return [
        any(
            f".{module}".endswith(f".{target}") or (target == HEADS and f".{HEADS}." in f".{module}")
            for target in targets
        )
        for module in place.modules
    ]


def add_lora(network: nn.Module, places: Iterable[LayerModules], config: LoRAConfig) -> list[LayerModules]:
    """Freeze `network`, and put LoRA beside its layers at those `places` that are targets; which ones.

    The paths of `places` are those in `network`. Raises `UsageError` for a target that is at none of them.
    """
    places = list(places)
    validate_targets(config.targets, places)
    network.freeze()
    found = []
    for place in places:
        adapted = adapted_parts(place, config.targets)
        if any(adapted):
            parent, name = _parent(network, place.path)
            base = parent[name]
            layer = LoRALinear(base, base.weight.shape[0] // len(adapted), adapted, config)
            layer.base.freeze()
            parent[name] = layer
            found.append(place)
    return found


def validate_targets(targets: Sequence[str], places: Sequence[LayerModules]) -> None:
    """Raise `UsageError` for a target that is at none of `places`."""
    for target in targets:
        if not any(any(adapted_parts(place, [target])) for place in places):
            there = [known for known in ALL_TARGETS if any(any(adapted_parts(p, [known])) for p in places)]
            raise UsageError(f"--targets: the model has no {target!r}; it has {', '.join(there)}")


def lora_matrices(network: nn.Module, places: Iterable[LayerModules]) -> dict[str, LowRankMatrices]:
    """A and B of each adapted module, by transformers' names: those of `add_lora`'s layers at `places`."""
    matrices = {}
    for place in places:
        parent, name = _parent(network, place.path)
        layer = parent[name]
        adapted = [module for module, wanted in zip(place.modules, layer.adapted, strict=True) if wanted]
        for index, module in enumerate(adapted):
            matrices[module] = LowRankMatrices(layer.lora_a[index], layer.lora_b[index])
    return matrices


def set_lora_matrices(
    network: nn.Module, places: Iterable[LayerModules], matrices: Mapping[str, LowRankMatrices]
) -> None:
    """The inverse of `lora_matrices`. Raises `KeyError` for one that is missing."""
    for place in places:
        parent, name = _parent(network, place.path)
        layer = parent[name]
        own = [
            matrices[module] for module, wanted in zip(place.modules, layer.adapted, strict=True) if wanted
        ]
        layer.lora_a = mx.stack([each.a for each in own])
        layer.lora_b = mx.stack([each.b for each in own])


def peft_targets(config: LoRAConfig, matrices: Mapping[str, LowRankMatrices]) -> tuple[str, ...]:
    """The targets as PEFT takes them, of exactly the modules that `matrices` has.

    It doesn't know the heads by the name of their list. And what is none of `ALL_TARGETS` could be the end of
    other modules' names, too.
    """
    if not set(config.targets) <= set(ALL_TARGETS):
        return tuple(matrices)
    targets = [target for target in config.targets if target != HEADS]
    if HEADS in config.targets:
        targets += [module[module.index(HEADS) :] for module in matrices if f".{HEADS}." in module]
    return tuple(targets)


def _parent(network: nn.Module, path: str) -> tuple[Any, str]:
    """What holds the layer at `path`, and the layer's name there."""
    *parents, name = path.split(".")
    parent: Any = network
    for part in parents:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    return parent, name
