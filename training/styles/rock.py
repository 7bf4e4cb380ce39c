"""Rock: distorted guitars, eighths in the bass, a loud backbeat."""

from .rhythms import FLOWING, SYNCOPATED
from .style import Style

ROCK = Style(
    meters={"4/4": (100, 160, 0.9), "6/8": (60, 80, 0.1)},
    modes={"major": 0.35, "minor": 0.35, "mixolydian": 0.3},
    progressions={
        "major": (
            "I | V | vi | IV",
            "I | IV | V | IV",
            "I | vi | IV | V",
            "I | I | IV | V",
        ),
        "minor": (
            "i | bVI | bVII | i",
            "i | i | bVI | bVII",
            "i | bIII | iv | i",
            "i | iv | bVI | V",
        ),
        "mixolydian": (
            "I | bVII | IV | I",
            "I | I | bVII | IV",
            "I | IV | bVII | I",
        ),
    },
    leads={"electric guitar": 2, "distorted guitar": 2.5, "organ": 1, "piano": 0.7},
    comping={"distorted guitar": 4, "electric guitar": 1},
    bass={"electric bass": 1},
    pads={"organ": 1},
    pad=0.15,
    drums=0.95,
    rhythms={"4/4": FLOWING["4/4"] + SYNCOPATED["4/4"][:3], "6/8": FLOWING["6/8"]},
    bass_patterns={
        "4/4": ("R-R-R-R-R-R-R-R-", "R---R-R-R---R-5-", "R--R--R-R--R--5-"),
        "6/8": ("R---R-R---R-", "R-R-R-R-R-5-"),
    },
    comping_patterns={
        "4/4": ("x-x-x-x-x-x-x-x-", "x-----x-x-------", "x--x--x-x--x--x-", "x---------------"),
        "6/8": ("x-----x-----", "x---x-x---x-"),
    },
    grooves={
        "4/4": (
            {"kick": "X.......X.x.....", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x.x."},
            {"kick": "X.....x.X.......", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x.x."},
            {"kick": "X..x..x.X.......", "snare": "....X.......X...", "ride": "x...x...x...x..."},
            {"kick": "X.x.......x.....", "snare": "....X.......X...", "open": "x...x...x...x..."},
        ),
        "6/8": (
            {"kick": "X.........x.", "snare": "......X.....", "closed": "x.x.x.x.x.x."},
            {"kick": "X...x.......", "snare": "......X.....", "ride": "x.x.x.x.x.x."},
        ),
    },
    fills={
        "4/4": (
            {"kick": "X.......", "snare": "x.x.....", "high tom": "....x.x.", "low tom": "......xx"},
            {"kick": "X...X...", "snare": "x.xxx.xx"},
        ),
        "6/8": ({"snare": "x.x...", "low tom": "....x."}, {"high tom": "x.x...", "low tom": "....xx"}),
    },
    kit=16,
    comping_range=(43, 62),
    reverb=0.25,
    crash=True,
    levels={"drums": 1, "comping": -1},
)
