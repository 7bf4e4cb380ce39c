"""What a style is made of.

Patterns have a character for each sixteenth of one or more bars; spaces are for the eye. `.` is silence, and
`-` holds the note before it. In a comping pattern `x` is a chord (`X` a louder one), and a digit one of its
voices, from 0, the lowest, on to the next octave. In a bass pattern `R` is the root, `8` its octave, `3`, `5`
and `7` are those tones of the chord, and `a` leads to the next chord's root. In drum patterns `X`, `x` and
`o` are loud, normal and soft.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Patterns = dict[str, tuple[str, ...]]
"""For each meter."""
Groove = dict[str, str]
"""For each drum its pattern."""


@dataclass(frozen=True)
class Style:
    meters: dict[str, tuple[int, int, float]]
    """Lowest and highest bpm of each meter, and its weight."""
    progressions: dict[str, tuple[str, ...]]
    """For each mode."""
    modes: dict[str, float]
    leads: dict[str, float]
    """Instruments and their weights; so are the next ones."""
    bass: dict[str, float]
    comping: dict[str, float]
    pads: dict[str, float]
    pad: float
    """Probability of a pad."""
    drums: float
    """Probability of drums."""
    rhythms: Patterns
    """Of melodies, a bar each."""
    bass_patterns: Patterns
    comping_patterns: Patterns
    grooves: dict[str, tuple[Groove, ...]] = field(default_factory=dict)
    fills: dict[str, tuple[Groove, ...]] = field(default_factory=dict)
    """Shorter than a bar; they end it."""
    kit: int = 0
    """Program of the drums."""
    comps_itself: tuple[str, ...] = ()
    """Leads that play the chords, too: the piano of a jazz trio."""
    voices: int = 3
    """Of the comping."""
    comping_range: tuple[int, int] = (50, 67)
    longest: float = 2.0
    """Seconds of a note of the lead."""
    swing: tuple[int, float] = (2, 0.0)
    """Which notes are late, by the sixteenths between them, and by which part of that: (2, 1/3) makes eighths
    triplets."""
    timing: float = 0.006
    """Standard deviation of the notes' starts in seconds."""
    reverb: float = 0.3
    crackle: float = 0.0
    """Probability of a vinyl record's crackle."""
    cadences: dict[str, str] = field(
        default_factory=lambda: {
            "major": "V | I",
            "minor": "bVII | i",
            "dorian": "IV | i",
            "mixolydian": "bVII | I",
        }
    )
    """The last two bars' chords for each mode."""
    crash: bool = False
    """Whether sections begin with a crash cymbal."""
    levels: dict[str, float] = field(default_factory=dict)
    """Decibels to add to parts, where the usual mix doesn't fit."""
