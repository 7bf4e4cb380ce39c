"""Classifier-free guidance: away from what the model says without a condition.

Copet et al. 2023, section 2.3; in two parts Rouard et al. 2024, "Audio Conditioning for Music Generation via
Discrete Bottleneck Features", section 4.3; and audiocraft's `LMModel._sample_next_token`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.validation import validate_number


@dataclass(frozen=True)
class GuidanceParams:
    """`coef` 1 is no guidance. `two_step` runs the branches one after the other, not in one batch.

    `beta` is how much more the text counts than the audio that is given with it; None: as much.
    """

    coef: float = 3.0
    two_step: bool = False
    beta: float | None = None

    def __post_init__(self) -> None:
        validate_number("cfg_coef", self.coef, "a finite number", lambda coef: True)
        if self.beta is not None:
            validate_number("cfg_coef_beta", self.beta, "a finite number", lambda beta: True)
            if self.two_step:
                raise UsageError("cfg_coef_beta can't be used with two_step_cfg; choose one of them")

    def combine(self, cond: mx.array, null: mx.array, audio: mx.array | None = None) -> mx.array:
        """`cond` as far from `null` as asked; `audio` is what is said without the text."""
        if audio is not None and self.beta is not None:
            cond = audio + (cond - audio) * self.beta
        return null + (cond - null) * self.coef


class GuidedDecoder:
    """The guided logits of a sequence that grows: the branches of the model with their states."""

    def __init__(self, lm: LM, conditions: ConditionTensors, steps: int, guidance: GuidanceParams) -> None:
        self._lm = lm
        self._guidance = guidance
        branches = [conditions]
        if conditions.null is not None and (guidance.coef != 1 or guidance.beta is not None):
            branches.append(conditions.null)
            if guidance.beta is not None and conditions.audio is not None:
                branches.append(conditions.audio)
        self._branches = len(branches)
        if self._branches > 1 and not guidance.two_step:
            together = branches[0]
            for branch in branches[1:]:
                together = together.stacked_on(branch)
            branches = [together]
        self._states = [lm.start(branch, steps) for branch in branches]

    def __call__(self, codes: mx.array) -> mx.array:
        """Logits float32 `[B, K, card]` of the step after the next steps `codes` `[B, K, S]`."""
        if self._branches == 1:
            return self._last(codes, self._states[0])
        if self._guidance.two_step:
            return self._guidance.combine(*(self._last(codes, state) for state in self._states))
        logits = self._last(mx.concatenate([codes] * self._branches), self._states[0])
        return self._guidance.combine(*mx.split(logits, self._branches))

    def _last(self, codes: mx.array, state: DecoderState) -> mx.array:
        return self._lm(codes, state)[:, :, -1].astype(mx.float32)
