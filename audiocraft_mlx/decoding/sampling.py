"""From logits to the next codes."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.arguments import check_number, check_whole


@dataclass(frozen=True)
class Sampling:
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
        check_whole("top_k", self.top_k, "a whole number of at least 0 (0 keeps all codes)", lambda k: k >= 0)
        check_number("top_p", self.top_p, "between 0 and 1", lambda p: 0 <= p <= 1)
        check_number("temperature", self.temperature, "a number of at least 0", lambda t: t >= 0)

    @property
    def greedy(self) -> bool:
        return not self.use_sampling or self.temperature == 0


def probabilities(logits: mx.array, sampling: Sampling) -> mx.array:
    """The distribution float32 `[..., card]` that codes are drawn from, for `logits` `[..., card]`.

    In audiocraft's order: temperature, softmax, then top-p or else top-k (`LMModel._sample_next_token`,
    `utils.sample_top_k`, `utils.sample_top_p`).
    """
    probs = mx.softmax(logits.astype(mx.float32) / sampling.temperature, axis=-1)
    card = probs.shape[-1]
    if sampling.top_p > 0:
        order = mx.argsort(-probs, axis=-1)
        ranked = mx.take_along_axis(probs, order, axis=-1)
        # The code that crosses top_p is kept: what counts is the mass in front of it.
        kept = mx.where(mx.cumsum(ranked, axis=-1) - ranked > sampling.top_p, 0, ranked)
        probs = mx.put_along_axis(mx.zeros_like(probs), order, kept, axis=-1)
    elif 0 < sampling.top_k < card:
        smallest = mx.partition(probs, card - sampling.top_k, axis=-1)[..., card - sampling.top_k, None]
        probs = mx.where(probs >= smallest, probs, 0)
    return probs / probs.sum(axis=-1, keepdims=True)


def next_codes(logits: mx.array, sampling: Sampling, keys: mx.array | None) -> mx.array:
    """One code for each of `logits` `[B, K, card]`: int32 `[B, K]`.

    `keys` uint32 `[B, 2]` has a random key for each row, so that a row's draw depends on its own alone;
    greedy decoding needs none.
    """
    if sampling.greedy:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    # The Gumbel-max trick: argmax(log p + noise) is a draw from p.
    noise = mx.vmap(lambda key: mx.random.gumbel(logits.shape[1:], key=key))(keys)
    return mx.argmax(mx.log(probabilities(logits, sampling)) + noise, axis=-1).astype(mx.int32)


def step_keys(seed: int, rows: int, steps: int, window: int = 0) -> mx.array:
    """Random keys uint32 `[rows, steps, 2]`: row r has those of the seed `seed + r`.

    So the same music comes from that seed alone, whatever its neighbours, and a longer run begins like
    a shorter one. `window` tells the windows of a long generation apart.
    """
    words = [
        np.random.SeedSequence((seed + row) % 2**32, spawn_key=(window,)).generate_state(2 * steps)
        for row in range(rows)
    ]
    return mx.array(np.stack(words).reshape(rows, steps, 2))
