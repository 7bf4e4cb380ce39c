"""Keys and values of the positions so far: a value that `LM.make_cache` makes and each call advances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.ops.attention import KVArray
from audiocraft_mlx.ops.cpu.extension import empty
from audiocraft_mlx.ops.int8_rows import Int8Rows, quantize_int8


class KVCache:
    """Self-attention keys and values of one layer, allocated once.

    Attributes:
        keys_values: `[B, 2 * heads, capacity, head_dim]`: all heads' keys and then their values, so that a
            step writes both at once.
        scales: float32 `[B, 2 * heads, capacity]` of an int8 cache, one for each head and position; or None.
        length: positions written so far.
    """

    def __init__(
        self, batch: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, bits: int | None = None
    ) -> None:
        """With `bits` 8 the cache is int8 and `dtype` isn't used."""
        shape = (batch, 2 * heads, capacity)
        self.keys_values = empty((*shape, head_dim), dtype if bits is None else mx.int8)
        self.scales = None if bits is None else mx.zeros(shape)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys_values.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys_values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def eval(self) -> None:
        mx.eval(self.keys_values, self.scales)

    def update_and_fetch(self, keys_values: mx.array) -> tuple[KVArray, KVArray]:
        """Append `[B, 2 * heads, n, head_dim]`; the keys and the values of all positions so far."""
        heads, start = self.keys_values.shape[1] // 2, self.length
        end = self.advance(keys_values.shape[2])
        if self.scales is None:
            self.keys_values[:, :, start:end] = keys_values
            return self.keys_values[:, :heads, :end], self.keys_values[:, heads:, :end]
        new = quantize_int8(keys_values)
        self.keys_values[:, :, start:end] = new.data
        self.scales[:, :, start:end] = new.scales
        data, scales = self.keys_values, self.scales
        return (
            Int8Rows(data[:, :heads, :end], scales[:, :heads, :end]),
            Int8Rows(data[:, heads:, :end], scales[:, heads:, :end]),
        )

    def advance(self, positions: int) -> int:
        """Count `positions` more as written; the new length. Raises `ValueError` if there is no room."""
        self.require_room(positions)
        self.length += positions
        return self.length

    def require_room(self, positions: int) -> None:
        """Raise `ValueError` if there is no room for `positions` more."""
        if self.length + positions > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} positions, of which {self.length} are written"
            )

    def filter(self, rows: mx.array, trim: int = 0) -> None:
        """Keep `rows`, int `[N]`, in that order, without their first `trim` positions."""
        self.keys_values = mx.contiguous(self.keys_values[rows, :, trim:])
        self.scales = None if self.scales is None else mx.contiguous(self.scales[rows, :, trim:])
        self.length -= trim

    def extend(self, other: KVCache) -> None:
        """Add the rows of `other` behind these; the last positions of both are aligned."""
        if (self.scales is None) != (other.scales is None):
            raise ValueError("an int8 cache can't be joined with one that isn't")
        length = max(self.length, other.length)
        capacity = length + max(cache.capacity - cache.length for cache in (self, other))
        both = self, other
        self.keys_values = mx.concatenate([c._aligned(c.keys_values, length, capacity) for c in both])
        if self.scales is not None and other.scales is not None:
            self.scales = mx.concatenate(
                [c._aligned(s, length, capacity) for c, s in ((self, self.scales), (other, other.scales))]
            )
        self.length = length

    def _aligned(self, array: mx.array, length: int, capacity: int) -> mx.array:
        """An array of this cache with the written positions ending at `length`."""
        written = array[:, :, : self.length]
        padding = [(0, 0), (0, 0), (length - self.length, capacity - length), (0, 0)]
        return mx.pad(written, padding[: array.ndim])


@dataclass
class DecoderState:
    """The progress of a batch of sequences, all of whose last positions are aligned.

    Attributes:
        caches: one for each layer; empty where nothing is kept (a forward pass of whole sequences).
        positions: sinusoidal embedding of all positions, `[capacity, dim]`.
        cross_kv: each layer's keys and values of the cross-attention, `[B, heads, C, head_dim]`; empty if
            the model has none.
        cross_mask: bool `[B, 1, 1, C]`, False where cross-attention may not attend to; None: everywhere.
        prefix: prepended conditions `[B, P, dim]` that the first call is yet to read, or None.
        left_padding: int `[B]`, positions before each row's first one; None if there are none.
        offset: positions read so far, left padding included.
    """

    caches: list[KVCache]
    positions: mx.array
    cross_kv: list[tuple[mx.array, mx.array]]
    cross_mask: mx.array | None
    prefix: mx.array | None
    left_padding: mx.array | None
    batch: int
    offset: int = 0

    @property
    def lengths(self) -> mx.array:
        """Positions of each row so far, its prefix included, int32 `[B]`."""
        return mx.maximum(self.offset - self._padding(), 0)

    def advance(self, positions: int) -> int:
        """Count `positions` more as read; the offset before. Raises `ValueError` if a cache has no room."""
        for cache in self.caches[:1]:
            cache.require_room(positions)
        self.offset += positions
        return self.offset - positions

    def filter(self, rows: Sequence[int]) -> None:
        """Keep `rows`, in that order: the others have ended. Left padding that is all rows' goes, too."""
        index = mx.array(list(rows), mx.int32)
        trim = 0 if self.prefix is not None else int(np.array(self._padding())[list(rows)].min())
        for cache in self.caches:
            cache.filter(index, trim)
        self.cross_kv = [(k[index], v[index]) for k, v in self.cross_kv]
        self.cross_mask, self.prefix, self.left_padding = (
            None if array is None else array[index]
            for array in (self.cross_mask, self.prefix, self.left_padding)
        )
        self.offset -= trim
        if self.left_padding is not None:
            self.left_padding = self.left_padding - trim
            if not self.left_padding.any().item():
                self.left_padding = None
        self.batch = len(rows)

    def extend(self, other: DecoderState) -> None:
        """Add the rows of `other` behind these, each where it is in its own sequence.

        `other` is of the same model, and no longer of use afterwards. Both have read their prefixes.

        Raises:
            ValueError: a prefix was not read yet.
        """
        if self.prefix is not None or other.prefix is not None:
            raise ValueError("a state can be extended only when both prefixes have been read")
        offset = max(self.offset, other.offset)
        padding = [state._padding() + (offset - state.offset) for state in (self, other)]
        left_padding = mx.concatenate(padding)
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.extend(theirs)
        if len(other.positions) > len(self.positions):
            self.positions = other.positions
        self._extend_cross(other)
        self.left_padding = left_padding if left_padding.any().item() else None
        self.batch += other.batch
        self.offset = offset

    def _padding(self) -> mx.array:
        return mx.zeros(self.batch, mx.int32) if self.left_padding is None else self.left_padding

    def _extend_cross(self, other: DecoderState) -> None:
        if not self.cross_kv:
            return
        length = max(state.cross_kv[0][0].shape[2] for state in (self, other))
        masks = []
        for state in (self, other):
            own = state.cross_kv[0][0].shape[2]
            mask = state.cross_mask
            if mask is None:
                mask = mx.ones((state.batch, 1, 1, own), mx.bool_)
            masks.append(mx.pad(mask, [(0, 0), (0, 0), (0, 0), (0, length - own)]))
        mask = mx.concatenate(masks)

        def joined(mine: mx.array, theirs: mx.array) -> mx.array:
            return mx.concatenate(
                [mx.pad(a, [(0, 0), (0, 0), (0, length - a.shape[2]), (0, 0)]) for a in (mine, theirs)]
            )

        self.cross_kv = [
            (joined(k, other_k), joined(v, other_v))
            for (k, v), (other_k, other_v) in zip(self.cross_kv, other.cross_kv, strict=True)
        ]
        self.cross_mask = None if mask.all().item() else mask
