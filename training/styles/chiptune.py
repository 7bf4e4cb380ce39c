"""Chiptune: square waves, broken chords in sixteenths, an eager beat."""

from .rhythms import FLOWING, SYNCOPATED
from .style import Style

CHIPTUNE = Style(
    meters={"4/4": (115, 165, 0.9), "3/4": (130, 165, 0.1)},
    modes={"major": 0.5, "minor": 0.4, "mixolydian": 0.1},
    progressions={
        "major": (
            "I | V | vi | IV",
            "I | IV | V | V",
            "I | IV | V | I",
            "I | vi | IV | V",
        ),
        "minor": (
            "i | bVI | bVII | i",
            "i | bVII | bVI | V",
            "i | bVI | iv | V",
            "i | i | bVI | bVII",
        ),
        "mixolydian": (
            "I | bVII | IV | I",
            "I | bVII | I | I",
        ),
    },
    leads={"square lead": 4, "saw lead": 1},
    comping={"square lead": 1},
    bass={"synth bass": 1},
    pads={},
    pad=0,
    drums=0.85,
    rhythms={"4/4": FLOWING["4/4"] + SYNCOPATED["4/4"][:3], "3/4": FLOWING["3/4"]},
    bass_patterns={
        "4/4": ("R-8-R-8-R-8-R-8-", "R-R-8-R-R-R-8-R-", "R---R-R-5---5-5-"),
        "3/4": ("R-8-R-8-R-8-", "R---5---5---"),
    },
    comping_patterns={
        "4/4": ("0120120120120120", "0-1-2-1-0-1-2-1-", "x...x...x...x...", "0-1-2-3-2-1-0-1-"),
        "3/4": ("012012012012", "0-1-2-1-2-1-"),
    },
    grooves={
        "4/4": (
            {"kick": "X...x...X...x...", "snare": "....X.......X...", "closed": "..x...x...x...x."},
            {"kick": "X.....x.X.......", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x.x."},
        ),
        "3/4": ({"kick": "X...........", "snare": "....x...x...", "closed": "x.x.x.x.x.x."},),
    },
    fills={
        "4/4": ({"snare": "x.x.xxxx"}, {"kick": "X.......", "snare": "..x.x.x."}),
        "3/4": ({"snare": "x.x.xx.."},),
    },
    kit=24,
    comps_itself=("square lead", "saw lead"),
    timing=0.0,
    reverb=0.08,
    levels={"lead": 2, "comping": 4, "bass": -1.5, "drums": 1},
)
