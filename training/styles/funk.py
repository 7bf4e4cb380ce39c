"""Funk: sixteenths, a bass that jumps, short ninths on a clean guitar."""

from .style import Style

FUNK = Style(
    meters={"4/4": (92, 116, 1.0)},
    modes={"dorian": 0.6, "mixolydian": 0.4},
    progressions={
        "dorian": (
            "i9 | i9 | IV9 | i9",
            "i7 | i7 | i7 | IV9",
            "i9 | IV9 | i9 | i9",
            "i7 | bIII | IV9 | i7",
        ),
        "mixolydian": (
            "I9 | I9 | IV9 | I9",
            "I9 | I9 | I9 | IV9",
            "I9 | IV9 | I9 | I9",
            "I9 | I7 | I9 | IV9",
        ),
    },
    leads={"saxophone": 2, "trumpet": 2.5, "organ": 1.5, "electric piano": 1, "electric guitar": 0.8},
    comping={"electric guitar": 4, "electric piano": 1, "organ": 0.7},
    bass={"electric bass": 3, "synth bass": 1},
    pads={},
    pad=0,
    drums=0.95,
    rhythms={
        "4/4": (
            "x-x---x-....x-x-",
            "..x-x-x-....x---",
            "x-.x-.x-..x-x-..",
            "x-x-..x-x-......",
            "x---x-x-..x-x-..",
        )
    },
    bass_patterns={"4/4": ("R-.R..8-..R.5.7.", "R--R..R-....7-8-", "R-..R..8R...5-7-", "R-.R..7-8-..R-..")},
    comping_patterns={
        "4/4": ("..x.x..x..x.x...", "....x..x....x..x", "x..x..x...x..x..", "..x-..x-..x-..x-")
    },
    grooves={
        "4/4": (
            {"kick": "X.x.......x..x..", "snare": "....X..o....X...", "closed": "x.x.x.x.x.x.x.x."},
            {"kick": "X..x..x...x.....", "snare": "....X..o.o..X...", "closed": "xoxoxoxoxoxoxoxo"},
            {"kick": "X.....x.x..x....", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x..."},
        )
    },
    fills={
        "4/4": (
            {"kick": "X.......", "snare": "x.oxx.xx"},
            {"kick": "X..x....", "snare": "....x.x.", "low tom": ".......x"},
        )
    },
    swing=(1, 0.08),
    timing=0.005,
    cadences={"dorian": "IV9 | i9", "mixolydian": "IV9 | I9"},
    reverb=0.15,
    comping_range=(55, 70),
    levels={"drums": 1},
)
