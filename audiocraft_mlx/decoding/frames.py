"""The one decoding loop: a generator of code frames, and of the steps that it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import repeat
from typing import Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.guidance import GuidanceParams, GuidedDecoder
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams, gumbel_noise, sample_codes
from audiocraft_mlx.decoding.sections import SectionConditions
from audiocraft_mlx.decoding.step import LMDecoder, LMStep, alone
from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM

NOISE_CHUNK = 16
"""Steps whose random noise is made at once; one by one it costs more than the draws."""

PREFILL_STEPS = 128
"""Steps of a prompt that are read at once, so that others don't wait for all of a long one."""

_LARGE_COEF = 1000.0
"""Guidance beyond this is named as a possible cause of an overflow."""

OnStep = Callable[[int, int], None]
"""`(steps done, steps in all)`"""


def decode_frames(
    decoder: LMDecoder,
    conditions: ConditionTensors | SectionConditions,
    frames: int,
    sampling: SamplingParams | Sequence[SamplingParams],
    guidance: GuidanceParams | Sequence[GuidanceParams],
    keys: mx.array | None = None,
    prompt: mx.array | None = None,
    on_step: OnStep | None = None,
    chunk_frames: Iterator[int] | None = None,
    steps_before: int = 0,
    total_steps: int | None = None,
) -> Iterator[mx.array | LMStep]:
    """Yield the codes of a sequence of `frames` frames that follow its prompt, int32 `[B, K, n]` each.

    Between them it yields each step of the transformer that it needs, and wants it taken when it is advanced
    again: `alone` and `ContinuousBatch` do that. All that it goes on with is evaluated at each yield of
    codes, and a step takes the calling thread's default stream: MLX's streams belong to threads, and the
    generator can be advanced by any.

    Args:
        conditions: one row for each sequence.
        sampling, guidance: of all rows, or one for each.
        keys: each row's random keys for the pattern's steps, uint32 `[B, steps, 2]` (`sampling.row_keys`);
            greedy decoding needs none.
        prompt: codes int `[B, K, F]` that the sequences begin with, F < `frames`.
        on_step: called after each step of the transformer with the steps done and the steps in all.
        chunk_frames: how many frames each chunk has, without an end (`itertools.repeat(1)` if None); the last
            chunk has what is left.
        steps_before, total_steps: how the steps are counted, where this sequence is a part of more.

    Equal to audiocraft's `LMModel.generate`.

    Raises:
        MusicGenError: the logits are NaN or infinite; before the frames that were drawn from them.
    """
    lm = decoder.lm
    pattern = DelayPattern(lm.config.delays, frames)
    special = lm.special_token_id
    if prompt is None:
        prompt = mx.zeros((conditions.batch, len(pattern.delays), 0), mx.int32)
    prompt_frames = prompt.shape[2]
    sequence = pattern.build_sequence(prompt, special)
    known = mx.array(pattern.mask(prompt_frames))
    mask = mx.array(pattern.mask(frames))
    with closing(GuidedDecoder(decoder, conditions, pattern.steps - 1, guidance)) as guided:
        start = pattern.first_step(prompt_frames)
        total = total_steps or pattern.steps - start
        read = (start - 1) // PREFILL_STEPS * PREFILL_STEPS
        for begin in range(0, read, PREFILL_STEPS):
            logits = yield from guided(sequence[:, :, begin : begin + PREFILL_STEPS])
            mx.eval(logits)
        inputs, previous = sequence[:, :, read:start], sequence
        # The steps that hold codes of frames which were not yielded yet: from the first one's on.
        pending: list[mx.array] = []
        # The sum of each step's logits, `[B]`, NaN or infinite as soon as one of them is. They are computed
        # with the codes and looked at with the frames: to look at each step would wait for the device.
        sums: list[mx.array] = []
        sizes = repeat(1) if chunk_frames is None else chunk_frames
        next_chunk = next(sizes)
        left = frames - prompt_frames
        noises = repeat(None) if keys is None else _noise_per_step(lm, keys[:, start:])
        for step, noise in zip(range(start, pattern.steps), noises, strict=False):
            logits = yield from guided(inputs)
            sums.append(logits.sum(axis=(1, 2)))
            codes = sample_codes(logits, sampling, noise)
            codes = mx.where(mask[:, step], codes, special)
            codes = mx.where(known[:, step], sequence[:, :, step], codes)
            mx.async_eval(codes, sums[-1])
            if step > start:
                # One step ahead of the device and no further.
                mx.eval(previous)
                if on_step is not None:
                    on_step(steps_before + step - start, total)
            previous, inputs = codes, codes[:, :, None]
            pending.append(inputs)
            size = min(next_chunk, left)
            if len(pending) == size + pattern.max_delay - min(pattern.delays):
                chunk = _frames_of_steps(pattern, pending, size)
                mx.eval(chunk, sums)
                first_bad = _first_non_finite(sums)
                if first_bad is not None:
                    done = steps_before + step - start + 1
                    rows = [guidance] if isinstance(guidance, GuidanceParams) else guidance
                    coefs = [coef for row in rows for coef in (row.coef, row.beta or 0)]
                    raise non_finite_error(lm, coefs, done - len(sums) + first_bad + 1, total)
                yield chunk
                del pending[:size]
                sums.clear()
                left -= size
                if left:
                    next_chunk = next(sizes)
        mx.eval(previous)
        if on_step is not None:
            on_step(steps_before + pattern.steps - start, total)


def generate_frames(*args: Any, **options: Any) -> Iterator[mx.array]:
    """`decode_frames` alone: codes int32 `[B, K, n]`."""
    return alone(decode_frames(*args, **options))


def _frames_of_steps(pattern: DelayPattern, steps: list[mx.array], size: int) -> mx.array:
    """The first `size` frames, `[B, K, size]`, of the codes of consecutive steps, `[B, K, 1]` each."""
    codes = mx.concatenate(steps, axis=2)
    first = min(pattern.delays)
    rows = [codes[:, k, delay - first : delay - first + size] for k, delay in enumerate(pattern.delays)]
    return mx.stack(rows, axis=1)


def _first_non_finite(sums: Sequence[mx.array]) -> int | None:
    """The first of `sums` `[B]` that isn't finite in some row."""
    bad = ~np.isfinite(np.stack([np.array(step) for step in sums])).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def non_finite_error(lm: LM, coefs: Sequence[float], step: int, total: int) -> MusicGenError:
    """For logits that are NaN or infinite; `coefs` are the coefficients of the guidance."""
    advice = ["its weights are damaged, or its training diverged; use another checkpoint"]
    if lm.dtype == mx.float16:
        advice.append("or half precision overflows: convert it with musicgen-mlx-convert --dtype float32")
    if any(abs(coef) > _LARGE_COEF for coef in coefs):
        advice.append("or the guidance coefficient is too large: try 3")
    return MusicGenError(
        f"the model's logits are NaN or infinite at step {step} of {total}: {', '.join(advice)}"
    )


def _noise_per_step(lm: LM, keys: mx.array) -> Iterator[mx.array]:
    """Each step's random noise `[B, K, card]`, made for several steps at once."""
    for start in range(0, keys.shape[1], NOISE_CHUNK):
        noise = gumbel_noise(
            keys[:, start : start + NOISE_CHUNK], lm.config.num_codebooks, lm.config.cardinality
        )
        for step in range(noise.shape[1]):
            yield noise[:, step]
