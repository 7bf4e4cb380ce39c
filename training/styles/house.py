"""House: the kick on every beat, the open hat between, chords in stabs."""

from .rhythms import SYNCOPATED
from .style import Style

HOUSE = Style(
    meters={"4/4": (118, 130, 1.0)},
    modes={"minor": 0.6, "dorian": 0.2, "major": 0.2},
    progressions={
        "minor": (
            "i7 | i7 | iv7 | i7",
            "i | bVI | bIII | bVII",
            "i7 | bVImaj7 | iv7 | V7",
            "i | i | bVI | bVII",
        ),
        "dorian": (
            "i9 | i9 | IV9 | i9",
            "i7 | i7 | i7 | IV",
        ),
        "major": (
            "I | vi7 | ii7 | V",
            "I | IV | I | V",
            "I | V | vi7 | IV",
        ),
    },
    leads={"saw lead": 3, "square lead": 1.5, "piano": 2, "organ": 1.5, "saxophone": 0.7},
    comping={"piano": 3, "organ": 2, "electric piano": 1},
    bass={"synth bass": 1},
    pads={"pad": 1, "strings": 1},
    pad=0.5,
    drums=0.95,
    rhythms={"4/4": SYNCOPATED["4/4"]},
    bass_patterns={"4/4": ("..R-..R-..R-..R-", "..R-..R-..8-..R-", "R-.R..R-R-.R..5-", "..R-..R8..R-..R-")},
    comping_patterns={
        "4/4": ("x-.x-.x-..x-....", "..x-..x-..x-..x-", "x--x--x-..x--x--", "x-....x-...x-...")
    },
    grooves={
        "4/4": (
            {"kick": "X...X...X...X...", "clap": "....x.......x...", "open": "..x...x...x...x."},
            {
                "kick": "X...X...X...X...",
                "clap": "....x.......x...",
                "open": "..x...x...x...x.",
                "closed": "x.......x.......",
            },
            {"kick": "X...X...X...X...", "snare": "....x.......x...", "closed": "x.xox.xox.xox.xo"},
        )
    },
    fills={"4/4": ({"kick": "X.......", "snare": "x.x.xxxx"}, {"clap": "..x.x.xx", "kick": "X...X..."})},
    kit=24,
    swing=(1, 0.06),
    timing=0.002,
    reverb=0.25,
    crash=True,
    levels={"drums": 0.5},
)
