"""Steps of the language model in the fastest way that this machine has; `networks/lm.py` is the plain one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, Block, PositionInfo
from audiocraft_mlx.ops.cpu.extension import kv_cache_dtype
from audiocraft_mlx.ops.cpu.fused_block import FusedLayers, fuse_layers
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear


class MergedSteps(Protocol):
    """What the states of several `DecoderSteps` are in at once."""

    def take_out(self, own: DecoderSteps) -> DecoderState: ...
    def drop(self, own: DecoderSteps) -> None: ...


LayerStep = Callable[..., tuple[mx.array, ...]]
Item = TypeVar("Item")


class LMDecoder:
    """Starts sequences of `lm`, and has what they share: parts of its layers, compiled."""

    def __init__(self, lm: LM, cache_bits: int | None = None) -> None:
        """With `cache_bits` 8 keys and values are kept in int8."""
        self.lm = lm
        self._cache_bits = cache_bits
        quantized = isinstance(lm.lm_heads, (nn.QuantizedLinear, TiledQuantizedLinear))
        self._cache_dtype = kv_cache_dtype(quantized, lm.dtype)
        following = [*lm.layers[1:], None]
        self._layer_steps: list[LayerStep] = [
            mx.compile(partial(_layer_step, layer, after))
            for layer, after in zip(lm.layers, following, strict=True)
        ]

    def start(self, conditions: ConditionTensors, steps: int) -> DecoderSteps:
        """Sequences of up to `steps` steps under `conditions`, one for each row of these."""
        state = self.lm.make_cache(conditions, steps, self._cache_dtype, self._cache_bits)
        return DecoderSteps(self.lm, state, self._layer_steps)


class LMStep:
    """A step of the transformer that sequences wait for.

    A generator yields it, and goes on with its `logits`. So whoever advances the generator can have the steps
    of several at once (`continuous_batch.py`).

    Attributes:
        parts: sequences and their next codes `[B, K, S]`, of each branch of guidance that is computed alone.
        logits: float `[B, K, S, card]` of each part, when the step was taken.
    """

    def __init__(self, *parts: tuple[DecoderSteps, mx.array]) -> None:
        self.parts = parts
        self.logits: list[mx.array] = []

    @property
    def is_single(self) -> bool:
        """Whether it is of one position, not of several of a prompt or a prefix."""
        return all(codes.shape[2] == 1 and not own.has_prefix for own, codes in self.parts)

    def take(self) -> None:
        """By itself."""
        self.logits = [steps(codes) for steps, codes in self.parts]


def last_logits(logits: mx.array) -> mx.array:
    """Float32 `[B, K, card]` of the last of the steps of `logits` `[B, K, S, card]`."""
    return logits[:, :, -1].astype(mx.float32)


def alone(items: Iterable[Item | LMStep]) -> Iterator[Item]:
    """What sequences yield that take each step when they need it."""
    for item in items:
        if isinstance(item, LMStep):
            item.take()
        else:
            yield item


def taken(steps: Generator[LMStep, None, Item]) -> Item:
    """What `steps` return when each is taken."""
    while True:
        try:
            next(steps).take()
        except StopIteration as stop:
            value: Item = stop.value
            return value


class DecoderSteps:
    """A batch of sequences: `steps(codes)` are the logits for the step after the next ones."""

    def __init__(self, lm: LM, state: DecoderState, layer_steps: list[LayerStep]) -> None:
        self._lm = lm
        self._state: DecoderState | None = state
        self._layer_steps = layer_steps
        self._merged: MergedSteps | None = None
        self._fuse()

    @property
    def state(self) -> DecoderState:
        """What was read so far. Its rows may join and leave between calls."""
        self.split()
        assert self._state is not None  # it has not ended
        return self._state

    @property
    def has_prefix(self) -> bool:
        """Whether the next call reads a prefix, too."""
        return self._state is not None and self._state.prefix is not None

    def merge(self, merged: MergedSteps) -> None:
        """From now on its rows are in the state of `merged`."""
        self._state, self._merged = None, merged

    def split(self) -> None:
        """Its rows are no longer in a state with those of others, if they were."""
        if self._merged is not None:
            self._state, self._merged = self._merged.take_out(self), None

    def close(self) -> None:
        """No step will be taken any more: its rows are no longer of use."""
        if self._merged is not None:
            self._merged.drop(self)
        self._state = self._merged = None

    def like(self, state: DecoderState) -> DecoderSteps:
        """Sequences of the same model."""
        return DecoderSteps(self._lm, state, self._layer_steps)

    def __call__(self, codes: mx.array) -> mx.array:
        """Logits `[B, K, S, card]` of the steps `codes`, int `[B, K, S]`; see `LM`."""
        if self._fused_rows != self.state.batch or self._fused_cross_kv is not self.state.cross_kv:
            self._fuse()  # rows have joined or left
        x, position = self._lm.embed_steps(codes, self.state)
        if x.shape[1] > 1:
            x = self._lm.run_layers(x, position, self.state)
        elif self._fused is not None:
            x = self._fused(x, self.state.caches, self.state.starts, self.state.ends)
        else:
            x = self._run_compiled(x, position)
        return self._lm.predict(x, codes.shape[2])

    def _fuse(self) -> None:
        """Build the fused layers, which hold the rows' cross-attention."""
        state = self.state
        self._fused_rows, self._fused_cross_kv = state.batch, state.cross_kv
        self._fused: FusedLayers | None = None
        if not self._lm.config.rotary_positions:
            self._fused = fuse_layers(self._lm.layers, state.batch, state.cross_kv, state.cross_mask)

    def _run_compiled(self, x: mx.array, position: PositionInfo) -> mx.array:
        """`LM.run_layers` for a single step; what lies between two self-attentions is compiled."""
        lm, state = self._lm, self.state
        q, kv = lm.layers[0].pre_attention(x)
        for index, (layer, layer_step) in enumerate(zip(lm.layers, self._layer_steps, strict=True)):
            attn_out = layer.self_attn.attend(q, kv, position, state.caches[index])
            cross = state.cross_kv[index] if state.cross_kv else ()
            mask = () if state.cross_mask is None else (state.cross_mask,)
            x, *next_qkv = layer_step(x, attn_out, *cross, *mask)
            if next_qkv:
                q, kv = next_qkv
        return x


def _layer_step(
    layer: Block, following: Block | None, x: mx.array, attn_out: mx.array, *cross: mx.array
) -> tuple[mx.array, ...]:
    """From a layer's self-attention to its output, and the next layer's queries, keys and values.

    `cross` are keys and values of the cross-attention and its mask, as far as there are any.
    """
    cross_kv = (cross[0], cross[1]) if len(cross) > 1 else None
    x = layer.post_attention(x, attn_out, cross_kv, cross[2] if len(cross) > 2 else None)
    return (x,) if following is None else (x, *following.pre_attention(x))
