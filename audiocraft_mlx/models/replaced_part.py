"""A part of a clip that is made anew by a model that goes on step by step.

Such a model sees what is before the part, not what follows it. So it makes several takes, and those are kept
after which it finds what really follows most likely. Of several that are alike in that the one is taken whose
join is heard least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.part import flux_of_end
from audiocraft_mlx.decoding.likelihood import following_loss
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.encodec import Encodec, InterleavedStereoCodec
from audiocraft_mlx.networks.lm import LM

DEFAULT_CANDIDATES = 8
MARGIN_SECONDS = 0.14
"""What is made beyond both ends of the part, for cross-fades with what is there."""
FOLLOWING_SECONDS = 2.0
"""What follows the part, as far as it counts for the choice."""
ALIKE = 0.02
"""Nats per code: takes whose losses differ by less are alike, and their joins decide."""
AROUND_SECONDS = 1.5
"""Of the clip before and after the part's end, to compare joins with."""
# Odd, so that no two takes of a clip have a seed, and far from that of the next clip, which is one more.
_SEED_STRIDE = 0x9E3779B1


@dataclass(frozen=True)
class PartFrames:
    """In frames of the clip: `context` to `start` is seen, `start` to `end` is made anew, `following` is what
    of it counts that is before `following_end`."""

    context: int
    start: int
    end: int
    following_end: int


@dataclass(frozen=True, eq=False)
class Around:
    """A clip's audio around the end of a part, float32 `[C, n]`: sample `end` of it.

    It begins `frames_before` frames before the end's, as far as the clip and the model's window go.
    """

    audio: np.ndarray
    end: int
    frames_before: int


@dataclass(frozen=True)
class ReplacedPart:
    """What follows the prompt of each row and is made anew.

    Attributes:
        frames: of the part.
        following: what follows it, codes int32 `[B, K, F]`; F 0: nothing.
        around: what is around the part's end, of each row.
        candidates: takes that one is chosen of.
        new_start: the frame of the clip that what is made audio of begins with.
        margin: frames that are made beyond the part.
    """

    frames: int
    following: mx.array
    around: tuple[Around, ...]
    candidates: int
    new_start: int
    margin: int

    @property
    def made_frames(self) -> int:
        return self.frames + self.margin


def frames_of_part(
    frames: int, part: tuple[int, int], longest: int, stride: int, frame_rate: float
) -> PartFrames:
    """For a part of a clip of `frames` whole frames, with a model of windows of `longest` frames.

    All of it in one window, with as much context as that has room for; or if it has room for less than the
    context of windows that overlap, so much.
    """
    start, end = part
    counts = min(round(FOLLOWING_SECONDS * frame_rate), longest // 2)
    following_end = max(end, min(frames, end + counts))
    made = margin_frames(frame_rate) + end - start
    context = max(longest - max(following_end - start, made), longest - stride)
    return PartFrames(max(0, start - context), start, end, following_end)


def margin_frames(frame_rate: float) -> int:
    return max(1, round(MARGIN_SECONDS * frame_rate))


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Of the takes of a part: the first one has the clip's."""
    return [(seed + index * _SEED_STRIDE) % 2**32 for index in range(count)]


def losses_of_takes(
    lm: LM,
    conditions: ConditionTensors,
    context: mx.array | None,
    takes: mx.array,
    following: mx.array,
    longest: int,
) -> np.ndarray:
    """How unlikely the model finds `following` after each of `takes`: float32 `[N]`, in nats.

    Args:
        conditions: of one row; what follows is nothing that the text of the part speaks of.
        context, following: codes int `[1, K, n]`.
        takes: codes int `[N, K, n]`, of the part and not more.
        longest: frames that the model can see; what is further back doesn't count.
    """
    before = [] if context is None else [mx.repeat(context, len(takes), axis=0)]
    codes = mx.concatenate([*before, takes, mx.repeat(following, len(takes), axis=0)], axis=2)
    codes = codes[:, :, -longest:]
    rows = [
        following_loss(lm, conditions, codes[row : row + 1], codes.shape[2] - following.shape[2])
        for row in range(len(takes))
    ]
    return np.concatenate(rows)


def choose_take(losses: np.ndarray, fluxes: Callable[[list[int]], Sequence[float]]) -> int:
    """The take with the lowest of `losses`; of several that are alike the one with the lowest flux.

    `fluxes` are those of the joins of the takes that it is given.
    """
    alike = np.flatnonzero(losses <= losses.min() + ALIKE).tolist()
    return alike[int(np.argmin(fluxes(alike)))] if len(alike) > 1 else int(alike[0])


def join_fluxes(
    codec: Encodec | InterleavedStereoCodec,
    context: mx.array | None,
    takes: mx.array,
    around: Around,
    margin: int,
) -> list[float]:
    """How much each take's join with what follows is heard: the spectral flux of its cross-fade.

    Args:
        context: codes int `[1, K, n]`, or None.
        takes: codes int `[N, K, n]` up to `margin` frames after the part's end.
    """
    fluxes = []
    for index in range(len(takes)):
        codes = takes[index : index + 1]
        if context is not None:
            codes = mx.concatenate([context, codes], axis=2)
        audio = np.array(codec.decode(codes[:, :, -(around.frames_before + margin) :]))[0]
        audio = audio[:, : around.audio.shape[1]]
        fluxes.append(flux_of_end(audio, around.audio, around.end, codec.sample_rate))
    return fluxes
