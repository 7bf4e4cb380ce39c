"""From logits to the next codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.validation import TEMPERATURE, TOP_K, TOP_P, use_python_numbers

MIN_TEMPERATURE = 1e-30
"""Below it the most likely code is certain; logits divided by less overflow, and then all codes are equal."""


@dataclass(frozen=True)
class SamplingParams:
    """How the codes of a row are drawn. Raises `UsageError` for values out of range.

    `use_sampling=False` or a temperature below `MIN_TEMPERATURE` takes the most likely code. `top_p` > 0
    keeps the most likely codes up to that probability, and `top_k` is then not used; otherwise `top_k` > 0
    keeps the `top_k` most likely codes, and all that tie with the last of them.
    """

    use_sampling: bool = True
    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.use_sampling not in (True, False):
            raise UsageError(f"use_sampling must be True or False, not {self.use_sampling!r}")
        TOP_K.validate("top_k", self.top_k)
        TOP_P.validate("top_p", self.top_p)
        TEMPERATURE.validate("temperature", self.temperature)
        use_python_numbers(self, "top_k", "top_p", "temperature")

    @property
    def greedy(self) -> bool:
        return not self.use_sampling or self.temperature < MIN_TEMPERATURE


def filter_logits(logits: mx.array, sampling: SamplingParams) -> mx.array:
    """`logits` float32 `[..., card]` divided by the temperature, -inf for codes that are not to be drawn.

    In audiocraft's order: temperature, softmax, then top-p or else top-k (`LMModel._sample_next_token`,
    `utils.sample_top_k`, `utils.sample_top_p`).
    """
    logits = logits.astype(mx.float32)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    card = logits.shape[-1]
    if sampling.top_p > 0:
        order = mx.argsort(-logits, axis=-1)
        ranked = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        # The code that crosses top_p is kept: what counts is the probability of those before it.
        before = mx.put_along_axis(mx.zeros_like(ranked), order, mx.cumsum(ranked, axis=-1) - ranked, axis=-1)
        return mx.where(before > sampling.top_p, -mx.inf, logits)
    if 0 < sampling.top_k < card:
        smallest = mx.partition(logits, card - sampling.top_k, axis=-1)[..., card - sampling.top_k, None]
        return (_compiled_keep if on_gpu() else _keep)(logits, smallest)
    return logits


def _keep(logits: mx.array, smallest: mx.array) -> mx.array:
    return mx.where(logits >= smallest, logits, -mx.inf)


# One kernel on a GPU instead of two.
_compiled_keep = mx.compile(_keep, shapeless=True)


def sampling_distribution(logits: mx.array, sampling: SamplingParams) -> mx.array:
    """The distribution float32 `[..., card]` that codes are drawn from, for `logits` `[..., card]`."""
    return mx.softmax(filter_logits(logits, sampling), axis=-1)


def sample_codes(
    logits: mx.array, sampling: SamplingParams | Sequence[SamplingParams], noise: mx.array | None
) -> mx.array:
    """One code for each of `logits` `[B, K, card]`: int32 `[B, K]`.

    `sampling` is that of all rows, or one for each. `noise` float32 `[B, K, card]` decides the draw
    (`gumbel_noise`); greedy decoding needs none.
    """
    if not isinstance(sampling, SamplingParams):
        if len(set(sampling)) > 1:
            rows = [
                sample_codes(logits[row : row + 1], own, None if noise is None else noise[row : row + 1])
                for row, own in enumerate(sampling)
            ]
            return mx.concatenate(rows)
        sampling = sampling[0]
    if sampling.greedy or noise is None:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    # The Gumbel-max trick: argmax(log p + noise) is a draw from p.
    return mx.argmax(filter_logits(logits, sampling) + noise, axis=-1).astype(mx.int32)


def gumbel_noise(keys: mx.array, codebooks: int, cardinality: int) -> mx.array:
    """Noise float32 `[B, S, K, card]` of random keys uint32 `[B, S, 2]`, each draw of its own key alone."""

    def of_key(key: mx.array) -> mx.array:
        return mx.random.gumbel((codebooks, cardinality), key=key)

    return mx.vmap(mx.vmap(of_key))(keys)


def row_keys(seeds: Sequence[int], steps: int, window: int = 0) -> mx.array:
    """Random keys uint32 `[rows, steps, 2]` of each row's seed alone.

    So the same music comes from that seed, whatever else is in the batch, and a longer run begins like
    a shorter one. `window` distinguishes the windows of a long generation.
    """
    words = [
        np.random.SeedSequence(seed % 2**32, spawn_key=(window,)).generate_state(2 * steps) for seed in seeds
    ]
    return mx.array(np.stack(words).reshape(len(words), steps, 2))
