"""The part of a loop around its join that a model makes anew that fills masks: it has both sides in view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.loop import Loop
from audiocraft_mlx.models.replaced_part import candidate_seeds

# The part is so many beats long, and so many seconds where there is no beat.
_BEATS, _SECONDS = 2, 1.0
# It begins and ends so much before a beat: the cross-fades at its edges are before the attacks.
_BEFORE_BEAT = 0.1
# Not more of what is in view: a quarter of that on either side stays.
_MOST = 0.5


@dataclass(frozen=True)
class JoinHole:
    """A part of a loop that is filled, and what is seen of the loop around it.

    Attributes:
        start: its first sample; it may go around the loop's end.
        frames: how long it is, in frames of codes.
        before, seen: frames that are seen before it, and in all.
        hop: samples per frame.
    """

    start: int
    frames: int
    before: int
    seen: int
    hop: int

    def view(self, audio: np.ndarray) -> np.ndarray:
        """What is seen of the loop `audio`, `[channels, samples]`: it goes around its end."""
        places = self.start - self.before * self.hop + np.arange(self.seen * self.hop)
        return audio[:, places % audio.shape[1]]


def seen_frames(samples: int, hop: int, longest: int, unit: int) -> int:
    """How much is seen of a loop of `samples` samples, in frames; 0: it is too short to have a hole.

    Whole spans of `unit` frames: once around the loop, or of the model's window of `longest` frames.
    """
    frames = min(samples // hop, longest) // unit * unit
    return frames if frames >= 4 * unit else 0


def join_hole(loop: Loop, rate: int, hop: int, seen: int, unit: int) -> JoinHole:
    """The hole over the join of `loop`, of which `seen` frames are seen. Other arguments as of `seen_frames`.

    Two beats, from before one to before another, so that both edges are where music changes by itself; a
    second where there is no beat; half of what is seen at most. It begins with a span in either case.
    """
    middle = sum(loop.join) / 2
    start, end = middle - _SECONDS / 2 * rate, middle + _SECONDS / 2 * rate
    if loop.beat is not None:
        period, first = loop.beat.period * rate, (loop.beat.first - _BEFORE_BEAT) * rate
        nearest = first + round((middle - first) / period) * period
        start, end = nearest - _BEATS / 2 * period, nearest + _BEATS / 2 * period
    most = int(_MOST * seen) * hop
    if end - start > most:
        start, end = middle - most / 2, middle + most / 2
    frames = max(unit, int((end - start) / hop + 1e-6))
    before = (seen - frames) // 2 // unit * unit
    return JoinHole(round(start), frames, before, seen, hop)


def closing_seed(seed: int) -> int:
    """Of the hole: its codes are drawn independently of the music's, and of those of other clips."""
    return candidate_seeds(seed, 2)[1]
