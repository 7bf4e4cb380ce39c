"""What the code transformer remembers between steps: a value that is made by `LM.start` and passed in."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.ops.attention import Stored
from audiocraft_mlx.ops.eight_bit import EightBit, rounded


class KVCache:
    """Self-attention keys and values of one layer, `[B, heads, capacity, head_dim]`, allocated once.

    With `bits` 8 they are kept in 8 bits, with a scale for each head and position; `dtype` is not used then.
    """

    def __init__(
        self, shape: tuple[int, int, int], head_dim: int, dtype: mx.Dtype, bits: int | None = None
    ) -> None:
        if bits is None:
            self._stores = [Store([mx.zeros((*shape, head_dim), dtype)]) for _ in range(2)]
        else:
            self._stores = [Store([mx.zeros((*shape, head_dim), mx.int8), mx.zeros(shape)]) for _ in range(2)]
        self._length = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for store in self._stores for array in store.arrays)

    def evaluate(self) -> None:
        mx.eval([store.arrays for store in self._stores])

    def append(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Write `[B, heads, n, head_dim]` behind what is there; all that was written so far."""
        start, self._length = self._length, self._length + keys.shape[2]
        k, v = (store.write(new, start) for store, new in zip(self._stores, (keys, values), strict=True))
        return k, v


@dataclass
class Store:
    """One of the two: values, or codes of 8 bits with their scales; positions are the third axis."""

    arrays: list[mx.array]

    def write(self, new: mx.array, start: int) -> Stored:
        end = start + new.shape[2]
        if len(self.arrays) == 1:
            self.arrays[0][:, :, start:end] = new
            return self.arrays[0][:, :, :end]
        parts = rounded(new)
        self.arrays[0][:, :, start:end] = parts.codes
        self.arrays[1][:, :, start:end] = parts.scales
        return EightBit(self.arrays[0][:, :, :end], self.arrays[1][:, :, :end])


@dataclass
class LMState:
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
    context_mask: mx.array | None
    offset: int = 0
    """Positions read so far, the prefix and its padding included."""
