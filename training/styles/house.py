"""House: the kick on every beat, the open hat between, chords in stabs."""

from .rhythms import SYNCOPATED
from .style import Style

HOUSE = Style(
    meters={"4/4": (118, 130, 1.0)},
    modes={"minor": 0.6, "dorian": 0.2, "major": 0.2},
    progressions={
        "minor": (
            "i7 | i7 | bVImaj7 | bVII",
            "i | bVI | bIII | bVII",
            "iv7 | i7 | bVImaj7 | v7",
            "i | bVII | bVI | bVII",
        ),
        "dorian": ("i7 | IV | i7 | IV", "i9 | i9 | IV9 | bVII"),
        "major": ("vi7 | IV | I | V", "IVmaj7 | V | vi7 | I", "I | vi7 | ii7 | V"),
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
)
