"""How loud parts are: instruments of a SoundFont differ, and shall sound equally loud in their part.

The figures are of FluidR3Mono, rendered alone by FluidSynth with gain 0.6, volume 100 and the
velocities of `arrange.py`: loudness in LUFS while they play. Leads and basses play a scale, comping
and pads chords, drums the grooves of a style.
"""

from __future__ import annotations

MEASURED = {
    "lead": {
        "accordion": -34.0,
        "acoustic guitar": -36.0,
        "clarinet": -30.2,
        "distorted guitar": -30.0,
        "electric guitar": -29.0,
        "electric piano": -29.8,
        "flute": -27.7,
        "nylon guitar": -34.9,
        "organ": -33.7,
        "piano": -37.5,
        "saw lead": -25.6,
        "saxophone": -30.5,
        "square lead": -25.8,
        "strings": -30.7,
        "trumpet": -28.4,
        "violin": -31.6,
    },
    "comping": {
        "accordion": -32.5,
        "acoustic guitar": -35.3,
        "distorted guitar": -32.1,
        "electric guitar": -28.0,
        "electric piano": -29.9,
        "nylon guitar": -31.9,
        "organ": -35.2,
        "piano": -35.0,
        "saw lead": -24.7,
        "square lead": -25.6,
        "strings": -33.1,
        "viola": -30.4,
        "violin": -30.3,
    },
    "pad": {"accordion": -34.8, "organ": -38.4, "pad": -38.2, "strings": -33.6},
    "bass": {"cello": -33.0, "double bass": -30.7, "electric bass": -30.5, "synth bass": -34.4},
    "drums": {
        "lo-fi": -34.7,
        "house": -29.5,
        "synthwave": -29.6,
        "rock": -29.0,
        "folk": -36.0,
        "waltz": -38.2,
        "jazz trio": -32.0,
        "bossa nova": -34.3,
        "funk": -32.5,
        "chiptune": -29.5,
    },
}
LEVELS = {"lead": -33.5, "comping": -39.0, "viola": -39.0, "bass": -36.5, "pad": -42.0, "drums": -37.0}
"""What each part shall have, in LUFS; styles add to it (`Style.levels`)."""


def volume(part: str, name: str, decibels: float) -> int:
    """MIDI's controller 7 of a part, of an instrument or a style's drums, `decibels` above its usual level.

    FluidSynth's amplitude goes with its square.
    """
    measured = MEASURED["comping" if part == "viola" else part][name]
    return max(1, min(127, round(100 * 10 ** ((LEVELS[part] + decibels - measured) / 40))))
