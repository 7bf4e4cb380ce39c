"""Loops of two bars: attributes → events, everything on the grid of the codec's frames."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

FRAMES_PER_BEAT = {"slow": 40, "medium": 28, "fast": 18}  # 75, 107 and 167 beats per minute at 50 Hz
INSTRUMENTS = ("piano", "guitar", "strings", "flute", "organ", "marimba", "synth")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
TONICS = {"major": 60, "minor": 57}  # C and A
CHORDS = {"major": ((0, 3), (0, 4)), "minor": ((0, 3), (0, 5))}  # degrees of the two bars' roots
LOWEST = {"piano": 60, "guitar": 55, "strings": 57, "flute": 67, "organ": 57, "marimba": 60, "synth": 55}
# Onsets in half beats.
RHYTHMS = {
    "slow": ((0, 2, 4, 6), (0, 2, 3, 4, 6), (0, 4, 6)),
    "medium": ((0, 2, 4, 6), (0, 2, 3, 4, 6, 7), (0, 3, 6)),
    "fast": ((0, 2, 4, 6), (0, 1, 2, 4, 5, 6), (0, 3, 4, 6)),
}
CONTOURS = ((0, 2, 4, 2, 4, 2, 0), (4, 2, 0, 2, 4, 2, 0), (0, 4, 2, 4, 0, 2, 4), (0, 1, 2, 4, 2, 1, 0))
DRUMS = ("none", "rock", "dance")


@dataclass(frozen=True)
class Attributes:
    """What a caption tells of a loop."""

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
    """Events (frame, instrument or drum, MIDI key, frames held) of a loop that fills `frames` frames."""
    beat = FRAMES_PER_BEAT[attributes.tempo]
    half, bar = beat // 2, 4 * beat
    chords = random_.choice(CHORDS[attributes.mode])
    rhythm = random_.choice(RHYTHMS[attributes.tempo])
    contour = random_.choice(CONTOURS)
    events = []
    for number, start in enumerate(range(0, frames, bar)):
        root = chords[number % 2]
        for index, onset in enumerate(rhythm):
            following = rhythm[index + 1] if index + 1 < len(rhythm) else 8
            key = pitch(attributes.mode, root + contour[index], LOWEST[attributes.instrument])
            events.append((start + onset * half, attributes.instrument, key, (following - onset) * half - 1))
        if attributes.bass:
            key = pitch(attributes.mode, root, 36)
            events += [(start + position * beat, "bass", key, 2 * beat - 1) for position in (0, 2)]
        events += [(start + onset * half, kind, 0, 0) for onset, kind in drum_pattern(attributes.drums)]
    return [event for event in events if event[0] < frames]


def pitch(mode: str, degree: int, lowest: int) -> int:
    """The MIDI key of a scale's degree, in the octave that begins at the first tonic from `lowest` up."""
    tonic = lowest + (TONICS[mode] - lowest) % 12
    # Within one octave and a fifth, so that no note is shrill.
    octave, step = divmod(degree, 7)
    key = tonic + 12 * octave + SCALES[mode][step]
    return key - 12 if key > lowest + 17 else key


def drum_pattern(drums: str) -> list[tuple[int, str]]:
    """Strokes of one bar as (half beat, drum)."""
    if drums == "rock":
        return [
            (0, "kick"),
            (4, "kick"),
            (5, "kick"),
            (2, "snare"),
            (6, "snare"),
            *((i, "hat") for i in range(0, 8, 2)),
        ]
    if drums == "dance":
        return [*((i, "kick") for i in range(0, 8, 2)), *((i, "hat") for i in range(1, 8, 2))]
    return []
