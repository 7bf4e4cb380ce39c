"""How a clip ends: cut off, faded out, or where the music has a place to stop.

Audio is float32 `[channels, samples]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.loudness import fade_out
from audiocraft_mlx.validation import ENDINGS, validate_choice

FADE_SECONDS = 2.0
SEARCH_SECONDS = 2.0
"""A natural ending is within this of the end."""

# Of a natural ending: from a bar line on, and where the music has decayed.
_BAR_FADE, _PAUSE_FADE = 1.0, 0.2
_HOP, _WINDOW = 0.01, 0.04
# The beat is looked for in so much of the end, if that is long enough.
_HEARD_SECONDS, _LEAST_SECONDS = 12.0, 3.0
# A pause is this far (dB) below the music, for so long.
_PAUSE_DB, _PAUSE_SECONDS = -40.0, 0.06
# Beats per minute, where they aren't known: the ones looked for, and the usual one, of a log-normal weight.
_SLOWEST, _FASTEST, _USUAL, _SPREAD = 60.0, 190.0, 120.0, 0.9
# How far onsets in step with a beat stand out, in terms of what noise has: below this is no beat.
_LEAST_PULSE = 3.5
# An onset rises above the mean of so much (s) around it.
_AROUND_SECONDS = 0.5
# A beat's onset may be so far (s) beside its place in the grid.
_SWING = 0.05


@dataclass(frozen=True)
class Ending:
    """Samples: the fade begins at `start`, and the clip ends at `end`."""

    start: int
    end: int
    kind: str
    """`pause`, `bar`, `beat`, or `fade` where there is none of these."""


def end_audio(
    audio: np.ndarray, rate: int, ending: str, fade: float | None = None, earliest: int = 0
) -> np.ndarray:
    """`audio` with one of `ENDINGS`.

    Args:
        fade: seconds of the fade. Default: `FADE_SECONDS`; of a natural ending 1 s from a bar line on.
        earliest: the sample before which a natural ending doesn't change anything.

    Raises:
        UsageError: there is no such ending, or `fade` is negative or not finite.
    """
    validate_choice("ending", ending, ENDINGS)
    if ending == "cut":
        return audio
    if ending == "fade":
        return fade_out(audio, rate, FADE_SECONDS if fade is None else fade)
    found = natural_ending(audio, rate, fade, earliest)
    return fade_out(audio[:, : found.end], rate, (found.end - found.start) / rate)


def natural_ending(
    audio: np.ndarray, rate: int, fade: float | None = None, earliest: int = 0, bpm: float | None = None
) -> Ending:
    """Where `audio` may stop, at most `SEARCH_SECONDS` before its end (or half of it, if it is short).

    In the order of preference: where it has decayed to -40 dB of its level; a bar line of its last twelve
    seconds' beat (of `bpm` if given, else of one that is found); a beat. From there on it is faded out: over
    a moment in a pause, else over `fade` seconds, so that the bar's first note still sounds. The last one of
    each kind is taken. Where there is none of them, the last `fade` seconds are the fade.
    """
    samples = audio.shape[1]
    new = samples - earliest
    search = min(round(SEARCH_SECONDS * rate), new // 2)
    length = min(round(_BAR_FADE * rate), new // 4) if fade is None else min(round(fade * rate), new)
    plain = Ending(samples - length, samples, "fade")
    hop = max(1, round(_HOP * rate))
    heard = audio[:, max(0, samples - round(_HEARD_SECONDS * rate)) :].mean(axis=0)
    before = samples - len(heard)
    if len(heard) < 4 * hop or not search:
        return plain
    pause = _last_pause(heard, rate, hop, (samples - search - before) // hop)
    if pause is not None:
        start = max(before + pause * hop, samples - search)
        return Ending(start, min(samples, start + round(_PAUSE_FADE * rate)), "pause")
    latest = samples - length
    place = _last_beat(heard, rate, hop, (latest - search - before) / hop, (latest - before) / hop, bpm)
    if place is None:
        return plain
    start = max(before + place[0] * hop, latest - search, earliest)
    return Ending(start, min(samples, start + length), place[1])


def _last_pause(heard: np.ndarray, rate: int, hop: int, first: int) -> int | None:
    """The hop where the last pause begins that lasts beyond hop `first`."""
    hops = len(heard) // hop
    power = np.square(heard[: hops * hop], dtype=np.float64).reshape(hops, hop).mean(axis=1)
    quiet = power < np.percentile(power, 95) * 10 ** (_PAUSE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    least = round(_PAUSE_SECONDS / _HOP)
    for begin, end in reversed(edges.reshape(-1, 2)):
        if end > first and (end - max(begin, first) >= least or end == hops):
            return int(begin)
    return None


def _last_beat(
    heard: np.ndarray, rate: int, hop: int, first: float, last: float, bpm: float | None
) -> tuple[int, str] | None:
    """The hop of the last bar line from hop `first` to `last`, or of the last beat; and which it is."""
    if len(heard) < _LEAST_SECONDS * rate:
        return None
    onsets, low = _onsets(heard, rate, hop)
    grid = _find_beat(onsets, bpm)
    if grid is None:
        return None
    period, phase = grid
    beats = np.arange(phase, len(onsets), period)
    reach = round(_SWING / _HOP)
    peaks = np.array([_peak(onsets, beat, reach) for beat in beats])
    # The bar's first beat is the one with the strongest onsets, above all of low tones.
    accents = onsets[peaks] / (onsets[peaks].mean() + 1e-9) + low[peaks] / (low[peaks].mean() + 1e-9)
    downbeat = int(np.argmax([accents[k::4].mean() if len(accents) > k else 0 for k in range(4)]))
    within = (peaks >= first) & (peaks <= last)
    bars = within & (np.arange(len(peaks)) % 4 == downbeat)
    for found, kind in ((bars, "bar"), (within, "beat")):
        if found.any():
            return int(peaks[found][-1]), kind
    return None


def _find_beat(onsets: np.ndarray, bpm: float | None) -> tuple[float, float] | None:
    """The period and the phase of the beat in hops; None if nothing is in step with one."""
    tempi = np.arange(_SLOWEST, _FASTEST, 0.25) if bpm is None else np.array([bpm])
    periods = 60 / tempi / _HOP
    around = np.ones(round(_AROUND_SECONDS / _HOP))
    local = np.convolve(onsets, around, "same") / np.convolve(np.ones(len(onsets)), around, "same")
    strength = np.maximum(onsets - local, 0)
    strength -= strength.mean()
    power = np.sqrt(np.square(strength).sum())
    if not power:
        return None
    turns = np.exp(-2j * np.pi * np.arange(len(strength)) / periods[:, None])
    pulse = turns @ strength / power  # of noise it is about 1
    weight = np.exp(-0.5 * (np.log2(tempi / _USUAL) / _SPREAD) ** 2)
    best = int(np.argmax(np.abs(pulse) * weight))
    if abs(pulse[best]) < _LEAST_PULSE:
        return None
    period = float(periods[best])
    return period, float(-np.angle(pulse[best]) / (2 * np.pi) * period % period)


def _onsets(heard: np.ndarray, rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """The spectral flux at each hop, of all frequencies and of those below 200 Hz."""
    size = round(_WINDOW * rate)
    padded = np.pad(heard, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(heard) // hop]
    spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))))
    rises = np.maximum(np.diff(spectrum, axis=0, prepend=spectrum[:1]), 0)
    lowest = max(2, round(200 * size / rate))
    return rises.mean(axis=1), rises[:, 1:lowest].mean(axis=1)


def _peak(onsets: np.ndarray, beat: float, reach: int) -> int:
    start = max(0, round(beat) - reach)
    return start + int(np.argmax(onsets[start : round(beat) + reach + 1]))
