"""Measures of a clip that need no training: of the codec, of bars, of held notes, of repetition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import welch
from spectra import KEY_HOP, MEL_HOP, SAMPLE_RATE, Spectra

FRAME_HERTZ = 50  # of the codec
HARMONICS_UP_TO = 8000
BEATS = {"4/4": 4, "3/4": 3, "6/8": 2}
"""That one taps, in a bar."""
POSITIONS = 16
SEQUENCE_HOP = 0.1
PERMUTATIONS = 200
HELD_WITHIN, ONSET, SILENT = 6.0, 3.0, -50.0  # dB


def comb(audio: np.ndarray) -> float:
    """How far lines at the multiples of the codec's frame rate stand out, in dB; 0 is not at all.

    The power density at each multiple of 50 Hz up to 8 kHz (Welch 1967, windows of a second) against the
    median of its neighbours 4 to 20 Hz away; of all these ratios the median, which tones of music don't move.
    """
    _, density = welch(audio, SAMPLE_RATE, nperseg=SAMPLE_RATE)
    at = np.arange(FRAME_HERTZ, HARMONICS_UP_TO + 1, FRAME_HERTZ)
    away = np.concatenate([np.arange(-20, -3), np.arange(4, 21)])
    near = np.median(density[at[:, None] + away], axis=1)
    return float(np.median(10 * np.log10((density[at] + 1e-20) / (near + 1e-20))))


def full_scale_share(audio: np.ndarray) -> float:
    """The share of samples at or above full scale: what a file would clip."""
    return float((np.abs(audio) >= 1).mean())


def onset_strength(sound: Spectra) -> np.ndarray:
    """Mean rise from frame to frame of all mel bands, of low, middle and high ones: `[4, frames - 1]`."""
    rise = np.maximum(0, np.diff(sound.mel, axis=1))
    return np.stack([rise.mean(0), rise[:12].mean(0), rise[12:48].mean(0), rise[48:].mean(0)])


def autocorrelation(strength: np.ndarray, lags: int) -> np.ndarray:
    """Of each row, unbiased and 1 at lag 0: `[rows, frames]` → `[rows, lags]`; 0 where lags are too long."""
    frames = strength.shape[1]
    centred = strength - strength.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * frames, axis=1)) ** 2
    known = min(lags, frames * 9 // 10)
    sums = np.fft.irfft(spectrum, axis=1)[:, :known] / (frames - np.arange(known))
    return np.pad(sums / (sums[:, :1] + 1e-9), ((0, 0), (0, lags - known)))


def refined_bpm(sound: Spectra, bpm: float) -> float:
    """Within 3 % of `bpm` the tempo at which onsets repeat best over one to eight beats."""
    correlation = autocorrelation(onset_strength(sound)[:1], sound.mel.shape[1])[0]
    tempi = bpm * np.arange(0.97, 1.0301, 0.001)
    period = 60 / tempi * SAMPLE_RATE / MEL_HOP
    sums = sum(np.interp(beats * period, np.arange(len(correlation)), correlation) for beats in range(1, 9))
    return float(tempi[np.argmax(sums)])


def beats(sound: Spectra, bpm: float) -> np.ndarray:
    """Times in seconds: `bpm` apart, where they meet onsets best."""
    strength = onset_strength(sound)[0]
    period = 60 / bpm * SAMPLE_RATE / MEL_HOP  # frames
    smooth = np.convolve(strength, np.hanning(7), "same")
    phases = np.arange(0, period, 1)
    at = np.arange(int(len(smooth) / period))[:, None] * period + phases
    met = np.interp(at, np.arange(len(smooth)), smooth).mean(axis=0)
    first = phases[np.argmax(met)]
    # A rise is that to the frame after it.
    return np.arange(first + 1, sound.mel.shape[1], period) * MEL_HOP / SAMPLE_RATE


def means_between(values: np.ndarray, seconds_per_frame: float, times: np.ndarray) -> np.ndarray:
    """The mean of `values` `[rows, frames]` from each time to the next: `[rows, times - 1]`."""
    edges = np.clip(np.round(times / seconds_per_frame).astype(int), 0, values.shape[1])
    sums = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    counts = np.maximum(1, np.diff(edges))
    return (sums[:, edges[1:]] - sums[:, edges[:-1]]) / counts


def changes_on_bars(sound: Spectra, bpm: float, meter: str) -> tuple[float, float]:
    """The share of bar lines where the harmony changes most, and the same by chance.

    The harmony's change at a beat is 1 - the cosine of the chroma of the beat before and after it. With n bar
    lines in the clip, the share is of those among the n beats with the largest changes. Which of a bar's
    beats is the first is chosen to make it large; by chance it is the mean over shuffled changes, with that
    same choice.
    """
    times = beats(sound, bpm)
    chroma = means_between(np.log1p(sound.chroma), KEY_HOP / SAMPLE_RATE, times)
    chroma = chroma / (np.linalg.norm(chroma, axis=0) + 1e-9)
    change = 1 - (chroma[:, 1:] * chroma[:, :-1]).sum(axis=0)
    random_ = np.random.default_rng(0)
    chance = np.mean([_best_share(random_.permutation(change), BEATS[meter]) for _ in range(PERMUTATIONS)])
    return _best_share(change, BEATS[meter]), float(chance)


def _best_share(change: np.ndarray, beats_in_bar: int) -> float:
    order = np.argsort(-change, kind="stable")
    shares = []
    for first in range(min(beats_in_bar, len(change))):
        lines = np.arange(first, len(change), beats_in_bar)
        shares.append(np.isin(lines, order[: len(lines)]).mean())
    return float(max(shares, default=0.0))


def longest_held(sound: Spectra) -> float:
    """Seconds of the longest note that is among the loudest all the time and isn't struck again.

    A key of the semitone spectrogram is held while it is within 6 dB of the loudest key and doesn't rise by
    3 dB within 120 ms, which a new stroke does.
    """
    level = 20 * np.log10(sound.keys + 1e-4)
    level = median_filter(level, size=(1, 3), mode="nearest")
    held = (level >= level.max(axis=0) - HELD_WITHIN) & (level.max(axis=0) > SILENT)
    held[:, 3:] &= level[:, 3:] - level[:, :-3] < ONSET
    longest, run = 0, np.zeros(len(held), int)
    for frame in held.T:
        run = np.where(frame, run + 1, 0)
        longest = max(longest, int(run.max()))
    return longest * KEY_HOP / SAMPLE_RATE


def sequence(sound: Spectra, times: np.ndarray) -> np.ndarray:
    """24 mel bands and 12 pitch classes between `times`, each with mean 0: float `[36, times - 1]`."""
    mel = sound.mel.reshape(24, -1, sound.mel.shape[1]).mean(axis=1)
    chroma = sound.chroma / (sound.chroma.sum(axis=0) + 1e-3)
    parts = [
        means_between(mel, MEL_HOP / SAMPLE_RATE, times) / 10,
        means_between(chroma, KEY_HOP / SAMPLE_RATE, times) * 6,
    ]
    values = np.concatenate(parts)
    return (values - values.mean(axis=1, keepdims=True)).astype(np.float32)


def self_similarity(sound: Spectra, bpm: float, meter: str) -> float:
    """The mean cosine between two bars of the clip: 1 where all are the same, 0 for noise.

    A bar is what sounds at its 16 positions (`sequence`).
    """
    bar = 60 / bpm * BEATS[meter]
    bars = max(2, int(sound.seconds / bar + 0.05))
    values = sequence(sound, np.arange(bars * POSITIONS + 1) * bar / POSITIONS)
    rows = values.T.reshape(bars, -1)
    rows = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)
    between = rows @ rows.T
    return float(between[np.triu_indices(bars, 1)].mean())


def nearest(clips: Sequence[Spectra], others: Sequence[Spectra]) -> np.ndarray:
    """1 - the correlation of each of `clips` with each of `others`, which aren't shorter, at its best time.

    Of `sequence` each 100 ms, so that a copy has 0 and noise 1: float `[clips, others]`.
    """
    queries = np.stack([_row(sequence(clip, _grid(clip))) for clip in clips])
    distances = np.empty((len(clips), len(others)), np.float32)
    for number, other in enumerate(others):
        values = sequence(other, _grid(other))
        length = queries.shape[1] // len(values)
        windows = [_row(values[:, at : at + length]) for at in range(values.shape[1] - length + 1)]
        distances[:, number] = 1 - (queries @ np.stack(windows).T).max(axis=1)
    return distances


def _grid(sound: Spectra) -> np.ndarray:
    return np.arange(round(sound.seconds / SEQUENCE_HOP) + 1) * SEQUENCE_HOP


def _row(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=1, keepdims=True)
    return centred.ravel() / (np.linalg.norm(centred) + 1e-9)
