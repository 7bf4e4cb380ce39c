"""How fast a sound changes: its spectra and their flux. Audio is float32 `[channels, samples]`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Frames of a spectrum: one every 5 ms, each of about 32 ms, in bands that are as wide as the ear's.
_HOP_SECONDS, _WINDOW_SECONDS, _BANDS, _LOWEST_HERTZ = 0.005, 0.032, 40, 40.0
# Flux is the change over this many frames, most of a window: from one frame to the next nearly all is shared.
FLUX_FRAMES = 4
# Levels are in steps of about a factor of e, from 60 dB below the loudest on.
_DEPTH = 1000.0


@dataclass(frozen=True, eq=False)
class Spectra:
    """`frames` float32 `[n, bands]`, levels; frame i is centred at sample i * `hop`."""

    frames: np.ndarray
    hop: int
    rate: int

    @property
    def seconds(self) -> float:
        """From one frame to the next."""
        return self.hop / self.rate


def frame_hop(rate: int) -> int:
    """Samples from one frame to the next: 5 ms."""
    return max(1, round(_HOP_SECONDS * rate))


def log_spectra(audio: np.ndarray, rate: int, reference: float | None = None) -> Spectra:
    """The spectra of `audio`, of all channels together.

    `reference` is the magnitude that levels are relative to (default: near the loudest of `audio`), so that
    those of several pieces of audio can be compared: see `reference_level`.
    """
    magnitudes, hop = _magnitudes(audio, rate)
    if reference is None:
        reference = _reference(magnitudes)
    return Spectra(np.log1p(magnitudes * np.float32(_DEPTH / reference)), hop, rate)


def reference_level(audio: np.ndarray, rate: int) -> float:
    """What `log_spectra` takes as its reference."""
    return _reference(_magnitudes(audio, rate)[0])


def spectral_flux(spectra: Spectra) -> np.ndarray:
    """The change of level in 20 ms around each frame, mean over bands: float32 `[n]`, 0 at both ends."""
    return _flux(np.abs(_change(spectra)))


def onset_strength(spectra: Spectra) -> np.ndarray:
    """As `spectral_flux`, of what becomes louder."""
    return _flux(np.maximum(_change(spectra), 0))


def _magnitudes(audio: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Of each frame's bands, `[n, bands]`, and the samples from one frame to the next."""
    hop, size = frame_hop(rate), 1 << round(math.log2(_WINDOW_SECONDS * rate))
    padded = np.pad(audio, ((0, 0), (size // 2, size // 2)))
    window, filters = np.hanning(size).astype(np.float32), _bands(rate, size)
    power = np.zeros(((padded.shape[1] - size) // hop + 1, _BANDS), np.float32)
    for channel in padded:
        frames = np.lib.stride_tricks.sliding_window_view(channel, size)[::hop]
        for first in range(0, len(frames), 256):
            spectrum = np.fft.rfft(frames[first : first + 256] * window, axis=1)
            power[first : first + 256] += (np.abs(spectrum) ** 2).astype(np.float32) @ filters
    return np.sqrt(power / len(audio)), hop


def _bands(rate: int, size: int) -> np.ndarray:
    """Triangles that are evenly spread over the mel scale: float32 `[bins, bands]`."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (_LOWEST_HERTZ, rate / 2))
    points = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate)[:, None]
    # None is narrower than the bins are apart: low ones would have nothing in them.
    width = np.maximum(np.diff(points), rate / size)
    rising = 1 - (points[1:-1] - bins) / width[:-1]
    falling = 1 - (bins - points[1:-1]) / width[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _reference(magnitudes: np.ndarray) -> float:
    return max(float(np.percentile(magnitudes, 99)), 1e-9) if magnitudes.size else 1.0


def _change(spectra: Spectra) -> np.ndarray:
    return spectra.frames[FLUX_FRAMES:] - spectra.frames[:-FLUX_FRAMES]


def _flux(change: np.ndarray) -> np.ndarray:
    before = FLUX_FRAMES // 2
    return np.pad(change.mean(axis=1), (before, FLUX_FRAMES - before))
