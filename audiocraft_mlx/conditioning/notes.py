"""Notes over time, as a value: what a melody model follows in place of audio. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_number


@dataclass(frozen=True)
class Sound:
    """Pitches that sound together: MIDI's numbers, 60 is the middle C; from `start` to `end`, in seconds."""

    start: float
    end: float
    pitches: tuple[int, ...]


@dataclass(frozen=True)
class Notes:
    """A melody or chords. Where there is no sound is a rest; after `duration` all begins again.

    Raises:
        UsageError: sounds overlap, are out of order or beyond the end, have no pitch, or there are none.
    """

    sounds: tuple[Sound, ...]
    duration: float
    """Seconds."""

    def __post_init__(self) -> None:
        validate_number(
            "the duration of notes", self.duration, "a number of seconds above 0", lambda s: s > 0
        )
        if not self.sounds:
            raise UsageError("notes must be at least one")
        for sound in self.sounds:
            for time in (sound.start, sound.end):
                validate_number(
                    "the time of a note", time, "a number of seconds, 0 or more", lambda s: s >= 0
                )
            if sound.end <= sound.start or not sound.pitches:
                raise UsageError(f"a sound must have a length and a pitch, not {sound}")
        if any(later.start < sound.end for sound, later in pairwise(self.sounds)):
            raise UsageError("sounds must be in order, and each end before the next one begins")
        if self.sounds[-1].end > self.duration:
            raise UsageError("the last note ends beyond the duration of the notes")


@dataclass(frozen=True)
class TimedNote:
    """One note, which may sound together with others."""

    start: float
    end: float
    pitch: int


def highest(notes: Sequence[TimedNote]) -> tuple[Sound, ...]:
    """The highest note that sounds at each time, of notes in any order."""
    import heapq

    borders = sorted({time for note in notes for time in (note.start, note.end)})
    waiting = sorted(notes, key=lambda note: note.start, reverse=True)
    sounding: list[tuple[int, float]] = []  # the highest first: its pitch below 0, and its end
    found: list[Sound] = []
    for start, end in pairwise(borders):
        while waiting and waiting[-1].start <= start:
            note = waiting.pop()
            heapq.heappush(sounding, (-note.pitch, note.end))
        while sounding and sounding[0][1] <= start:
            heapq.heappop(sounding)
        if not sounding:
            continue
        pitches = (-sounding[0][0],)
        if found and found[-1].end == start and found[-1].pitches == pitches:
            found[-1] = Sound(found[-1].start, end, pitches)
        else:
            found.append(Sound(start, end, pitches))
    return tuple(found)
