"""What the code transformer remembers between steps: a value that is made by `LM.start` and passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.ops.attention import KVArray
from audiocraft_mlx.ops.cpu.fused_block import FusedBlockStep, write_kv
from audiocraft_mlx.ops.int8_rows import Int8Rows, quantize_int8

LayerStep = Callable[[mx.array, mx.array], tuple[mx.array, ...]]


class KVCache:
    """Self-attention keys and values of one layer, allocated once: `[B, 2 * heads, capacity, head_dim]`.

    All heads' keys come first and then their values, so that a step writes both at once. With `bits` 8 they
    are kept in 8 bits, with a scale for each head and position; `dtype` is not used then.
    """

    def __init__(
        self, batch: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, bits: int | None = None
    ) -> None:
        shape = (batch, 2 * heads, capacity)
        self._heads = heads
        self._store = mx.zeros((*shape, head_dim), dtype if bits is None else mx.int8)
        self._scales = None if bits is None else mx.zeros(shape)
        self._length = 0

    @property
    def nbytes(self) -> int:
        return self._store.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def evaluate(self) -> None:
        mx.eval(self._store, self._scales)

    def append(self, keys_values: mx.array) -> tuple[KVArray, KVArray]:
        """Write `[B, 2 * heads, n, head_dim]` behind what is there; all that was written so far."""
        heads, start = self._heads, self._length
        self._length = end = start + keys_values.shape[2]
        if self._scales is None:
            self._store[:, :, start:end] = keys_values
            return self._store[:, :heads, :end], self._store[:, heads:, :end]
        new = quantize_int8(keys_values)
        self._store[:, :, start:end] = new.data
        self._scales[:, :, start:end] = new.scales
        codes, scales = self._store, self._scales
        return (
            Int8Rows(codes[:, :heads, :end], scales[:, :heads, :end]),
            Int8Rows(codes[:, heads:, :end], scales[:, heads:, :end]),
        )

    def step(self, x: mx.array, asked: mx.array, rest: FusedBlockStep, mask: mx.array | None) -> mx.array:
        """A step through the rest of a layer, which looks at what was written so far and at itself."""
        self._store = write_kv(self._store, asked, self._length)
        if self._scales is not None:
            self._scales = write_kv(self._scales, asked, self._length)
        self._length += 1
        return rest(x, asked, self._store, self._scales, self._length, mask)


@dataclass
class DecoderState:
    """Where a batch of sequences stands."""

    caches: list[KVCache]
    positions: mx.array
    """Sinusoidal embedding of all positions, `[capacity, dim]`."""
    prefix: mx.array | None
    """Prepended conditions `[B, P, dim]` until the first call has read them."""
    padding: mx.array | None
    """Positions in front of each row's prefix that are nothing, int `[B]`; None if there are none."""
    contexts: list[tuple[mx.array, mx.array] | None]
    """Keys and values of the cross-attention of each layer; None if the model has none."""
    between: list[LayerStep]
    """What is computed from one layer's look at all so far to the next one's."""
    between_single: list[LayerStep]
    """The same for a single step, compiled: a call costs the host little."""
    rests: list[FusedBlockStep] | None
    """A single step through most of each layer as one operation, where there is one."""
    offset: int = 0
    """Positions read so far, the prefix and its padding included."""
