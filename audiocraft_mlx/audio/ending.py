"""How a clip ends: cut off, faded out, or where the music has a place to stop.

Audio is float32 `[channels, samples]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from audiocraft_mlx.audio.beat import beat_times, find_beat
from audiocraft_mlx.audio.flux import log_spectra, onset_strength
from audiocraft_mlx.audio.loudness import fade_out
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import ENDINGS, validate_choice, validate_number

FADE_SECONDS = 2.0
SEARCH_SECONDS = 2.0
"""A natural ending is within this of the end."""

# Of a natural ending: from a bar line on, and where the music has decayed.
_BAR_FADE, _PAUSE_FADE = 1.0, 0.2
_HOP = 0.01
# The beat is looked for in so much of the end, if that is long enough.
_HEARD_SECONDS, _LEAST_SECONDS = 12.0, 3.0
# A pause is this far (dB) below the music, for so long.
_PAUSE_DB, _PAUSE_SECONDS = -40.0, 0.06
# A beat's onset may be so far (s) beside its place in the grid.
_SWING = 0.05
# Those below about 200 Hz.
_LOW_BANDS = 4


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
        audio: also one of MLX's arrays.
        fade: seconds of the fade. Default: `FADE_SECONDS`; of a natural ending 1 s from a bar line on.
        earliest: the sample before which a natural ending doesn't change anything.

    Raises:
        UsageError: there is no such ending, `fade` is negative or not finite, or `audio` is a batch.
    """
    validate_choice("ending", ending, ENDINGS)
    audio = np.asarray(audio)
    if audio.ndim != 2:
        raise UsageError(f"the audio of a clip must be [channels, samples], not {list(audio.shape)}")
    if fade is not None:
        validate_number("the fade-out", fade, "a number of seconds, 0 or more", lambda value: value >= 0)
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
    heard = audio[:, max(0, samples - round(_HEARD_SECONDS * rate)) :]
    before = samples - heard.shape[1]
    if heard.shape[1] < 4 * hop or not search:
        return plain
    pause = _last_pause(heard, rate, hop, (samples - search - before) // hop)
    if pause is not None:
        start = max(before + pause * hop, samples - search)
        return Ending(start, min(samples, start + round(_PAUSE_FADE * rate)), "pause")
    latest = samples - length
    place = _last_beat(heard, rate, (latest - search - before) / rate, (latest - before) / rate, bpm)
    if place is None:
        return plain
    start = max(before + round(place[0] * rate), latest - search, earliest)
    return Ending(start, min(samples, start + length), place[1])


def _last_pause(heard: np.ndarray, rate: int, hop: int, first: int) -> int | None:
    """The hop where the last pause begins that lasts beyond hop `first`."""
    hops = heard.shape[1] // hop
    power = (
        np.square(heard[:, : hops * hop], dtype=np.float64).reshape(len(heard), hops, hop).mean(axis=(0, 2))
    )
    quiet = power < np.percentile(power, 95) * 10 ** (_PAUSE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    least = round(_PAUSE_SECONDS / _HOP)
    for begin, end in reversed(edges.reshape(-1, 2)):
        if end > first and (end - max(begin, first) >= least or end == hops):
            return int(begin)
    return None


def _last_beat(
    heard: np.ndarray, rate: int, first: float, last: float, bpm: float | None
) -> tuple[float, str] | None:
    """The second of the last bar line from second `first` to `last`, or of the last beat; and which it is."""
    if heard.shape[1] < _LEAST_SECONDS * rate:
        return None
    spectra = log_spectra(heard, rate)
    beat = find_beat(spectra) if bpm is None else find_beat(spectra, 60 / bpm)
    if beat is None:
        return None
    onsets, low = (
        onset_strength(spectra),
        onset_strength(replace(spectra, frames=spectra.frames[:, :_LOW_BANDS])),
    )
    reach = round(_SWING / spectra.seconds)
    beats = np.round(beat_times(beat, heard.shape[1] / rate) / spectra.seconds).astype(int)
    peaks = np.array([_peak(onsets, place, reach) for place in beats if place < len(onsets)])
    # The bar's first beat is the one with the strongest onsets, above all of low tones.
    accents = onsets[peaks] / (onsets[peaks].mean() + 1e-9) + low[peaks] / (low[peaks].mean() + 1e-9)
    downbeat = int(np.argmax([accents[k::4].mean() if len(accents) > k else 0 for k in range(4)]))
    times = peaks * spectra.seconds
    within = (times >= first) & (times <= last)
    bars = within & (np.arange(len(peaks)) % 4 == downbeat)
    for found, kind in ((bars, "bar"), (within, "beat")):
        if found.any():
            return float(times[found][-1]), kind
    return None


def _peak(onsets: np.ndarray, place: int, reach: int) -> int:
    start = max(0, place - reach)
    return start + int(np.argmax(onsets[start : place + reach + 1]))
