"""What a song's caption describes, and what an evaluation measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STYLES = (
    "lo-fi",
    "house",
    "synthwave",
    "rock",
    "folk",
    "waltz",
    "jazz trio",
    "bossa nova",
    "funk",
    "ambient",
    "string quartet",
    "chiptune",
)
METERS = ("4/4", "3/4", "6/8")
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
"""Semitones above the tonic of each degree."""
# For each instrument its program of General MIDI (from 0), and its family.
INSTRUMENTS = {
    "piano": (0, "piano"),
    "electric piano": (4, "piano"),
    "organ": (16, "organ"),
    "accordion": (21, "organ"),
    "acoustic guitar": (25, "guitar"),
    "nylon guitar": (24, "guitar"),
    "electric guitar": (27, "guitar"),
    "distorted guitar": (30, "guitar"),
    "double bass": (32, "bass"),
    "electric bass": (33, "bass"),
    "synth bass": (38, "bass"),
    "violin": (40, "strings"),
    "viola": (41, "strings"),
    "cello": (42, "strings"),
    "strings": (48, "strings"),
    "trumpet": (56, "brass"),
    "saxophone": (66, "reed"),
    "clarinet": (71, "reed"),
    "flute": (73, "flute"),
    "square lead": (80, "synth"),
    "saw lead": (81, "synth"),
    "pad": (89, "synth"),
}
FAMILIES = ("piano", "organ", "guitar", "strings", "brass", "reed", "flute", "synth")
"""Of lead instruments."""


@dataclass(frozen=True)
class Attributes:
    """Of a song."""

    style: str
    bpm: int
    """Of the beats that one taps: quarters, and in 6/8 dotted quarters; 60 to 170."""
    tonic: int
    """Semitones above C."""
    mode: str
    meter: str
    drums: bool
    lead: str
    """The instrument with the melody."""
    accompaniment: tuple[str, ...]
    """The other instruments, but for the drums."""
    crackle: bool = False
    """Of a vinyl record."""

    @property
    def family(self) -> str:
        return INSTRUMENTS[self.lead][1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Attributes:
        return cls(**(values | {"accompaniment": tuple(values["accompaniment"])}))
