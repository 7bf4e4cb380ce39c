"""Keys and values of the positions so far: a value that `LM.make_cache` makes and each call advances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.ops.attention import KVArray
from audiocraft_mlx.ops.cpu.extension import cpu_extension, empty
from audiocraft_mlx.ops.int8_rows import Int8Rows, quantize_int8


@dataclass(frozen=True)
class Span:
    """Where the positions of a call stand in the caches: `count` of each row, from `begins[row]` on."""

    begins: tuple[int, ...]
    count: int

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(begin + self.count for begin in self.begins)

    @property
    def begin(self) -> int | None:
        """That of all rows; None if they differ."""
        return self.begins[0] if len(set(self.begins)) == 1 else None


@dataclass
class KVCache:
    """Self-attention keys and values of one layer, in slots: those of the first rows are in use.

    Attributes:
        keys_values: `[slots, 2 * heads, capacity, head_dim]`: all heads' keys and then their values, so that
            a step writes both at once.
        scales: float32 `[slots, 2 * heads, capacity]` of an int8 cache, one for each head and position; or
            None.
    """

    keys_values: mx.array
    scales: mx.array | None = None

    @classmethod
    def allocate(
        cls, slots: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, bits: int | None = None
    ) -> KVCache:
        """With `bits` 8 the cache is int8 and `dtype` isn't used."""
        shape = (slots, 2 * heads, capacity)
        if bits is None:
            return cls(empty((*shape, head_dim), dtype))
        return cls(empty((*shape, head_dim), mx.int8), mx.zeros(shape))

    @property
    def slots(self) -> int:
        return self.keys_values.shape[0]

    @property
    def capacity(self) -> int:
        return self.keys_values.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys_values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def eval(self) -> None:
        mx.eval(self.keys_values, self.scales)

    def update_and_fetch(self, keys_values: mx.array, span: Span) -> tuple[KVArray, KVArray]:
        """Write `[B, 2 * heads, n, head_dim]` at `span`; the keys and the values of all positions so far.

        Of rows whose spans differ there is one position each, and what is fetched ends with the last of them.
        """
        rows, heads, end = len(keys_values), self.keys_values.shape[1] // 2, max(span.ends)
        if self.scales is None:
            self._write(self.keys_values, keys_values, span)
            written = self.keys_values[:rows, :, :end]
            return written[:, :heads], written[:, heads:]
        new = quantize_int8(keys_values)
        self._write(self.keys_values, new.data, span)
        self._write(self.scales, new.scales, span)
        data, scales = self.keys_values[:rows, :, :end], self.scales[:rows, :, :end]
        return Int8Rows(data[:, :heads], scales[:, :heads]), Int8Rows(data[:, heads:], scales[:, heads:])

    @staticmethod
    def _write(array: mx.array, new: mx.array, span: Span) -> None:
        rows, begin = len(new), span.begin
        if begin is not None:
            array[:rows, :, begin : begin + span.count] = new
        elif span.count == 1:
            array[mx.arange(rows), :, mx.array(span.begins)] = new[:, :, 0]
        else:
            raise ValueError("rows that are at different positions are advanced by one position at a time")

    def reserve(self, slots: int, capacity: int, used: int) -> None:
        """Have at least these; the first `used` slots keep what is in them."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots, capacity = max(slots, self.slots), max(capacity, self.capacity)
        self.keys_values = _grown(self.keys_values, slots, capacity, used)
        if self.scales is not None:
            self.scales = _grown(self.scales, slots, capacity, used)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the slots `sources` to `targets`, all at once."""
        taken, to = mx.array(list(sources)), mx.array(list(targets))
        self.keys_values[to] = self.keys_values[taken]
        if self.scales is not None:
            self.scales[to] = self.scales[taken]

    def put(self, other: KVCache, first: int, slots: int, length: int) -> None:
        """Copy `length` positions of the first `slots` of `other` into the slots from `first` on."""
        if (self.scales is None) != (other.scales is None):
            raise ValueError("an int8 cache can't be joined with one that isn't")
        pairs = [(self.keys_values, other.keys_values)]
        if self.scales is not None and other.scales is not None:
            pairs.append((self.scales, other.scales))
        for mine, theirs in pairs:
            mine[first : first + slots, :, :length] = theirs[:slots, :, :length]
            if cpu_extension() is None:
                # MLX multiplies what a mask hides by 0, and a NaN that a row has left here would stay one.
                mine[first : first + slots, :, length:] = 0


def _grown(array: mx.array, slots: int, capacity: int, used: int) -> mx.array:
    new = empty((slots, array.shape[1], capacity, *array.shape[3:]), array.dtype)
    new[:used, :, : array.shape[2]] = array[:used]
    return new


@dataclass
class DecoderState:
    """The progress of a batch of sequences, each where it is in its own.

    Attributes:
        caches: one for each layer; empty where nothing is kept (a forward pass of whole sequences).
        positions: sinusoidal embedding of all positions, `[capacity, dim]`.
        cross_kv: each layer's keys and values of the cross-attention, `[B, heads, C, head_dim]`; empty if
            the model has none.
        cross_mask: bool `[B, 1, 1, C]`, False where cross-attention may not attend to; None: everywhere.
        prefix: prepended conditions `[B, P, dim]` that the first call is yet to read, or None.
        starts: of each row, the positions in the caches before its first one: padding.
        ends: of each row, the positions in the caches so far, padding included.
    """

    caches: list[KVCache]
    positions: mx.array
    cross_kv: list[tuple[mx.array, mx.array]]
    cross_mask: mx.array | None
    prefix: mx.array | None
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def batch(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each row so far, its prefix included."""
        return tuple(max(0, end - start) for start, end in zip(self.starts, self.ends, strict=True))

    def advance(self, positions: int) -> Span:
        """Count `positions` more as read; where they are. Raises `ValueError` if a cache has no room."""
        span, written = Span(self.ends, positions), max(self.ends)
        for cache in self.caches[:1]:
            if written + positions > cache.capacity:
                raise ValueError(
                    f"the cache has room for {cache.capacity} positions, of which {written} are written"
                )
        self.ends = span.ends
        return span

    def filter(self, rows: Sequence[int]) -> None:
        """Keep `rows`, in that order; one may be there more than once. The others have ended."""
        moved = [(row, place) for place, row in enumerate(rows) if row != place]
        for cache in self.caches:
            cache.reserve(len(rows), cache.capacity, self.batch)
            if moved:
                cache.move(*zip(*moved, strict=True))
                cache.eval()
        self.starts = tuple(self.starts[row] for row in rows)
        self.ends = tuple(self.ends[row] for row in rows)
        index = mx.array(list(rows), mx.int32)
        self.cross_kv = [(k[index], v[index]) for k, v in self.cross_kv]
        self.cross_mask, self.prefix = (
            None if array is None else array[index] for array in (self.cross_mask, self.prefix)
        )

    def extend(self, other: DecoderState, slots: int = 0) -> None:
        """Add the rows of `other` behind these.

        `other` is of the same model, and stays as it is. Both have read their prefixes. Where the caches have
        to grow they get at least `slots` slots.

        Raises:
            ValueError: a prefix was not read yet.
        """
        if self.prefix is not None or other.prefix is not None:
            raise ValueError("a state can be extended only when both prefixes have been read")
        rows = self.batch + other.batch
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.reserve(max(rows, slots) if rows > mine.slots else rows, theirs.capacity, self.batch)
            mine.put(theirs, self.batch, other.batch, max(other.ends))
            mine.eval()  # else what they had before would stay in memory, of all layers
        if len(other.positions) > len(self.positions):
            self.positions = other.positions
        self._extend_cross(other)
        self.starts += other.starts
        self.ends += other.ends

    def rows(self, rows: Sequence[int]) -> DecoderState:
        """A state of its own with `rows`, in that order."""
        index = mx.array(list(rows), mx.int32)
        return DecoderState(
            [
                KVCache(cache.keys_values[index], None if cache.scales is None else cache.scales[index])
                for cache in self.caches
            ],
            self.positions,
            [(k[index], v[index]) for k, v in self.cross_kv],
            None if self.cross_mask is None else self.cross_mask[index],
            None if self.prefix is None else self.prefix[index],
            tuple(self.starts[row] for row in rows),
            tuple(self.ends[row] for row in rows),
        )

    def eval(self) -> None:
        """Compute all of it, so that any thread can go on."""
        mx.eval(self.cross_kv, self.cross_mask, self.prefix, self.positions)
        for cache in self.caches:
            cache.eval()

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


def visible(starts: Sequence[int], ends: Sequence[int]) -> mx.array:
    """What a single position at the end of each row may attend to, bool `[B, 1, 1, max(ends)]`."""
    positions = np.arange(max(ends))
    begin, end = np.array(starts)[:, None], np.array(ends)[:, None]
    return mx.array((positions >= begin) & (positions < end))[:, None, None]
