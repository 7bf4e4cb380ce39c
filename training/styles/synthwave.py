"""Synthwave: the eighties by night; a bass in eighths, wide pads, a saw that sings."""

from .rhythms import FLOWING, SPARSE
from .style import Style

SYNTHWAVE = Style(
    meters={"4/4": (80, 118, 1.0)},
    modes={"minor": 0.75, "dorian": 0.1, "major": 0.15},
    progressions={
        "minor": (
            "i | bVI | bIII | bVII",
            "i | i | bVI | bVII",
            "i | bVI | iv | i",
            "i | iv | bVI | V",
            "i | bVI | bVII | i",
        ),
        "dorian": (
            "i | i | IV | i",
            "i | IV | i | i",
        ),
        "major": (
            "I | V | vi | IV",
            "I | IV | I | V",
            "I | vi | IV | I",
        ),
    },
    leads={"saw lead": 3, "square lead": 2, "electric guitar": 1},
    comping={"square lead": 2, "saw lead": 1, "electric piano": 1.5},
    bass={"synth bass": 1},
    pads={"pad": 2, "strings": 1},
    pad=0.75,
    drums=0.85,
    rhythms={"4/4": FLOWING["4/4"][:5] + SPARSE["4/4"][:3]},
    bass_patterns={"4/4": ("R-R-R-R-R-R-R-R-", "R-R-8-R-R-R-8-R-", "R-.RR-.RR-.RR-.R")},
    comping_patterns={"4/4": ("0-1-2-3-2-1-0-1-", "0-2-1-2-0-2-1-2-", "0-1-2-1-3-2-1-2-")},
    grooves={
        "4/4": (
            {"kick": "X.......X.......", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x.x."},
            {"kick": "X...X...X...X...", "snare": "....X.......X...", "closed": "..x...x...x...x."},
            {"kick": "X.....x.X.......", "snare": "....X.......X...", "closed": "x.x.x.x.x.x.x.x."},
        )
    },
    fills={
        "4/4": (
            {"kick": "X.......", "snare": "x.......", "high tom": "....xx..", "low tom": "......xx"},
            {"kick": "X...X...", "snare": "..x.x.xx"},
        )
    },
    kit=16,
    timing=0.002,
    reverb=0.5,
    crash=True,
    levels={"lead": 1.5, "comping": 3, "bass": -1, "drums": 0.5},
)
