"""Masked decoding: all codes at once, and the least certain ones again, codebook after codebook.

Ziv et al. 2024, "Masked Audio Generation using a Single Non-Autoregressive Transformer" (MAGNeT), section 3;
audiocraft's `MagnetLMModel._generate_magnet`. Here codes may be given anywhere, and what lies between them is
filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.frames import OnStep, non_finite_error
from audiocraft_mlx.decoding.guidance import apply_guidance
from audiocraft_mlx.decoding.sampling import SamplingParams, filter_logits, gumbel_noise, row_keys
from audiocraft_mlx.decoding.spans import make_spans, mask_rates
from audiocraft_mlx.decoding.windows import Window
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.validation import (
    CFG_COEF,
    SPAN_ARRANGEMENTS,
    use_python_numbers,
    validate_choice,
    validate_decoding_steps,
)

_MIN_TEMPERATURE = 0.01


@dataclass(frozen=True)
class MaskedParams:
    """How a row's masks are filled. Raises `UsageError` for values out of range.

    Attributes:
        max_cfg_coef: guidance where all is masked.
        min_cfg_coef: guidance where nothing is; in between by the part that is masked.
        decoding_steps: iterations of each codebook.
        span_arrangement: `nonoverlap`, spans side by side, or `stride1`, spans that begin anywhere.
    """

    max_cfg_coef: float = 10.0
    min_cfg_coef: float = 1.0
    decoding_steps: tuple[int, ...] = (20, 10, 10, 10)
    span_arrangement: str = "nonoverlap"

    def __post_init__(self) -> None:
        CFG_COEF.validate("max_cfg_coef", self.max_cfg_coef)
        CFG_COEF.validate("min_cfg_coef", self.min_cfg_coef)
        use_python_numbers(self, "max_cfg_coef", "min_cfg_coef")
        object.__setattr__(self, "decoding_steps", validate_decoding_steps(self.decoding_steps))
        validate_choice("span_arrangement", self.span_arrangement, SPAN_ARRANGEMENTS)

    @property
    def guided(self) -> bool:
        """Whether the unconditional logits count."""
        return (self.max_cfg_coef, self.min_cfg_coef) != (1.0, 1.0)

    def require_codebooks(self, codebooks: int) -> None:
        """Raise `UsageError` unless there are iterations for each of a model's codebooks."""
        if len(self.decoding_steps) != codebooks:
            given = ",".join(map(str, self.decoding_steps))
            raise UsageError(
                f"decoding_steps must have {codebooks} integers, one for each codebook, not {given}"
            )


def fill_masks(
    lm: LM,
    conditions: ConditionTensors,
    codes: mx.array,
    known: np.ndarray,
    sampling: SamplingParams,
    params: MaskedParams,
    keys: mx.array | None = None,
    on_step: Callable[[int], None] | None = None,
) -> mx.array:
    """Codes int32 `[1, K, T]`: those of `codes`, int `[1, K, T]`, where `known`, bool `[T]`, and new ones.

    Args:
        conditions: of one row. Rows are filled one after the other, so that each is as if it were alone; more
            at a time would hardly be faster, as one has work for the whole machine.
        keys: random keys for the iterations, uint32 `[1, iterations, 2]` (`sampling.row_keys`); greedy
            decoding needs none.
        on_step: called with the iterations done, after each.

    Raises:
        MusicGenError: the logits are NaN or infinite.
    """
    frames, special = codes.shape[2], lm.special_token_id
    given = np.array(codes[0], np.int32)
    sequence = np.where(known, given, special)
    unconditional = conditions.unconditional if params.guided else None
    if unconditional is not None:
        conditions = conditions.concat_batch(unconditional)
    state = lm.make_state(conditions, conditions.batch, frames)
    mx.eval(state.positions, state.cross_kv, state.cross_mask)
    spans = make_spans(params.span_arrangement, known, lm.config.span_len)
    done, total = 0, sum(params.decoding_steps)
    for stage, iterations in enumerate(params.decoding_steps):
        scores = spans.first_scores()
        for index, rate in enumerate(mask_rates(iterations)):
            selected = spans.select(scores, spans.masked_count(rate))
            sequence[stage, selected & ~known] = special
            # Drawn are the codes that are used and those that are scored.
            masked = sequence[stage] == special
            drawn = np.flatnonzero(masked | selected).astype(np.int32)
            inputs = mx.broadcast_to(mx.array(sequence), (state.batch, *sequence.shape))
            logits = lm.predict_masked(inputs, state, stage, mx.array(drawn)).astype(mx.float32)
            if unconditional is not None:
                # As audiocraft's, which computes the coefficient in float64.
                coef = float(rate) * params.max_cfg_coef + (1 - float(rate)) * params.min_cfg_coef
                logits = apply_guidance(coef, None, *mx.split(logits, 2))
            annealed = sampling.temperature * ((iterations - 1 - index) / iterations)
            own = replace(sampling, temperature=max(annealed, _MIN_TEMPERATURE))
            noise = None
            if keys is not None and not sampling.greedy:
                noise = gumbel_noise(keys[:, done : done + 1], frames, lm.config.cardinality)[0, 0]
                noise = noise[mx.array(drawn)]
            new, probability = _draw(logits[0], own, noise)
            is_finite = mx.isfinite(logits.sum())
            mx.eval(new, probability, is_finite)
            done += 1
            if not is_finite.item():
                coefs = (params.max_cfg_coef, params.min_cfg_coef)
                raise non_finite_error(lm, coefs, done, total)
            used = masked[drawn]
            sequence[stage, drawn[used]] = np.array(new)[used]
            probabilities = np.zeros(frames, np.float32)
            probabilities[drawn] = np.array(probability)
            scores = spans.score(selected, masked, probabilities)
            if on_step is not None:
                on_step(done)
    return mx.array(sequence)[None]


def _draw(logits: mx.array, sampling: SamplingParams, noise: mx.array | None) -> tuple[mx.array, mx.array]:
    """A code int32 `[n]` for each of `logits` float32 `[n, card]`, and its probability.

    That of the distribution without top-p, but with top-k, as in audiocraft (which zeroes the probabilities
    of other codes in place).
    """
    scaled = logits / sampling.temperature
    if noise is None:
        codes = mx.argmax(logits, axis=-1)
    else:
        kept = filter_logits(logits, sampling)
        codes = mx.argmax(kept + noise, axis=-1)
        if sampling.top_p == 0:
            scaled = kept
    # float32 differences of log and sum would lose what distinguishes probabilities near 1.
    probabilities = mx.softmax(scaled, axis=-1)
    return codes.astype(mx.int32), mx.take_along_axis(probabilities, codes[:, None], axis=-1)[:, 0]


def generate_masked(
    lm: LM,
    conditions: Sequence[ConditionTensors],
    windows: Sequence[Window],
    codes: mx.array,
    known: np.ndarray,
    sampling: Sequence[SamplingParams],
    params: Sequence[MaskedParams],
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> mx.array:
    """The codes int32 `[B, K, T]` of whole sequences, window after window: each sees what the last one made.

    `codes`, int `[B, K, T]`, are given where `known`, bool `[T]`. The other arguments have one value for each
    row, and `on_step` counts the iterations of all rows and windows.
    """
    iterations = sum(params[0].decoding_steps)
    parts = []
    is_known = known.copy()
    for window in windows:
        part = slice(window.start, window.start + window.frames)
        if not is_known[part].all():
            parts.append((window.index, part, is_known[part].copy()))
        is_known[part] = True
    total, done = len(conditions) * len(parts) * iterations, 0

    def count(in_window: int) -> None:
        if on_step is not None:
            on_step(done + in_window, total)

    rows = []
    for row, condition in enumerate(conditions):
        filled = codes[row : row + 1].astype(mx.int32)
        for index, part, known_part in parts:
            filled[:, :, part] = fill_masks(
                lm,
                condition,
                filled[:, :, part],
                known_part,
                sampling[row],
                params[row],
                None if sampling[row].greedy else row_keys(seeds[row : row + 1], iterations, index),
                count,
            )
            done += iterations
        rows.append(filled)
    result = mx.concatenate(rows)
    mx.eval(result)
    return result
