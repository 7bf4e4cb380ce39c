"""Greedy generation of one row, slowly: each step reads the whole sequence again, without any cache.

An independent reference for texts that change, and for what guidance leads away from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.positions import sinusoidal_embedding

SlowSection = tuple[int, str, int]
"""The first frame, the text, and the frames of its cross-fade."""
Logits = Callable[[mx.array], np.ndarray]
"""From the steps so far `[1, K, S]` to the logits float32 `[K, card]` of the next one."""


def slow_codes(lm: LM, logits: Logits, frames: int, prompt: np.ndarray | None = None) -> tuple[Any, float]:
    """The codes `[K, frames]`, and the smallest distance between the two best of any step."""
    pattern = DelayPattern(lm.config.delays, frames)
    known = 0 if prompt is None else prompt.shape[1]
    codes = np.zeros((len(pattern.delays), frames), np.int32)
    if prompt is not None:
        codes[:, :known] = prompt
    gap = np.inf
    for step in range(pattern.first_step(known), pattern.steps):
        sequence = pattern.build_sequence(mx.array(codes)[None], lm.special_token_id)
        of_step = logits(sequence[:, :, :step])
        for k, delay in enumerate(pattern.delays):
            frame = step - 1 - delay
            if known <= frame < frames:
                best = np.sort(of_step[k])
                gap = min(gap, float(best[-1] - best[-2]))
                codes[k, frame] = of_step[k].argmax()
    return codes, gap


def section_logits(
    model: Any,
    sections: Sequence[SlowSection],
    coef: float,
    negative: str | None = None,
    start: int = 0,
) -> Logits:
    """Of a text model, for the frames from `start` on."""
    lm = model.lm
    text_of = [text for _, text, _ in sections]
    hidden_of = {text: model.text_conditioner.hidden_states([text])[0] for text in [*text_of, negative]}

    def section_of(step: int) -> int:
        # A step predicts the frame of its own number in the first codebook.
        return max(i for i, (first, _, _) in enumerate(sections) if first <= start + step or i == 0)

    def branch(sequence: mx.array, texts: list[str | None]) -> np.ndarray:
        """Of step i under `texts[i]`."""
        used = [*dict.fromkeys(texts)]
        owner = np.repeat(np.arange(len(used)), [hidden_of[text].shape[1] for text in used])
        own = np.array([used.index(text) for text in texts])
        cross = mx.concatenate([hidden_of[text] for text in used], axis=1).astype(lm.dtype)
        state = DecoderState(
            caches=[],
            positions=sinusoidal_embedding(mx.arange(len(texts)), lm.config.dim).astype(lm.dtype),
            cross_kv=[layer.cross_attn.project_kv(cross) for layer in lm.layers],
            cross_mask=mx.array(owner[None, :] == own[:, None])[None, None],
            prefix=None,
            starts=(0,),
            ends=(0,),
        )
        return np.array(lm(sequence, cache=state)[0, :, -1].astype(mx.float32))

    def logits(sequence: mx.array) -> np.ndarray:
        steps = sequence.shape[2]
        now = section_of(steps - 1)
        texts: list[str | None] = [text_of[section_of(step)] for step in range(steps)]
        away_from = None if coef == 1 else branch(sequence, [negative] * steps)

        def guided(of_steps: list[str | None]) -> np.ndarray:
            own = branch(sequence, of_steps)
            return own if away_from is None else away_from + (own - away_from) * coef

        first, _, fade = sections[now]
        into = start + steps - 1 - first
        if now == 0 or into >= fade:
            return guided(texts)
        before = [text_of[min(section_of(step), now - 1)] for step in range(steps)]
        weight = (into + 0.5) / fade
        return (1 - weight) * guided(before) + weight * guided(texts)

    return logits
