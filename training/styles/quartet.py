"""String quartet: four voices, the first violin leads."""

from .rhythms import FLOWING
from .style import Style

STRING_QUARTET = Style(
    meters={"4/4": (70, 132, 0.5), "3/4": (80, 140, 0.3), "6/8": (60, 96, 0.2)},
    modes={"major": 0.55, "minor": 0.45},
    progressions={
        "major": (
            "I | IV | V7 | I",
            "I | vi | ii | V7",
            "I | V | vi | iii | IV | I | ii | V7",
            "I | I | V7 | I",
        ),
        "minor": (
            "i | iv | V7 | i",
            "i | bVI | iv | V7",
            "i | bVII | bVI | V7",
            "i | iv | bVII | bIII | bVI | iv | V | i",
        ),
    },
    leads={"violin": 1},
    comping={"violin": 1},
    bass={"cello": 1},
    pads={},
    pad=0,
    drums=0,
    rhythms=FLOWING,
    bass_patterns={
        "4/4": ("R---R---5---R---", "R-..R-..R-..R-..", "R-R-R-R-R-R-R-R-", "R---3---5---a---"),
        "3/4": ("R---R---R---", "R---....5---", "R---3---5---"),
        "6/8": ("R---R-5---R-", "R-----R-----", "R-----5-----"),
    },
    comping_patterns={
        "4/4": (
            "x---x---x---x---",
            "x-x-x-x-x-x-x-x-",
            "0-1-0-1-0-1-0-1-",
            "..x-..x-..x-..x-",
            "x-..x-..x-..x-..",
        ),
        "3/4": ("x---x---x---", "....x-..x-..", "x-x-x-x-x-x-", "0-1-0-1-0-1-"),
        "6/8": ("x---x-x---x-", "0-1-0-0-1-0-", "x-x-x-x-x-x-"),
    },
    voices=2,
    comping_range=(53, 69),
    timing=0.008,
    cadences={"major": "V7 | I", "minor": "V7 | i"},
    reverb=0.45,
    levels={"comping": 5, "viola": 5, "bass": 1},
)
