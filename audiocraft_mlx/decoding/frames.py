"""The one decoding loop: a generator of code frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat

import mlx.core as mx

from audiocraft_mlx.decoding.guidance import GuidanceParams, GuidedDecoder
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams, gumbel_noise, sample_codes
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM

NOISE_CHUNK = 16
"""Steps whose random noise is made at once; one by one it costs more than the draws."""


def generate_frames(
    lm: LM,
    conditions: ConditionTensors,
    frames: int,
    sampling: SamplingParams,
    guidance: GuidanceParams,
    keys: mx.array | None = None,
    prompt: mx.array | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[mx.array]:
    """Yield `frames` frames of codes, each int32 `[B, K]`, the prompt's first.

    `prompt` int `[B, K, F]` with F < `frames` is what the sequence begins with. `keys` uint32
    `[B, steps, 2]` are each row's random keys for the pattern's steps (`sampling.row_keys`); greedy decoding
    needs none.
    `on_step(done, total)` is called after each step of the transformer. Equal to audiocraft's
    `LMModel.generate`.
    """
    pattern = DelayPattern(lm.config.delays, frames)
    special = lm.special_token_id
    if prompt is None:
        prompt = mx.zeros((conditions.batch, len(pattern.delays), 0), mx.int32)
    known_frames = prompt.shape[2]
    for frame in range(known_frames):
        yield prompt[:, :, frame]

    sequence = pattern.build_sequence(prompt, special)
    known = mx.array(pattern.mask(known_frames))
    mask = mx.array(pattern.mask(frames))
    predict = GuidedDecoder(lm, conditions, pattern.steps - 1, guidance)
    start = pattern.first_step(known_frames)
    total = pattern.steps - start
    inputs = sequence[:, :, :start]
    recent: deque[mx.array] = deque(maxlen=pattern.max_delay + 1)
    noises = repeat(None) if keys is None else _noise_per_step(lm, keys[:, start:])
    for step, noise in zip(range(start, pattern.steps), noises, strict=False):
        codes = sample_codes(predict(inputs), sampling, noise)
        codes = mx.where(mask[:, step], codes, special)
        codes = mx.where(known[:, step], sequence[:, :, step], codes)
        mx.async_eval(codes)
        if recent:
            # One step ahead of the device and no further.
            mx.eval(recent[-1])
            if on_step is not None:
                on_step(step - start, total)
        recent.append(codes)
        inputs = codes[:, :, None]
        if len(recent) == recent.maxlen:
            yield mx.stack([recent[delay][:, k] for k, delay in enumerate(pattern.delays)], axis=1)
    mx.eval(recent[-1])
    if on_step is not None:
        on_step(total, total)


def _noise_per_step(lm: LM, keys: mx.array) -> Iterator[mx.array]:
    """Each step's random noise, made for several steps at once."""
    for start in range(0, keys.shape[1], NOISE_CHUNK):
        noise = gumbel_noise(
            keys[:, start : start + NOISE_CHUNK], lm.config.num_codebooks, lm.config.cardinality
        )
        for step in range(noise.shape[1]):
            yield noise[:, step]
