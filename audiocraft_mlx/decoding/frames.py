"""The one decoding loop: a generator of code frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import mlx.core as mx

from audiocraft_mlx.decoding.guidance import GuidanceParams, GuidedDecoder
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams, gumbel_noise, sample_codes
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM

NOISE_CHUNK = 16
"""Steps whose random noise is made at once; one by one it costs more than the draws."""

OnStep = Callable[[int, int], None]
"""`(steps done, steps in all)`"""


def generate_frames(
    decoder: LMDecoder,
    conditions: ConditionTensors,
    frames: int,
    sampling: SamplingParams | Sequence[SamplingParams],
    guidance: GuidanceParams | Sequence[GuidanceParams],
    keys: mx.array | None = None,
    prompt: mx.array | None = None,
    on_step: OnStep | None = None,
    chunk_frames: int = 1,
    first_chunk: int | None = None,
) -> Iterator[mx.array]:
    """Yield the codes of a sequence of `frames` frames that follow its prompt, int32 `[B, K, n]` each.

    Args:
        conditions: one row for each sequence.
        sampling, guidance: of all rows, or one for each.
        keys: each row's random keys for the pattern's steps, uint32 `[B, steps, 2]` (`sampling.row_keys`);
            greedy decoding needs none.
        prompt: codes int `[B, K, F]` that the sequences begin with, F < `frames`.
        on_step: called after each step of the transformer.
        chunk_frames: frames of each chunk; the last one has what is left.
        first_chunk: frames of the first chunk, if others.

    Equal to audiocraft's `LMModel.generate`.
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
    guided = GuidedDecoder(decoder, conditions, pattern.steps - 1, guidance)
    start = pattern.first_step(prompt_frames)
    total = pattern.steps - start
    inputs, previous = sequence[:, :, :start], sequence
    # The steps that hold codes of frames which were not yielded yet: from the first one's on.
    pending: list[mx.array] = []
    next_chunk = chunk_frames if first_chunk is None else first_chunk
    left = frames - prompt_frames
    noises = repeat(None) if keys is None else _noise_per_step(lm, keys[:, start:])
    for step, noise in zip(range(start, pattern.steps), noises, strict=False):
        codes = sample_codes(guided(inputs), sampling, noise)
        codes = mx.where(mask[:, step], codes, special)
        codes = mx.where(known[:, step], sequence[:, :, step], codes)
        mx.async_eval(codes)
        if step > start:
            # One step ahead of the device and no further.
            mx.eval(previous)
            if on_step is not None:
                on_step(step - start, total)
        previous, inputs = codes, codes[:, :, None]
        pending.append(inputs)
        size = min(next_chunk, left)
        if len(pending) == size + pattern.max_delay - min(pattern.delays):
            yield _frames_of_steps(pattern, pending, size)
            del pending[:size]
            left -= size
            next_chunk = chunk_frames
    mx.eval(previous)
    if on_step is not None:
        on_step(total, total)


def _frames_of_steps(pattern: DelayPattern, steps: list[mx.array], size: int) -> mx.array:
    """The first `size` frames, `[B, K, size]`, of the codes of consecutive steps, `[B, K, 1]` each."""
    codes = mx.concatenate(steps, axis=2)
    first = min(pattern.delays)
    rows = [codes[:, k, delay - first : delay - first + size] for k, delay in enumerate(pattern.delays)]
    return mx.stack(rows, axis=1)


def _noise_per_step(lm: LM, keys: mx.array) -> Iterator[mx.array]:
    """Each step's random noise `[B, K, card]`, made for several steps at once."""
    for start in range(0, keys.shape[1], NOISE_CHUNK):
        noise = gumbel_noise(
            keys[:, start : start + NOISE_CHUNK], lm.config.num_codebooks, lm.config.cardinality
        )
        for step in range(noise.shape[1]):
            yield noise[:, step]
