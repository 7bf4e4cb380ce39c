"""Loops: how long they are, and how much music is made for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audiocraft_mlx.audio.loop import LEAD_IN_SECONDS, LEAD_OUT_SECONDS, Loop, cut_loop
from audiocraft_mlx.audio.loop_chunks import LoopChunks
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.validation import DEFAULT_BEATS_PER_BAR

if TYPE_CHECKING:
    from audiocraft_mlx.clips.source import AudioInput


@dataclass(frozen=True)
class LoopShape:
    """What a loop is to be. `bpm` and `beats_per_bar` as in `ClipRequest`."""

    seconds: float
    bpm: float | None = None
    beats_per_bar: int | None = None

    @classmethod
    def of(cls, request: ClipRequest) -> LoopShape | None:
        """None if it is no loop."""
        if not request.loop:
            return None
        return cls(request.duration, request.bpm, request.beats_per_bar)

    def cut(self, audio: np.ndarray, rate: int) -> Loop:
        """The loop in music that was made for it, float32 `[channels, samples]`."""
        return cut_loop(audio, rate, self.samples(rate))

    def samples(self, rate: int) -> int:
        return round(self.seconds * rate)

    def chunks(self, loop: Loop, rate: int) -> LoopChunks:
        """For the file of `loop`, whose tempo is what was asked for, or else what was found."""
        samples = loop.audio.shape[1]
        beats = self.seconds / 60 * self.bpm if self.bpm is not None else loop.beats
        whole = None if beats is None or abs(beats - round(beats)) > 1e-3 else round(beats)
        return LoopChunks(samples, rate, whole or None, self.beats_per_bar or DEFAULT_BEATS_PER_BAR)


def made_seconds(request: ClipRequest) -> float:
    """How much music is made for a clip: of a loop more than its duration, to choose from."""
    return request.duration + (LEAD_IN_SECONDS + LEAD_OUT_SECONDS if request.loop else 0.0)


def around_loop(audio: AudioInput, seconds: float) -> np.ndarray:
    """A melody `[channels, samples]` for music that is made for a loop: it comes around before and after."""
    samples = min(round(seconds * audio.rate), audio.audio.shape[1])
    places = np.arange(round((LEAD_IN_SECONDS + seconds + LEAD_OUT_SECONDS) * audio.rate))
    return audio.audio[:, (places - round(LEAD_IN_SECONDS * audio.rate)) % samples]
