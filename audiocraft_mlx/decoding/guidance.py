"""Classifier-free guidance: away from what the model says without a condition.

Copet et al. 2023, section 2.3 and audiocraft's `LMModel._sample_next_token`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.arguments import check_number
from audiocraft_mlx.models.cache import LMState
from audiocraft_mlx.models.conditions import Conditions
from audiocraft_mlx.models.lm import LM


@dataclass(frozen=True)
class Guidance:
    """`coef` 1 is no guidance. `two_step` runs the two branches one after the other, not in one batch."""

    coef: float = 3.0
    two_step: bool = False

    def __post_init__(self) -> None:
        check_number("cfg_coef", self.coef, "a finite number", lambda coef: True)

    def combine(self, cond: mx.array, null: mx.array) -> mx.array:
        return null + (cond - null) * self.coef


class Predictor:
    """The guided logits of a sequence that grows: one or two branches of the model with their states."""

    def __init__(self, lm: LM, conditions: Conditions, steps: int, guidance: Guidance) -> None:
        self._lm = lm
        self._guidance = guidance
        null = conditions.null
        self._guided = null is not None and guidance.coef != 1
        if null is None or not self._guided:
            branches = [conditions]
        elif guidance.two_step:
            branches = [conditions, null]
        else:
            branches = [conditions.stacked_on(null)]
        self._states = [lm.start(branch, steps) for branch in branches]

    def __call__(self, codes: mx.array) -> mx.array:
        """Logits float32 `[B, K, card]` of the step after the next steps `codes` `[B, K, S]`."""
        if not self._guided:
            return self._last(codes, self._states[0])
        if len(self._states) == 2:
            cond, null = (self._last(codes, state) for state in self._states)
        else:
            cond, null = mx.split(self._last(mx.concatenate([codes, codes]), self._states[0]), 2)
        return self._guidance.combine(cond, null)

    def _last(self, codes: mx.array, state: LMState) -> mx.array:
        return self._lm(codes, state)[:, :, -1].astype(mx.float32)
