"""A synthesizer: notes and drums as sums of decaying partials and fixed noise.

Its audio is easy to learn for a small codec and a small language model. The same instrument, pitch and length
always give the same samples, bit by bit. Pitches are multiples of 5 Hz (at most about 15 cents from equal
temperament), so that a held note repeats after 10 codec frames of 20 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

SAMPLE_RATE = 32000
HOP = 640  # samples per codec frame
GRID_HZ = 5.0
LEVEL = 0.6  # keeps the loudest loops below full scale


@dataclass(frozen=True)
class Timbre:
    """Partials (multiple of the fundamental, amplitude, seconds to fall to 1/e or None) and an envelope."""

    partials: tuple[tuple[float, float, float | None], ...]
    attack: float
    release: float
    gain: float
    tremolo: float = 0.0
    """Its depth, at `GRID_HZ`, at which a held note still repeats after 10 frames."""


def harmonics(count: int, slope: float, decay: float | None = None, only_odd: bool = False) -> tuple:
    return tuple(
        (n, n**-slope, None if decay is None else decay / n**0.7)
        for n in range(1, count + 1, 2 if only_odd else 1)
    )


TIMBRES = {
    "piano": Timbre(harmonics(8, 1.3, 0.7), 0.004, 0.06, 0.30),
    "guitar": Timbre(harmonics(10, 0.9, 0.35), 0.002, 0.03, 0.20),
    "strings": Timbre(harmonics(8, 1.1), 0.09, 0.09, 0.15),
    "flute": Timbre(((1, 1.0, None), (2, 0.22, None), (3, 0.06, None)), 0.045, 0.05, 0.30),
    "organ": Timbre(
        ((1, 1.0, None), (2, 0.8, None), (3, 0.5, None), (4, 0.4, None), (6, 0.25, None)), 0.008, 0.02, 0.14
    ),
    "marimba": Timbre(((1, 1.0, 0.22), (4, 0.35, 0.06), (10, 0.1, 0.02)), 0.002, 0.03, 0.38),
    "synth": Timbre(harmonics(11, 0.8, None, only_odd=True), 0.004, 0.015, 0.15),
    "bass": Timbre(((1, 1.0, 1.2), (2, 0.45, 0.6), (3, 0.15, 0.3)), 0.005, 0.03, 0.30),
    # Not among the instruments of the demo model's training, neither of its codec nor of its language model:
    # `vibraphone.py` has the clips of it that an adapter is trained on.
    "vibraphone": Timbre(((1, 1.0, 0.9), (4, 0.25, 0.3)), 0.003, 0.06, 0.34, tremolo=0.8),
}


def frequency(key: int) -> float:
    """Frequency of a MIDI key in Hz, rounded to a multiple of `GRID_HZ`."""
    return GRID_HZ * round(440 * 2 ** ((key - 69) / 12) / GRID_HZ)


@cache
def note(instrument: str, key: int, frames: int) -> np.ndarray:
    """A note of `frames` codec frames plus its release, float32 `[samples]`."""
    timbre = TIMBRES[instrument]
    held = frames * HOP
    release = int(timbre.release * SAMPLE_RATE)
    t = np.arange(held + release) / SAMPLE_RATE
    wave = np.zeros_like(t)
    for multiple, amplitude, decay in timbre.partials:
        hertz = multiple * frequency(key)
        if hertz < 7000:
            partial = amplitude * np.sin(2 * np.pi * hertz * t)
            wave += partial if decay is None else partial * np.exp(-t / decay)
    envelope = np.minimum(1, t / timbre.attack)
    envelope[held:] *= np.linspace(1, 0, release)
    if timbre.tremolo:
        envelope *= 1 - timbre.tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * GRID_HZ * t))
    return (timbre.gain * wave * envelope).astype(np.float32)


@cache
def drum(kind: str) -> np.ndarray:
    """The sample of a drum, float32 `[samples]`."""
    noise = np.random.default_rng(7).standard_normal(SAMPLE_RATE)
    spectrum, hertz = np.fft.rfft(noise), np.fft.rfftfreq(SAMPLE_RATE, 1 / SAMPLE_RATE)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    if kind == "kick":
        wave = 0.75 * np.sin(2 * np.pi * (50 * t + 3.5 * (1 - np.exp(-t / 0.025)))) * np.exp(-t / 0.09)
    elif kind == "snare":
        band = np.fft.irfft(spectrum * ((hertz > 800) & (hertz < 6000)))
        wave = 0.16 * band * np.exp(-t / 0.05) + 0.35 * np.sin(2 * np.pi * 185 * t) * np.exp(-t / 0.05)
    else:  # hat
        band = np.fft.irfft(spectrum * ((hertz > 6000) & (hertz < 11000)))
        wave = 0.10 * band * np.exp(-t / 0.016)
    return (wave[: int(0.3 * SAMPLE_RATE)]).astype(np.float32)


def render(events: list[tuple[int, str, int, int]], frames: int) -> np.ndarray:
    """Mix events (frame, instrument or drum, MIDI key, length in frames): float32 `[frames * HOP]`."""
    audio = np.zeros(frames * HOP, np.float32)
    for frame, name, key, length in events:
        sound = note(name, key, length) if name in TIMBRES else drum(name)
        start = frame * HOP
        end = min(len(audio), start + len(sound))
        audio[start:end] += LEVEL * sound[: end - start]
    return audio
