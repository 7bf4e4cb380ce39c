"""Ambient: slow pads in a large room, few notes, no drums."""

from .rhythms import SPARSE
from .style import Style

AMBIENT = Style(
    meters={"4/4": (60, 84, 0.8), "3/4": (60, 84, 0.2)},
    modes={"major": 0.45, "minor": 0.35, "dorian": 0.12},
    progressions={
        "major": (
            "Iadd9 | IVmaj7 | Iadd9 | IVmaj7",
            "Iadd9 | vi7 | IVmaj7 | Iadd9",
            "Iadd9 | I | IVmaj7 | Vsus4",
        ),
        "minor": (
            "iadd9 | bVImaj7 | iadd9 | bVImaj7",
            "i7 | iv7 | bVImaj7 | i7",
            "iadd9 | iv7 | iadd9 | bVII",
        ),
        "dorian": (
            "iadd9 | i9 | IV | i9",
            "iadd9 | IV | iadd9 | i7",
        ),
    },
    leads={"piano": 2, "electric piano": 1.5, "flute": 1, "strings": 1, "electric guitar": 1},
    comping={"piano": 1, "electric piano": 1.5, "strings": 0.7, "nylon guitar": 0.5},
    bass={},
    pads={"pad": 1},
    pad=1,
    drums=0,
    rhythms=SPARSE,
    bass_patterns={},
    comping_patterns={
        "4/4": ("0---1---2---3---", "0---2---1---2---", "0-1-2-1-0-1-2-1-", "0-1-2---3-2-1---"),
        "3/4": ("0---1---2---", "0-1-2---1---", "0---2---1---"),
    },
    comping_range=(52, 69),
    longest=3.4,
    timing=0.012,
    cadences={"major": "IVmaj7 | Iadd9", "minor": "bVII | iadd9", "dorian": "IV | iadd9"},
    reverb=0.9,
    levels={"lead": 2, "pad": 0.5, "comping": 1.5},
)
