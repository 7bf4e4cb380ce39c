"""Melodies over harmony: motifs that return, chord tones on strong beats, mostly steps between them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from attributes import MODES
from patterns import read_pattern
from song import STEPS, STEPS_PER_BEAT
from styles import Style
from styles.rhythms import CADENCES
from theory import Chord, chord_scale, melody_tones, nearest, step_in_scale

RANGES = {
    "piano": (63, 84),
    "electric piano": (62, 83),
    "organ": (62, 82),
    "accordion": (64, 84),
    "acoustic guitar": (62, 81),
    "nylon guitar": (60, 80),
    "electric guitar": (60, 80),
    "distorted guitar": (60, 81),
    "violin": (65, 86),
    "viola": (60, 79),
    "cello": (50, 69),
    "strings": (64, 86),
    "trumpet": (62, 80),
    "saxophone": (60, 77),
    "clarinet": (62, 82),
    "flute": (67, 86),
    "square lead": (64, 84),
    "saw lead": (62, 82),
}
"""Lowest and highest key of the leads: where they sound well, at most a tenth below their extremes."""
FORMS = ("abac abad", "aabc aabd", "abcc abcd", "aaac aabd", "abac bbad")
"""Bars of a theme of two phrases: a and b are its motifs, c and d its cadences, open and closed."""
STEPS_UP = (-2, -1, -1, -1, 0, 1, 1, 1, 2)


@dataclass(frozen=True)
class Motif:
    """A bar of melody without its harmony."""

    rhythm: str
    contour: tuple[int, ...]
    """For each note its distance to the bar's first in steps of the scale."""


@dataclass(frozen=True)
class Theme:
    """Eight bars."""

    bars: tuple[Motif, ...]
    heights: tuple[int, ...]
    """For each bar how far its first note lies above the middle of the lead's range, in semitones."""


@dataclass(frozen=True)
class Tone:
    """A note of the lead, in sixteenths from the song's beginning."""

    step: int
    steps: int
    key: int


def invent_motif(rhythm: str, random_: random.Random) -> Motif:
    contour = [0]
    last = 0
    for _ in read_pattern(rhythm)[1:]:
        if abs(last) > 1:
            step = -1 if last > 0 else 1  # what leaps comes back
        elif random_.random() < 0.12:
            step = random_.choice((-3, 3))
        else:
            step = random_.choice(STEPS_UP)
        if not -4 <= contour[-1] + step <= 5:
            step = -step
        contour.append(contour[-1] + step)
        last = step
    return Motif(rhythm, tuple(contour))


def invent_theme(style: Style, meter: str, height: int, random_: random.Random) -> Theme:
    """A theme around `height` semitones above the middle of the lead's range."""
    first, second = random_.sample(style.rhythms[meter], 2)
    motifs = {
        "a": invent_motif(first, random_),
        "b": invent_motif(second, random_),
        "c": invent_motif(random_.choice(CADENCES[meter]), random_),
        "d": invent_motif(random_.choice(CADENCES[meter]), random_),
    }
    form = random_.choice(FORMS).replace(" ", "")
    arc = random_.choice(((0, 2, 4, 1), (3, 1, 4, 0), (0, 3, 2, 0), (4, 2, 1, 0), (0, 2, 5, 3)))
    return Theme(
        tuple(motifs[letter] for letter in form), tuple(height + arc[bar % 4] for bar in range(len(form)))
    )


def is_strong(step: int, meter: str) -> bool:
    """Whether a step has a beat that carries the harmony: 1 and 3 of four, 1 of three, 1 and 4 of six."""
    return step % STEPS[meter] in {"4/4": (0, 8), "3/4": (0,), "6/8": (0, 6)}[meter]


def stable(chord: Chord, tonic: int, mode: str, aim: float, low: int, high: int) -> int:
    """The chord's tone near `aim`; one that is home in the tonic's, too, may be farther."""
    home = {(tonic + MODES[mode][degree]) % 12 for degree in (0, 2, 4)} & melody_tones(chord)
    key = nearest(melody_tones(chord), aim, low, high)
    at_home = nearest(home, aim, low, high) if home else key
    return at_home if abs(at_home - aim) <= abs(key - aim) + 2 else key


def realize(
    motif: Motif,
    height: int,
    chords: list[tuple[int, Chord]],
    tonic: int,
    mode: str,
    meter: str,
    lead: str,
    previous: int | None,
    closes: bool,
) -> list[Tone]:
    """A motif's tones in a bar with these chords (by their step in the bar).

    Strong beats and notes of a beat or more have tones of their chord; the others follow the contour in the
    scale. A bar that `closes` ends on the tonic, or on the root or fifth of a chord without it.
    """
    low, high = RANGES[lead]
    events = read_pattern(motif.rhythm)
    ending = chords[-1][1]
    rest = next(tone for tone in (tonic, ending.root, (ending.root + 7) % 12) if tone in melody_tones(ending))
    tones: list[Tone] = []
    anchor = None
    for index, ((step, steps, _), distance) in enumerate(zip(events, motif.contour, strict=True)):
        later = [at for at, _ in chords if at > step]
        # No tone lasts into the next chord.
        steps = min([steps, *(at - step for at in later)])
        chord = [chord for at, chord in chords if at <= step][-1]
        tones_of_scale = chord_scale(chord, tonic, mode)
        if anchor is None:
            aim = (low + high) / 2 + height
            # From one bar to the next it goes half of the way.
            aim = aim if previous is None else (aim + previous) / 2
            key = anchor = stable(chord, tonic, mode, aim, low, high)
        else:
            key = step_in_scale(tones_of_scale, anchor, distance)
            while key > high:
                key -= 12
            while key < low:
                key += 12
            last = tones[-1].key
            if closes and index == len(events) - 1:
                key = nearest({rest}, (key + last) / 2, low, high)
            elif is_strong(step, meter) or steps >= STEPS_PER_BEAT[meter] or step == 0:
                key = stable(chord, tonic, mode, key, low, high)
                if key == last and distance != motif.contour[index - 1]:
                    # The motif moves here, so the melody does.
                    up = distance > motif.contour[index - 1]
                    key = step_in_scale(melody_tones(chord), last, 1 if up else -1)
                    key = key if low <= key <= high else last
            elif key % 12 not in tones_of_scale:
                key = nearest(tones_of_scale, key, low, high)
            if abs(key - last) > 9:
                key = nearest({key % 12}, last, low, high)
        tones.append(Tone(step, steps, key))
    if closes and len(events) == 1:
        tones = [Tone(tones[0].step, tones[0].steps, nearest({rest}, tones[0].key, low, high))]
    return tones


def vary(tones: list[Tone], pitch_classes: frozenset[int], meter: str, random_: random.Random) -> list[Tone]:
    """A bar that returns, with one of its notes of a beat turned to its neighbour in the scale."""
    places = [
        i
        for i, tone in enumerate(tones)
        if 4 <= tone.steps <= 6 and not is_strong(tone.step + tone.steps // 2, meter)
    ]
    if not places:
        return tones
    i = random_.choice(places)
    tone = tones[i]
    half = tone.steps // 2
    neighbour = step_in_scale(pitch_classes, tone.key, random_.choice((-1, 1)))
    turned = [Tone(tone.step, half, tone.key), Tone(tone.step + half, tone.steps - half, neighbour)]
    return [*tones[:i], *turned, *tones[i + 1 :]]
