"""Classifier-free guidance: away from the logits without a condition.

Copet et al. 2023, section 2.3; in two parts Rouard et al. 2024, "Audio Conditioning for Music Generation via
Discrete Bottleneck Features", section 4.3; and audiocraft's `LMModel._sample_next_token`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.decoding.sections import SectionConditions, SectionedSteps
from audiocraft_mlx.decoding.step import LMDecoder, LMStep, last_logits
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.validation import CFG_COEF, use_python_numbers


@dataclass(frozen=True)
class GuidanceParams:
    """Guidance of one row. `coef` 1 is no guidance.

    `beta` is how much more the text counts than the audio that is given with it; None: as much. `two_step`
    runs the branches one after the other, not in one batch.
    """

    coef: float = 3.0
    two_step: bool = False
    beta: float | None = None

    def __post_init__(self) -> None:
        CFG_COEF.validate("cfg_coef", self.coef)
        if self.beta is not None:
            CFG_COEF.validate("cfg_coef_beta", self.beta)
            if self.two_step:
                raise UsageError("cfg_coef_beta can't be used with two_step_cfg; choose one of them")
        use_python_numbers(self, "coef", "beta")

    @property
    def branches(self) -> tuple[str, ...]:
        """What the model computes for a row, and how: rows with the same branches can share a batch."""
        if self.beta is not None:
            return ("conditional", "unconditional", "audio only")
        if self.coef == 1:
            return ("conditional",)
        if self.two_step:
            return ("conditional", "unconditional", "one after the other")
        return ("conditional", "unconditional")


class GuidedDecoder:
    """The guided logits of sequences that grow: the branches of the model with their caches."""

    def __init__(
        self,
        decoder: LMDecoder,
        conditions: ConditionTensors | SectionConditions,
        steps: int,
        guidance: GuidanceParams | Sequence[GuidanceParams],
    ) -> None:
        """`guidance` is that of all rows, or one for each, with the same branches."""
        sections = conditions if isinstance(conditions, SectionConditions) else None
        if isinstance(conditions, SectionConditions):
            conditions = conditions.at_beginning()
        rows = [guidance] if isinstance(guidance, GuidanceParams) else list(guidance)
        first = rows[0]
        if any(row.branches != first.branches for row in rows):
            raise ValueError("the guidance of these rows has different branches; they can't share a batch")
        self._coef = _per_row([row.coef for row in rows])
        self._beta = None if first.beta is None else _per_row([row.beta or 0.0 for row in rows])
        branches = [conditions]
        if conditions.unconditional is not None and (first.coef != 1 or first.beta is not None):
            branches.append(conditions.unconditional)
            if first.beta is not None and conditions.audio_only is not None:
                branches.append(conditions.audio_only)
        self._branches = len(branches)
        self._two_step = first.two_step
        if self._branches > 1 and not self._two_step:
            batch = branches[0]
            for branch in branches[1:]:
                batch = batch.concat_batch(branch)
            branches = [batch]
        self._steps = [decoder.start(branch, steps) for branch in branches]
        self._sections = None
        if sections is not None:
            self._sections = SectionedSteps(decoder.lm, sections, self._steps[0])

    def __call__(self, codes: mx.array) -> Generator[LMStep, None, mx.array]:
        """Logits float32 `[B, K, card]` of the step after the next steps `codes` `[B, K, S]`."""
        if self._sections is not None:
            logits = yield from self._sections(codes, [(steps, codes) for steps in self._steps[1:]])
        else:
            copies = 1 if self._two_step else self._branches
            batch = codes if copies == 1 else mx.concatenate([codes] * copies)
            step = LMStep(*((steps, batch) for steps in self._steps))
            yield step
            logits = [last_logits(of_part) for of_part in step.logits]
        branches = [branch for part in logits for branch in mx.split(part, len(part) // len(codes))]
        return branches[0] if len(branches) == 1 else self._guide(*branches)

    def close(self) -> None:
        """No step will be taken any more."""
        for steps in self._steps:
            steps.close()

    def _guide(self, *branches: mx.array) -> mx.array:
        guide = _compiled_guidance if on_gpu() else apply_guidance
        guided: mx.array = guide(self._coef, self._beta, *branches)
        return guided


def apply_guidance(
    coef: float | mx.array,
    beta: float | mx.array | None,
    conditional: mx.array,
    unconditional: mx.array,
    audio_only: mx.array | None = None,
) -> mx.array:
    """Guided logits of the branches' logits `[B, K, card]`; `coef` and `beta` are numbers or `[B, 1, 1]`."""
    if audio_only is not None and beta is not None:
        conditional = audio_only + (conditional - audio_only) * beta
    return unconditional + (conditional - unconditional) * coef


# One kernel on a GPU instead of three or six.
_compiled_guidance = mx.compile(apply_guidance, shapeless=True)


def _per_row(values: Sequence[float]) -> float | mx.array:
    """One number if all are equal, else one for each row, `[B, 1, 1]`."""
    return float(values[0]) if len(set(values)) == 1 else mx.array(list(values), mx.float32)[:, None, None]
