"""From logits to the next codes."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.validation import validate_int, validate_number


@dataclass(frozen=True)
class SamplingParams:
    """How codes are drawn. Raises `UsageError` for values that make no sense.

    `use_sampling=False` or `temperature=0` takes the most likely code. `top_p` > 0 keeps the most likely
    codes up to that probability, and `top_k` is then not used; otherwise `top_k` > 0 keeps the so many
    most likely codes, with all that tie with the last of them.
    """

    use_sampling: bool = True
    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        validate_int(
            "top_k", self.top_k, "a whole number of at least 0 (0 keeps all codes)", lambda k: k >= 0
        )
        validate_number("top_p", self.top_p, "between 0 and 1", lambda p: 0 <= p <= 1)
        validate_number("temperature", self.temperature, "a number of at least 0", lambda t: t >= 0)

    @property
    def greedy(self) -> bool:
        return not self.use_sampling or self.temperature == 0


def filter_logits(logits: mx.array, sampling: SamplingParams) -> mx.array:
    """`logits` float32 `[..., card]` by the temperature, -inf for codes that are not to be drawn.

    In audiocraft's order: temperature, softmax, then top-p or else top-k (`LMModel._sample_next_token`,
    `utils.sample_top_k`, `utils.sample_top_p`).
    """
    logits = logits.astype(mx.float32) / sampling.temperature
    card = logits.shape[-1]
    if sampling.top_p > 0:
        order = mx.argsort(-logits, axis=-1)
        ranked = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        # The code that crosses top_p is kept: what counts is the mass in front of it.
        in_front = mx.put_along_axis(
            mx.zeros_like(ranked), order, mx.cumsum(ranked, axis=-1) - ranked, axis=-1
        )
        return mx.where(in_front > sampling.top_p, -mx.inf, logits)
    if 0 < sampling.top_k < card:
        smallest = mx.partition(logits, card - sampling.top_k, axis=-1)[..., card - sampling.top_k, None]
        return mx.where(logits >= smallest, logits, -mx.inf)
    return logits


def sampling_distribution(logits: mx.array, sampling: SamplingParams) -> mx.array:
    """The distribution float32 `[..., card]` that codes are drawn from, for `logits` `[..., card]`."""
    return mx.softmax(filter_logits(logits, sampling), axis=-1)


def sample_codes(logits: mx.array, sampling: SamplingParams, noise: mx.array | None) -> mx.array:
    """One code for each of `logits` `[B, K, card]`: int32 `[B, K]`.

    `noise` float32 `[B, K, card]` is what makes the draw (`gumbel_noise`); greedy decoding needs none.
    """
    if sampling.greedy or noise is None:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    # The Gumbel-max trick: argmax(log p + noise) is a draw from p.
    return mx.argmax(filter_logits(logits, sampling) + noise, axis=-1).astype(mx.int32)


def gumbel_noise(keys: mx.array, codebooks: int, cardinality: int) -> mx.array:
    """Noise float32 `[B, S, K, card]` of random keys uint32 `[B, S, 2]`, each draw of its own key alone."""

    def of_key(key: mx.array) -> mx.array:
        return mx.random.gumbel((codebooks, cardinality), key=key)

    return mx.vmap(mx.vmap(of_key))(keys)


def row_keys(seed: int, rows: int, steps: int, window: int = 0) -> mx.array:
    """Random keys uint32 `[rows, steps, 2]`: row r has those of the seed `seed + r`.

    So the same music comes from that seed alone, whatever its neighbours, and a longer run begins like
    a shorter one. `window` tells the windows of a long generation apart.
    """
    words = [
        np.random.SeedSequence((seed + row) % 2**32, spawn_key=(window,)).generate_state(2 * steps)
        for row in range(rows)
    ]
    return mx.array(np.stack(words).reshape(rows, steps, 2))
