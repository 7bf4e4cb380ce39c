"""Loops of two bars: attributes → events, all aligned to the codec's frames.

The music is kept very simple, for a small language model. One note on every beat, all of the same length: a
beat is a unit that can be learned as a whole. Beats last a multiple of 0.2 s, the period after which a held
note's codes repeat (`synth.py`): the codes so far show when the next note is due.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

FRAMES_PER_BEAT = {"slow": 40, "medium": 30, "fast": 20}  # 75, 100 and 150 beats per minute at 50 Hz
INSTRUMENTS = ("piano", "guitar", "strings", "flute", "organ", "marimba", "synth")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
TONICS = {"major": 60, "minor": 57}  # C and A
CHORDS = {"major": ((0, 3), (0, 4)), "minor": ((0, 3), (0, 5))}  # scale degrees of the two bars' roots
LOWEST = {
    "piano": 60,
    "guitar": 55,
    "strings": 57,
    "flute": 67,
    "organ": 57,
    "marimba": 60,
    "synth": 55,
    "vibraphone": 60,
}
CONTOURS = ((0, 2, 4, 2), (4, 2, 0, 2), (0, 4, 2, 4), (0, 1, 2, 4))  # degrees above the root, per beat
DRUMS = ("none", "rock", "dance")
# For each beat of a bar: (half beat, drum).
DRUM_PATTERNS = {
    "none": ((), (), (), ()),
    "rock": (((0, "kick"),), ((0, "snare"),)) * 2,
    "dance": (((0, "kick"), (1, "hat")),) * 4,
}


@dataclass(frozen=True)
class Attributes:
    """The attributes of a loop that its caption describes."""

    instrument: str
    tempo: str
    mode: str
    drums: str
    bass: bool

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def draw_attributes(random_: random.Random) -> Attributes:
    return Attributes(
        instrument=random_.choice(INSTRUMENTS),
        tempo=random_.choice(tuple(FRAMES_PER_BEAT)),
        mode=random_.choice(tuple(SCALES)),
        drums=random_.choices(DRUMS, (2, 1, 1))[0],
        bass=random_.random() < 0.5,
    )


def compose(attributes: Attributes, random_: random.Random, frames: int) -> list[tuple[int, str, int, int]]:
    """Events (frame, instrument or drum, MIDI key, length in frames) of a loop of `frames` frames."""
    beat = FRAMES_PER_BEAT[attributes.tempo]
    chords = random_.choice(CHORDS[attributes.mode])
    contour = random_.choice(CONTOURS)
    events = []
    for number, start in enumerate(range(0, frames, beat)):
        bar, beat_in_bar = divmod(number, 4)
        root = chords[bar % 2]
        key = pitch(attributes.mode, root + contour[beat_in_bar], LOWEST[attributes.instrument])
        events.append((start, attributes.instrument, key, beat - 1))
        if attributes.bass:
            events.append((start, "bass", pitch(attributes.mode, root, 36), beat - 1))
        events += [
            (start + half * beat // 2, kind, 0, 0)
            for half, kind in DRUM_PATTERNS[attributes.drums][beat_in_bar]
        ]
    return [event for event in events if event[0] < frames]


def pitch(mode: str, degree: int, lowest: int) -> int:
    """The MIDI key of a scale degree, in the octave from the first tonic at or above `lowest`."""
    tonic = lowest + (TONICS[mode] - lowest) % 12
    # Within one octave and a fifth, so that no note is shrill.
    octave, step = divmod(degree, 7)
    key = tonic + 12 * octave + SCALES[mode][step]
    return key - 12 if key > lowest + 17 else key
