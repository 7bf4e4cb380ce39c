"""Jazz trio: a walking bass, a swinging ride, sevenths that move in fifths."""

from .rhythms import SWINGING
from .style import Style

JAZZ_TRIO = Style(
    meters={"4/4": (96, 168, 0.85), "3/4": (100, 160, 0.15)},
    modes={"major": 0.6, "minor": 0.4},
    progressions={
        "major": (
            "Imaj7 | vi7 | ii7 | V7",
            "ii7 | V7 | Imaj7 | I6",
            "Imaj7 | VI7 | ii7 | V7",
            "I6 | I6 | ii7 | V7 | I6 | vi7 | ii7 | V7",
            "ii7 V7 | Imaj7 | ii7 V7 | I6",
            "I6 | IV7 | I6 | V7",
        ),
        "minor": (
            "ii7b5 | V7 | i6 | i6",
            "i7 | iv7 | ii7b5 | V7",
            "i7 | bVI7 | ii7b5 | V7",
            "i6 | i6 | iv7 | iv7 | ii7b5 | V7 | i6 | i6",
            "ii7b5 V7 | i6 | ii7b5 V7 | i6",
        ),
    },
    leads={"piano": 3, "electric guitar": 1.5, "saxophone": 2, "trumpet": 2, "clarinet": 0.8},
    comping={"piano": 3, "electric guitar": 1},
    bass={"double bass": 1},
    pads={},
    pad=0,
    drums=0.9,
    rhythms=SWINGING,
    bass_patterns={
        "4/4": ("R---3---5---a---", "R---5---3---a---", "R---3---R---a---", "R---5---8---a---"),
        "3/4": ("R---5---a---", "R---3---a---"),
    },
    comping_patterns={
        "4/4": ("x-....x-........", "....x-......x-..", "..x-....x---....", "x---......x-...."),
        "3/4": ("....x-..x-..", "x-....x-....", "..x-....x-.."),
    },
    grooves={
        "4/4": (
            {"ride": "x...x.o.x...x.o.", "pedal": "....x.......x..."},
            {"ride": "x...x.o.x...x.o.", "pedal": "....x.......x...", "kick": "o.......o......."},
            {"ride": "x...x.o.x...x.o.", "pedal": "....x.......x...", "snare": "..........o....."},
        ),
        "3/4": (
            {"ride": "x...x.o.x...", "pedal": "....x...x..."},
            {"ride": "x...x.o.x.o.", "pedal": "....x.......", "kick": "o..........."},
        ),
    },
    fills={
        "4/4": ({"snare": "x.o.x.o."}, {"snare": "..x.....", "low tom": "....x.x."}),
        "3/4": ({"snare": "..x.x.o."},),
    },
    kit=40,
    comps_itself=("piano",),
    comping_range=(52, 67),
    swing=(2, 1 / 3),
    timing=0.007,
    cadences={"major": "V7 | I6", "minor": "V7 | i6"},
    reverb=0.25,
    levels={"drums": -2},
)
