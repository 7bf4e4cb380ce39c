"""LoRA: a product of two small matrices beside each of a network's linear layers (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.ops.training import dropout, random_key

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""What is adapted by default, in the names of transformers and PEFT: attention and feed-forward."""
PROJECTION, HEADS = "enc_to_dec_proj", "lm_heads"
ALL_TARGETS = (*TARGETS, PROJECTION, HEADS)


@dataclass(frozen=True)
class LoRAConfig:
    """`rank`, `alpha` and `dropout` as in PEFT: the product is scaled by `alpha / rank`."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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


@dataclass(frozen=True)
class Place:
    """Where a linear layer of ours has parts, and what these are in transformers' model.

    Attributes:
        path: of our layer, in its network.
        modules: of the reference, one for each part; their last names are what targets name.
    """

    path: str
    modules: tuple[str, ...]

    def is_adapted(self, targets: Sequence[str]) -> list[bool]:
        # As PEFT: a target is a module's name, or its end behind a dot. Of the heads it is their list's.
        return [
            any(f".{module}".endswith(f".{target}") or f".{target}." in f".{module}" for target in targets)
            for module in self.modules
        ]


def lm_places(num_layers: int, num_codebooks: int, cross_attention: bool) -> Iterator[Place]:
    """The linear layers of a `networks.lm.LM`."""
    for index in range(num_layers):
        ours, theirs = f"layers.{index}", f"decoder.model.decoder.layers.{index}"
        attention = f"{theirs}.self_attn"
        yield Place(f"{ours}.self_attn.qkv_proj", tuple(f"{attention}.{part}_proj" for part in "qkv"))
        yield Place(f"{ours}.self_attn.out_proj", (f"{attention}.out_proj",))
        if cross_attention:
            attention = f"{theirs}.encoder_attn"
            yield Place(f"{ours}.cross_attn.q_proj", (f"{attention}.q_proj",))
            yield Place(f"{ours}.cross_attn.kv_proj", tuple(f"{attention}.{part}_proj" for part in "kv"))
            yield Place(f"{ours}.cross_attn.out_proj", (f"{attention}.out_proj",))
        yield Place(f"{ours}.linear1", (f"{theirs}.fc1",))
        yield Place(f"{ours}.linear2", (f"{theirs}.fc2",))
    yield Place("lm_heads", tuple(f"decoder.lm_heads.{k}" for k in range(num_codebooks)))


def add_lora(network: nn.Module, places: Iterable[Place], config: LoRAConfig) -> list[Place]:
    """Freeze `network`, and put LoRA beside its layers at those `places` that are targets; which ones.

    Raises `UsageError` for a target that is nowhere.
    """
    network.freeze()
    found = []
    for place in places:
        adapted = place.is_adapted(config.targets)
        if any(adapted):
            *parents, name = place.path.split(".")
            parent = network
            for part in parents:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            base = parent[name]
            outputs = (base.weight if isinstance(base, nn.Module) else base).shape[0]
            layer = LoRALinear(base, outputs // len(adapted), adapted, config)
            layer.base.freeze()
            parent[name] = layer
            found.append(place)
    return found


def validate_targets(targets: Sequence[str], places: Sequence[Place]) -> None:
    """Raise `UsageError` for a target that is at none of `places`."""
    for target in targets:
        if not any(any(place.is_adapted([target])) for place in places):
            raise UsageError(f"--targets: the model has no {target}; it has {', '.join(ALL_TARGETS)}")
