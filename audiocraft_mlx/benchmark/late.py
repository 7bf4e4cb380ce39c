"""The code transformer late in a clip, without the steps that lead there."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM


class LateLM:
    """Stands in for `lm` where frames are generated: every sequence begins at position `offset`.

    What is behind it, keys and values of nothing, costs as much to look at as any other. There is room for
    `capacity` positions in all.
    """

    def __init__(self, lm: LM, offset: int, capacity: int) -> None:
        self._lm = lm
        self._offset = offset
        self._capacity = capacity

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def __call__(self, codes: mx.array, state: DecoderState) -> mx.array:
        return self._lm(codes, state)

    def start(self, conditions: ConditionTensors, steps: int) -> DecoderState:
        config = self._lm.config
        state = self._lm.start(conditions, max(self._capacity, self._offset + steps))
        if self._offset:
            heads = config.num_heads
            shape = (conditions.batch, 2 * heads, self._offset, config.dim // heads)
            nothing = mx.zeros(shape, self._lm.dtype)
            for cache in state.caches:
                cache.append(nothing)
                cache.evaluate()
            state.offset += self._offset
        return state
