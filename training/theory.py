"""Scales, chords and voice leading. Keys are MIDI's (60 is middle C), pitch classes semitones above C."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from attributes import MODES

NUMERALS = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
MAJOR = {
    "": (0, 4, 7),
    "5": (0, 7),
    "6": (0, 4, 7, 9),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "9": (0, 4, 7, 10, 14),
    "maj9": (0, 4, 7, 11, 14),
    "add9": (0, 4, 7, 14),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "7sus4": (0, 5, 7, 10),
}
"""Semitones above the root of what follows a large numeral."""
MINOR = {
    "": (0, 3, 7),
    "6": (0, 3, 7, 9),
    "7": (0, 3, 7, 10),
    "9": (0, 3, 7, 10, 14),
    "add9": (0, 3, 7, 14),
    "dim": (0, 3, 6),
    "dim7": (0, 3, 6, 9),
    "7b5": (0, 3, 6, 10),
}
"""Semitones above the root of what follows a small numeral."""


DEGREES_ABOVE = {0: 0, 2: 1, 14: 1, 3: 2, 4: 2, 5: 3, 6: 4, 7: 4, 8: 4, 9: 5, 10: 6, 11: 6}
"""The degrees of the scale between a chord's root and its intervals."""


@dataclass(frozen=True)
class Chord:
    symbol: str
    """As musicians number chords, by the major scale in every mode: `bVI` is Ab in C major and in C minor."""
    degree: int
    """Of the root in the scale, from 0."""
    root: int
    """Pitch class."""
    intervals: tuple[int, ...]
    """Semitones above the root, ascending."""

    @property
    def pitch_classes(self) -> frozenset[int]:
        return frozenset((self.root + interval) % 12 for interval in self.intervals)


def melody_tones(chord: Chord) -> frozenset[int]:
    """The pitch classes of a chord that a melody may rest on: not the root a semitone from its seventh."""
    return chord.pitch_classes - ({chord.root} if 11 in chord.intervals else set())


def read_chord(symbol: str, tonic: int) -> Chord:
    match = re.fullmatch(r"([b#]?)([IV]+|[iv]+)(.*)", symbol)
    if match is None:
        raise ValueError(f"{symbol} isn't a chord")
    accidental, numeral, quality = match.groups()
    root = NUMERALS[numeral.upper()] + {"b": -1, "#": 1, "": 0}[accidental]
    qualities = MAJOR if numeral.isupper() else MINOR
    degree = tuple(NUMERALS).index(numeral.upper())
    return Chord(symbol, degree, (tonic + root) % 12, qualities[quality])


def scale(tonic: int, mode: str) -> frozenset[int]:
    return frozenset((tonic + step) % 12 for step in MODES[mode])


def chord_scale(chord: Chord, tonic: int, mode: str) -> frozenset[int]:
    """The key's pitch classes, with the degrees that the chord alters: over E major in A minor G is G#."""
    degrees = [(tonic + step) % 12 for step in MODES[mode]]
    for interval in chord.intervals:
        degrees[(chord.degree + DEGREES_ABOVE[interval]) % 7] = (chord.root + interval) % 12
    return frozenset(degrees)


def nearest(pitch_classes: Collection[int], key: float, low: int, high: int) -> int:
    """The key of one of the pitch classes in low … high nearest to `key`, the lower of two."""
    return min(
        (candidate for candidate in range(low, high + 1) if candidate % 12 in pitch_classes),
        key=lambda candidate: (abs(candidate - key), candidate),
    )


def step_in_scale(pitch_classes: Collection[int], key: int, steps: int) -> int:
    """The key `steps` tones of the scale above (or below) `key`, which needn't be in it."""
    direction = 1 if steps > 0 else -1
    for _ in range(abs(steps)):
        key += direction
        while key % 12 not in pitch_classes:
            key += direction
    return key


def essential_tones(chord: Chord, voices: int) -> tuple[int, ...]:
    """Pitch classes for an accompaniment in `voices` voices above a bass, which has the root."""
    intervals = list(chord.intervals)
    # What the ear needs least goes first: the fifth, then the root, which the bass has.
    for least in (7, 0):
        if len(intervals) > voices and least in intervals:
            intervals.remove(least)
    return tuple((chord.root + interval) % 12 for interval in intervals[-voices:])


def voicing(
    chord: Chord, voices: int, low: int, high: int, previous: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Keys of a close voicing in low … high, ascending, that moves least from the previous one."""
    tones = sorted(essential_tones(chord, voices))
    candidates = []
    for inversion in range(len(tones)):
        turned = tones[inversion:] + [tone + 12 for tone in tones[:inversion]]
        for octave in range(0, 120, 12):
            keys = [tone + octave for tone in turned]
            if len(keys) < voices and keys[0] + 12 <= high:
                keys.append(keys[0] + 12)
            if low <= keys[0] and keys[-1] <= high:
                candidates.append(tuple(keys))

    def cost(keys: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        moved = sum(abs(a - b) for a, b in zip(keys[::-1], previous[::-1], strict=False))
        center = abs(sum(keys) / len(keys) - (low + high) / 2)
        clusters = sum(b - a == 1 for a, b in pairwise(keys))
        return moved + (0.3 if previous else 1) * center + 10 * clusters, keys

    return min(candidates, key=cost)


def read_progression(text: str, tonic: int, steps_per_bar: int) -> list[list[tuple[int, Chord]]]:
    """For each bar its chords with their steps in the bar: `"ii7 V7 | Imaj7"`."""
    bars = []
    for bar in text.split("|"):
        symbols = bar.split()
        # The second of two chords in a bar of three beats has the third beat.
        half = 8 if steps_per_bar == 12 and len(symbols) == 2 else steps_per_bar // 2
        bars.append([(half * i, read_chord(symbol, tonic)) for i, symbol in enumerate(symbols)])
    return bars
