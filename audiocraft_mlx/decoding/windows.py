"""Beyond the model's trained length: windows that overlap.

audiocraft's `BaseGenModel._generate_tokens` (`models/genmodel.py`), but in whole frames throughout, so
that every length works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.guidance import Guidance
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import Sampling, step_keys
from audiocraft_mlx.models.conditions import Conditions
from audiocraft_mlx.models.lm import LM


@dataclass(frozen=True)
class Window:
    """`frames` frames of which the first `known` are what the window before has made (or the prompt)."""

    frames: int
    known: int


def plan_windows(frames: int, longest: int, stride: int, prompt: int = 0) -> list[Window]:
    """The windows that make `frames` frames, `prompt` of them given: each starts `stride` after the last."""
    windows = [Window(min(frames, longest), prompt)]
    offset = 0
    while offset + windows[-1].frames < frames:
        known = windows[-1].frames - stride
        offset += stride
        windows.append(Window(min(frames - offset, longest), known))
    return windows


def generate_windows(
    lm: LM,
    conditions: Conditions,
    windows: list[Window],
    sampling: Sampling,
    guidance: Guidance,
    seed: int,
    prompt: mx.array | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[mx.array]:
    """Yield the frames of all windows, each int32 `[B, K]`, the prompt's first.

    `on_step(done, total)` counts the steps of all windows. See `frames.generate_frames`.
    """
    patterns = [DelayPattern(lm.config.delays, window.frames) for window in windows]
    to_do = [p.steps - p.first_step(w.known) for p, w in zip(patterns, windows, strict=True)]
    for index, (window, pattern) in enumerate(zip(windows, patterns, strict=True)):
        made = []
        for frame in generate_frames(
            lm,
            conditions,
            window.frames,
            sampling,
            guidance,
            keys=None if sampling.greedy else step_keys(seed, conditions.batch, pattern.steps, index),
            prompt=prompt,
            on_step=None if on_step is None else _offset(on_step, sum(to_do[:index]), sum(to_do)),
        ):
            made.append(frame)
            if index == 0 or len(made) > window.known:
                yield frame
        if index + 1 < len(windows):
            prompt = mx.stack(made[len(made) - windows[index + 1].known :], axis=2)


def _offset(on_step: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: on_step(before + done, total)
