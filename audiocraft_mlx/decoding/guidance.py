"""Classifier-free guidance: away from what the model says without a condition.

Copet et al. 2023, section 2.3 and audiocraft's `LMModel._sample_next_token`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.models.conditions import Conditions
from audiocraft_mlx.models.lm import LM


@dataclass(frozen=True)
class Guidance:
    """`coef` 1 is no guidance. `two_step` runs the two branches one after the other, not in one batch."""

    coef: float = 3.0
    two_step: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.coef):
            raise UsageError(f"cfg_coef must be a finite number, not {self.coef!r}")

    def combine(self, cond: mx.array, null: mx.array) -> mx.array:
        return null + (cond - null) * self.coef


class Predictor:
    """The guided logits of a sequence that grows: one or two branches of the model with their states."""

    def __init__(self, lm: LM, conditions: Conditions, steps: int, guidance: Guidance) -> None:
        self._lm = lm
        self._guidance = guidance
        null = conditions.null
        if null is None or guidance.coef == 1:
            branches = [conditions]
            self._predict: Callable[[mx.array], mx.array] = self._unguided
        elif guidance.two_step:
            branches = [conditions, null]
            self._predict = self._in_two_steps
        else:
            branches = [conditions.stacked_on(null)]
            self._predict = self._batched
        self._states = [lm.start(branch, steps) for branch in branches]

    def __call__(self, codes: mx.array) -> mx.array:
        """Logits float32 `[B, K, card]` of the step after the next steps `codes` `[B, K, S]`."""
        return self._predict(codes)

    def _last(self, codes: mx.array, branch: int) -> mx.array:
        return self._lm(codes, self._states[branch])[:, :, -1].astype(mx.float32)

    def _unguided(self, codes: mx.array) -> mx.array:
        return self._last(codes, 0)

    def _in_two_steps(self, codes: mx.array) -> mx.array:
        return self._guidance.combine(self._last(codes, 0), self._last(codes, 1))

    def _batched(self, codes: mx.array) -> mx.array:
        return self._guidance.combine(*mx.split(self._last(mx.concatenate([codes, codes]), 0), 2))
