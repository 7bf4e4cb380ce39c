"""Beyond the model's trained length: windows that overlap.

audiocraft's `BaseGenModel._generate_tokens` (`models/genmodel.py`), but in whole frames throughout, so
that every length works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams, row_keys
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM


@dataclass(frozen=True)
class Window:
    """`frames` frames from frame `start` on; the first `context_frames` are made already, or given."""

    index: int
    start: int
    frames: int
    context_frames: int


def plan_windows(frames: int, longest: int, stride: int, prompt: int = 0) -> list[Window]:
    """The windows that make `frames` frames, `prompt` of them given: each starts `stride` after the last.

    A prompt that leaves no room in a window is treated as if windows before had made it.
    """
    start = 0
    while prompt - start >= longest:
        start += stride
    windows = [Window(0, start, min(frames - start, longest), prompt - start)]
    while (last := windows[-1]).start + last.frames < frames:
        start = last.start + stride
        windows.append(Window(last.index + 1, start, min(frames - start, longest), last.frames - stride))
    return windows


def generate_windows(
    lm: LM,
    conditions: Callable[[Window], ConditionTensors],
    windows: list[Window],
    sampling: SamplingParams,
    guidance: GuidanceParams,
    seed: int,
    prompt: mx.array | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[mx.array]:
    """Yield the frames of all windows, each int32 `[B, K]`, those of the prompt int `[B, K, F]` first.

    What came before a window isn't kept. `on_step(done, total)` counts the steps of all windows. See
    `frames.generate_frames`.
    """
    patterns = [DelayPattern(lm.config.delays, window.frames) for window in windows]
    to_do = [p.steps - p.first_step(w.context_frames) for p, w in zip(patterns, windows, strict=True)]
    context: mx.array | None = None
    if prompt is not None:
        for position in range(windows[0].start):
            yield prompt[:, :, position]
        context = prompt[:, :, windows[0].start :]
    for window, pattern in zip(windows, patterns, strict=True):
        given = conditions(window)
        keys = None if sampling.greedy else row_keys(seed, given.batch, pattern.steps, window.index)
        made: list[mx.array] = []
        for frame in generate_frames(
            lm,
            given,
            window.frames,
            sampling,
            guidance,
            keys=keys,
            prompt=context,
            on_step=None if on_step is None else _offset(on_step, sum(to_do[: window.index]), sum(to_do)),
        ):
            made.append(frame)
            if window.index == 0 or len(made) > window.context_frames:
                yield frame
        if window.index + 1 < len(windows):
            context = mx.stack(made[len(made) - windows[window.index + 1].context_frames :], axis=2)


def _offset(on_step: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: on_step(before + done, total)
