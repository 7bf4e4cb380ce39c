"""The beat of a sound, from its onsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.flux import Spectra, onset_strength

# Beats may be this far apart, and 0.5 s is the most usual.
_BEAT_SECONDS, _USUAL_BEAT = (0.25, 1.5), 0.5
# Of the beats on the other side of a join: below that there is hardly a beat.
_WEAK = 0.3
# Half a period later they are this much alike, too, in all: then the beats are half as far apart.
_BOTH_HALVES = 1.3
# How alike the onsets a beat apart are in music that has a beat (a correlation), 1 at most.
_BEAT_STRENGTH = 0.4


@dataclass(frozen=True)
class Beat:
    """A steady beat: `period` and the time of a `first` one, in seconds; `strength` from 0 to 1."""

    period: float
    first: float
    strength: float


def find_beat(spectra: Spectra, usual: float = _USUAL_BEAT) -> Beat | None:
    """The beat, None if there is none. Of several that fit (each beat, each second one) one near `usual`
    seconds is preferred."""
    onsets = onset_strength(spectra).astype(np.float64)
    hop = spectra.seconds
    low, high = (round(seconds / hop) for seconds in _BEAT_SECONDS)
    if len(onsets) < 2 * high:
        high = len(onsets) // 2
    if high <= low + 2:
        return None
    correlation = _autocorrelation(onsets)
    lags = np.arange(low, high)
    prior = np.exp(-0.5 * np.log2(lags * hop / usual) ** 2)
    peaks = (correlation[lags] >= correlation[lags - 1]) & (correlation[lags] >= correlation[lags + 1])
    if not peaks.any():
        return None
    best = int(lags[np.argmax(np.where(peaks, correlation[lags] * prior, -1))])
    strength = float(correlation[best])
    if strength < _BEAT_STRENGTH:
        return None
    # The peaks at several beats' distance say the period more exactly.
    period, beats = _peak_near(correlation, best, 2), 1
    while (beats + 1) * period * 1.5 < len(onsets):
        beats += 1
        period = _peak_near(correlation, round(beats * period), max(2, round(0.01 / hop))) / beats
    return Beat(period * hop, first_beat(onsets, hop, period * hop), strength)


def first_beat(onsets: np.ndarray, hop: float, period: float) -> float:
    """When the first of the beats `period` seconds apart is; `onsets` are of frames `hop` seconds apart."""
    profile = _folded(onsets, period / hop)
    first = _peak_near(np.tile(profile, 3), int(np.argmax(profile)) + len(profile), 2) % len(profile)
    return first * period / len(profile)


def beat_times(beat: Beat, seconds: float) -> np.ndarray:
    """When the beats of so much audio are, in seconds."""
    return np.arange(beat.first % beat.period, seconds, beat.period)


def phase_error(late: np.ndarray, early: np.ndarray, hop: float, period: float) -> float | None:
    """By how many seconds the beats of `early` come too late to go on the beats of `late`.

    Both are the onset strengths of frames `hop` seconds apart: `early` begins where `late` ends. None: on one
    side there is hardly a beat.
    """
    frames = period / hop
    # Both are counted from the join, so that an error of the period weighs as little as possible.
    first, second = _folded(late, frames, -len(late)), _folded(early, frames)
    if min(first.max(), second.max()) < _WEAK * max(first.max(), second.max()):
        return None
    # How the second is to be moved to be most like the first.
    spectrum = np.fft.rfft(second - second.mean()) * np.conj(np.fft.rfft(first - first.mean()))
    likeness = np.fft.irfft(spectrum, len(first))
    best = _peak_near(np.tile(likeness, 3), int(np.argmax(likeness)) + len(first), 2) - len(first)
    error = best / len(first) * period
    # Beats that are half as far apart, of which others are the strong ones, go on all the same.
    halves = likeness + np.roll(likeness, len(first) // 2)
    if len(first) > 1 and halves.max() > _BOTH_HALVES * likeness.max():
        period /= 2
    return float((error + period / 2) % period - period / 2)


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Of each lag: 1 for 0, and not less for longer ones only because there are fewer pairs."""
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))
    sums = np.fft.irfft(np.abs(spectrum) ** 2)[: len(centred)]
    pairs = len(centred) - np.arange(len(centred))
    return sums / pairs / max(sums[0] / len(centred), 1e-12)


def _peak_near(values: np.ndarray, place: int, reach: int) -> float:
    """Where the highest of `values` is, at most `reach` from `place`; between two of them by a parabola."""
    low, high = max(1, place - reach), min(len(values) - 1, place + reach + 1)
    if high <= low:
        return float(place)
    peak = low + int(np.argmax(values[low:high]))
    if peak + 1 >= len(values):
        return float(peak)
    left, middle, right = values[peak - 1 : peak + 2]
    curve = left - 2 * middle + right
    shift = 0.5 * (left - right) / curve if curve < 0 else 0.0
    return peak + float(np.clip(shift, -0.5, 0.5))


def _folded(onsets: np.ndarray, period: float, begin: int = 0) -> np.ndarray:
    """The mean onset strength at each place between two beats, `period` frames apart: about one a frame.

    `begin` is what the first frame is counted as."""
    count = max(1, round(period))
    places = np.round((np.arange(len(onsets)) + begin) % period / period * count).astype(int) % count
    sums = np.bincount(places, onsets, minlength=count)
    return sums / np.maximum(np.bincount(places, minlength=count), 1)
