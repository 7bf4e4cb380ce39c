"""Waltz: the bass on one, chords on two and three, a tune in long arcs."""

from .rhythms import FLOWING
from .style import Style

WALTZ = Style(
    meters={"3/4": (90, 168, 1.0)},
    modes={"major": 0.65, "minor": 0.35},
    progressions={
        "major": (
            "I | I | V7 | I | IV | I | V7 | I",
            "I | vi | ii | V7",
            "I | IV | V7 | I",
            "I | I | IV | I | ii | V7 | I | I",
        ),
        "minor": (
            "i | i | V7 | i | iv | i | V7 | i",
            "i | iv | V7 | i",
            "i | i | iv | V7",
            "i | bVI | V7 | i",
        ),
    },
    leads={"violin": 2.5, "accordion": 2, "clarinet": 1.5, "flute": 1.2, "piano": 1.5},
    comping={"piano": 2, "accordion": 1.5, "strings": 1.5, "nylon guitar": 0.7},
    bass={"double bass": 3, "cello": 1},
    pads={"strings": 1},
    pad=0.15,
    drums=0.15,
    rhythms={"3/4": FLOWING["3/4"]},
    bass_patterns={"3/4": ("R---........", "R-----......")},
    comping_patterns={"3/4": ("....x--.x--.", "....x-..x-..")},
    grooves={
        "3/4": (
            {"kick": "x...........", "snare": "....o...o..."},
            {"kick": "x...........", "closed": "....x...x..."},
        )
    },
    cadences={"major": "V7 | I", "minor": "V7 | i"},
    reverb=0.4,
    levels={"drums": -2},
)
