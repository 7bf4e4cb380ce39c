"""Lo-fi: slow and soft, sevenths and ninths, a lazy beat under the crackle of a record."""

from .rhythms import SPARSE, SYNCOPATED
from .style import Style

LO_FI = Style(
    meters={"4/4": (65, 90, 1.0)},
    modes={"minor": 0.4, "dorian": 0.2, "major": 0.4},
    progressions={
        "minor": (
            "i9 | iv9 | bVImaj7 | V7",
            "i7 | bVImaj7 | iv7 | i7",
            "i9 | i9 | iv7 | i7",
            "i7 | bIIImaj7 | bVImaj7 | V7",
        ),
        "dorian": (
            "i9 | IV9 | i9 | IV9",
            "i9 | i9 | IV9 | i9",
            "i7 | i7 | ii7 | i7",
        ),
        "major": (
            "Iadd9 | vi7 | ii9 | V9",
            "Iadd9 | IVmaj7 | Iadd9 | V7",
            "I6 | iii7 | IVmaj7 | I6",
            "Imaj7 | IVmaj7 | iv6 | Iadd9",
        ),
    },
    leads={
        "piano": 3,
        "electric piano": 2,
        "nylon guitar": 2,
        "electric guitar": 1.5,
        "saxophone": 1,
        "flute": 1,
    },
    comping={"electric piano": 3, "piano": 2, "electric guitar": 1, "nylon guitar": 1},
    bass={"electric bass": 3, "double bass": 1},
    pads={"pad": 1},
    pad=0.2,
    drums=0.85,
    rhythms={"4/4": SYNCOPATED["4/4"][:5] + SPARSE["4/4"][:4]},
    bass_patterns={
        "4/4": (
            "R-----R-....5---",
            "R-------..R-5-a-",
            "R-----....R-----",
        )
    },
    comping_patterns={
        "4/4": (
            "x-------..x-----",
            "x-----x---------",
            "x---------x-x---",
            "0-1-2-1-0-1-2-1-",
        )
    },
    grooves={
        "4/4": (
            {"kick": "X.....x.x.......", "snare": "....x.......x...", "closed": "x.o.x.o.x.o.x.o."},
            {"kick": "X.......x.x.....", "snare": "....x.......x...", "closed": "x.o.x.o.x.oox.o."},
            {"kick": "X..x....x.......", "stick": "....x.......x...", "closed": "x.x.x.x.x.x.x.x."},
        )
    },
    fills={
        "4/4": (
            {"kick": "x.......", "snare": "....x.oo"},
            {"kick": "x..x....", "snare": "....x..x", "open": "......x."},
        )
    },
    swing=(1, 0.22),
    timing=0.008,
    cadences={"major": "V9 | Iadd9", "minor": "V7 | i9", "dorian": "IV9 | i9"},
    voices=4,
    comping_range=(47, 67),
    reverb=0.3,
    crackle=0.75,
    levels={"lead": 1, "comping": -2, "bass": 1, "drums": -2},
)
