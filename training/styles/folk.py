"""Folk: picked guitar under a fiddle, a flute or an accordion; few chords."""

from .rhythms import FLOWING
from .style import Style

FOLK = Style(
    meters={"4/4": (80, 130, 0.45), "3/4": (90, 150, 0.25), "6/8": (60, 112, 0.3)},
    modes={"major": 0.45, "minor": 0.15, "dorian": 0.2, "mixolydian": 0.2},
    progressions={
        "major": (
            "I | IV | I | V",
            "I | V | vi | IV",
            "I | vi | IV | V",
            "I | V | IV | I",
            "I | I | IV | V",
        ),
        "minor": (
            "i | bVII | bVI | V",
            "i | iv | i | V",
            "i | bVI | bVII | i",
        ),
        "dorian": (
            "i | IV | i | i",
            "i | IV | bVII | i",
            "i | i | IV | i",
        ),
        "mixolydian": (
            "I | bVII | I | I",
            "I | IV | bVII | I",
            "I | I | bVII | I",
        ),
    },
    leads={"violin": 2, "flute": 2, "accordion": 1.5, "acoustic guitar": 1.2, "clarinet": 0.6},
    comping={"acoustic guitar": 3, "nylon guitar": 1},
    bass={"double bass": 1},
    pads={"accordion": 1},
    pad=0.15,
    drums=0.35,
    rhythms=FLOWING,
    bass_patterns={
        "4/4": ("R-------5-------", "R-----R-5-------", "R-------R---5---"),
        "3/4": ("R-----------", "R-------5---"),
        "6/8": ("R-----5-----", "R---R-5-----", "R-----R-----"),
    },
    comping_patterns={
        "4/4": ("0-2-1-2-0-2-1-2-", "0-1-2-1-0-1-2-1-", "x---x-x-..x-x-x-", "0---x---0---x---"),
        "3/4": ("0-1-2-1-2-1-", "0---x---x---", "0---x-x-x-x-"),
        "6/8": ("0-1-2-0-1-2-", "0---x-0---x-", "x---x-x---x-"),
    },
    grooves={
        "4/4": (
            {"kick": "x.......x.......", "tambourine": "....x.......x..."},
            {"kick": "x.......x.......", "shaker": "x.o.x.o.x.o.x.o.", "stick": "....x.......x..."},
        ),
        "3/4": (
            {"kick": "x...........", "tambourine": "....x...x..."},
            {"kick": "x...........", "shaker": "x.o.x.o.x.o."},
        ),
        "6/8": (
            {"kick": "x...........", "tambourine": "......x....."},
            {"kick": "x.....x.....", "shaker": "x.o.o.x.o.o."},
        ),
    },
    comping_range=(48, 67),
    reverb=0.3,
    levels={"drums": -2},
)
