"""What the code transformer remembers between steps: a value that is made by `LM.start` and passed in."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


class KVCache:
    """Self-attention keys and values of one layer, `[B, heads, capacity, head_dim]`, allocated once."""

    def __init__(self, shape: tuple[int, int, int], head_dim: int, dtype: mx.Dtype) -> None:
        self._keys = mx.zeros((*shape, head_dim), dtype)
        self._values = mx.zeros((*shape, head_dim), dtype)
        self._length = 0

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write `[B, heads, n, head_dim]` behind what is there; all that was written so far."""
        start, end = self._length, self._length + keys.shape[2]
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


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
