"""How loud parts are, so that instruments of a SoundFont, which differ, sound equally loud in their part."""

from __future__ import annotations

GAINS: dict[str, float] = {}
"""Decibels that make each instrument as loud as the piano at the same velocity, measured of FluidR3Mono."""
LEVELS = {"lead": 0.0, "comping": -6.0, "viola": -6.0, "bass": -3.0, "pad": -9.0, "drums": -2.0}
"""Decibels of the parts."""


def volume(decibels: float) -> int:
    """MIDI's controller 7 for a level: the amplitude goes with its square, and 100 is 0 dB."""
    return max(1, min(127, round(100 * 10 ** (decibels / 40))))
