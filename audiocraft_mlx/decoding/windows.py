"""Beyond the model's trained length: windows that overlap.

audiocraft's `BaseGenModel._generate_tokens` (`models/genmodel.py`), but in whole frames throughout, so
that every length works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.decoding.frames import OnStep, decode_frames
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams, row_keys
from audiocraft_mlx.decoding.sections import SectionConditions
from audiocraft_mlx.decoding.step import LMDecoder, LMStep
from audiocraft_mlx.networks.condition_tensors import ConditionTensors


@dataclass(frozen=True)
class Window:
    """`frames` frames from frame `start` on, of which the first `context_frames` are known."""

    index: int
    start: int
    frames: int
    context_frames: int


def plan_windows(
    frames: int, longest: int, stride: int, prompt: int = 0, borders: Sequence[int] = ()
) -> list[Window]:
    """The windows that make `frames` frames, `prompt` of them given: each starts `stride` after the last.

    A prompt that leaves no room in a window is treated as if windows before had made it. At each of
    `borders`, in order, a window ends, and the next one has as much context as it can, up to that of others.
    """
    start = 0
    while prompt - start >= longest:
        start += stride
    ends = [*(border for border in borders if prompt < border < frames), frames]
    known, windows = prompt, list[Window]()
    while known < frames:
        if windows:
            start = max(start, known - (longest - stride))
        end = min(start + longest, next(border for border in ends if border > known))
        windows.append(Window(len(windows), start, end - start, known - start))
        known = end
    return windows


def first_frame(seconds: float, frame_rate: float) -> int:
    """The frame that second `seconds` is in: a part that begins there begins with it."""
    return math.floor(seconds * frame_rate + 1e-6)


def end_frame(seconds: float, frame_rate: float) -> int:
    """The frame before which a part ends that ends at second `seconds`."""
    return math.ceil(seconds * frame_rate - 1e-6)


def infill_region(
    frames: int, holes: Sequence[tuple[int, int]], longest: int, stride: int
) -> tuple[int, int]:
    """Where the part of a clip of `frames` frames begins and ends that is seen when `holes` in it are filled.

    `holes` are the frames from the first to before the second of each. One window of `longest` frames with
    the holes in its middle; or if that leaves less around them than half the context of windows that overlap,
    the holes and such a context on either side, for several windows.
    """
    first, last = min(start for start, _ in holes), max(end for _, end in holes)
    if frames <= longest:
        return 0, frames
    context = longest - stride
    if last - first <= longest - max(2, context // 2):
        start = min(max(0, (first + last - longest) // 2), frames - longest)
        return start, start + longest
    return max(0, first - context), min(frames, last + context)


def decode_windows(
    decoder: LMDecoder,
    conditions: Callable[[Window], ConditionTensors | SectionConditions],
    windows: Sequence[Window],
    sampling: Sequence[SamplingParams],
    guidance: Sequence[GuidanceParams],
    seeds: Sequence[int],
    prompt: mx.array | None = None,
    on_step: OnStep | None = None,
    chunk_frames: Iterator[int] | None = None,
) -> Iterator[mx.array | LMStep]:
    """Yield the codes that follow the prompt, in chunks int32 `[B, K, n]`, also at a window's end.

    `sampling`, `guidance` and `seeds` have one value for each row, `conditions` makes those of a window, and
    `on_step(done, total)` counts the steps of all windows. See `decode_frames` for the rest.
    """
    patterns = [DelayPattern(decoder.lm.config.delays, window.frames) for window in windows]
    steps = [p.steps - p.first_step(w.context_frames) for p, w in zip(patterns, windows, strict=True)]
    context = None if prompt is None else prompt[:, :, windows[0].start :]
    greedy = all(row.greedy for row in sampling)
    for window, pattern in zip(windows, patterns, strict=True):
        generated: list[mx.array] = []
        for item in decode_frames(
            decoder,
            conditions(window),
            window.frames,
            sampling,
            guidance,
            keys=None if greedy else row_keys(seeds, pattern.steps, window.index),
            prompt=context,
            on_step=on_step,
            chunk_frames=chunk_frames,
            steps_before=sum(steps[: window.index]),
            total_steps=sum(steps),
        ):
            if not isinstance(item, LMStep):
                generated.append(item)
            yield item
        if window.index + 1 < len(windows):
            known = generated if context is None else [context, *generated]
            needed = windows[window.index + 1].context_frames
            context = mx.concatenate(known, axis=2)[:, :, -needed:]
            mx.eval(context)  # else it keeps the whole array in memory
