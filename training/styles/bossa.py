"""Bossa nova: a nylon guitar against the clave of the sticks, roots and fifths in the bass."""

from .rhythms import FLOWING, SYNCOPATED
from .style import Style

BOSSA_NOVA = Style(
    meters={"4/4": (110, 150, 1.0)},
    modes={"major": 0.6, "minor": 0.4},
    progressions={
        "major": (
            "I6 | I6 | ii9 | V7",
            "I6 | vi7 | ii7 | V9",
            "I6 | IVmaj7 | ii7 | V7",
            "I6 | ii7 | V7 | I6",
            "Imaj7 | iv6 | I6 | V7",
        ),
        "minor": (
            "i9 | i9 | iv9 | V7",
            "i6 | ii7b5 | V7 | i6",
            "i9 | bVImaj7 | ii7b5 | V7",
            "i9 | iv9 | i9 | V7",
        ),
    },
    leads={"flute": 2.5, "saxophone": 2, "nylon guitar": 1.5, "piano": 1.5, "trumpet": 1.2},
    comping={"nylon guitar": 4, "piano": 1},
    bass={"double bass": 3, "electric bass": 1},
    pads={"strings": 1},
    pad=0.12,
    drums=0.75,
    rhythms={"4/4": SYNCOPATED["4/4"][2:4] + SYNCOPATED["4/4"][5:7] + FLOWING["4/4"][:4]},
    bass_patterns={"4/4": ("R-----5-5-----R-", "R-------5-----5-", "R---..R-5-------")},
    comping_patterns={"4/4": ("x---x-x-..x-x---", "x-..x-..x-x-..x-", "x---x-x-x---x-x-")},
    grooves={
        "4/4": (
            {
                "stick": "x.....o.....o.......x.....o.....",
                "closed": "X.o.X.o.X.o.X.o.X.o.X.o.X.o.X.o.",
                "kick": "X.......X.......X.......X.......",
            },
            {
                "stick": "x.....o.....o...x.....o.....o...",
                "shaker": "X.o.X.o.X.o.X.o.X.o.X.o.X.o.X.o.",
                "kick": "X.......X.......X.......X.......",
            },
        )
    },
    fills={"4/4": ({"stick": "x..x..x."}, {"snare": "..o.x.o."})},
    comping_range=(50, 67),
    cadences={"major": "V9 | I6", "minor": "V7 | i9"},
    reverb=0.3,
    levels={"drums": -2},
)
