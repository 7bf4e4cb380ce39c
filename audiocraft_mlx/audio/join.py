"""Joins: how much one is heard, where one is heard least, and the cross-fade.

Audio is float32 `[channels, samples]`. A join is heard by its spectral flux: how fast the spectrum changes.
Music changes too, most at its beats. So a join's flux is compared with that of the same music's beats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.beat import Beat, beat_times
from audiocraft_mlx.audio.flux import (
    FLUX_FRAMES,
    Spectra,
    frame_hop,
    log_spectra,
    reference_level,
    spectral_flux,
)

# Without a beat the strongest change in each such stretch of time takes its place.
_STRETCH_SECONDS = 0.5
# What is heard of a join is this much around it.
_AROUND_SECONDS = 0.02


@dataclass(frozen=True)
class JoinMeasure:
    """How much a join is heard.

    Attributes:
        flux: the highest spectral flux at the join.
        beat_flux: the 95th percentile of the flux at the same audio's own beats.
        step: the largest difference of neighbouring samples at the join.
        largest_step: that in the rest of the audio.
    """

    flux: float
    beat_flux: float
    step: float
    largest_step: float

    @property
    def score(self) -> float:
        """Below 1: the join changes the sound less than a beat does. The lower the better."""
        return self.flux / max(self.beat_flux, 1e-9)

    @property
    def clicks(self) -> bool:
        return self.step > self.largest_step


def beat_flux(spectra: Spectra, width: float = 0.0, beat: Beat | None = None) -> float:
    """The 95th percentile of the flux at the beats, each the highest within `width` seconds around it.

    `width` is that of the join that is compared with them. Without a `beat` the highest in each half second
    is taken instead.
    """
    flux = spectral_flux(spectra)
    seconds = len(flux) * spectra.seconds
    half = max(1, round((width / 2 + _AROUND_SECONDS) / spectra.seconds))
    if beat is None:
        length = round(_STRETCH_SECONDS / spectra.seconds)
        values = [float(flux[start : start + length].max()) for start in range(0, len(flux), length)]
    else:
        places = np.round(beat_times(beat, seconds) / spectra.seconds).astype(int)
        values = [float(flux[max(0, place - half) : place + half + 1].max()) for place in places]
    return float(np.percentile(values, 95)) if values else 0.0


def join_flux(spectra: Spectra, start: float, end: float) -> float:
    """The highest flux of a cross-fade from second `start` to second `end`."""
    return highest_flux(spectral_flux(spectra), spectra.seconds, start, end)


def highest_flux(flux: np.ndarray, hop: float, start: float, end: float) -> float:
    """The same of `flux`, which is that of frames `hop` seconds apart."""
    first = max(0, math.floor((start - _AROUND_SECONDS) / hop))
    return float(flux[first : math.ceil((end + _AROUND_SECONDS) / hop) + 1].max(initial=0))


def measure_join(
    audio: np.ndarray,
    rate: int,
    start: int,
    end: int,
    beat: Beat | None = None,
    comparison: float | None = None,
) -> JoinMeasure:
    """How much the cross-fade from sample `start` to sample `end` of `audio` is heard; equal: a plain cut.

    Args:
        beat: that of `audio`; None: it has none.
        comparison: the `beat_flux` to compare with, of spectra with the reference level of `audio`; by
            default that of `audio`.
    """
    spectra = log_spectra(audio, rate)
    if comparison is None:
        comparison = beat_flux(spectra, (end - start) / rate, beat)
    steps = np.abs(np.diff(audio, axis=1)).max(axis=0, initial=0)
    first, last = max(0, start - 1), end + 1
    rest = max(steps[:first].max(initial=0), steps[last:].max(initial=0))
    return JoinMeasure(
        join_flux(spectra, start / rate, end / rate),
        comparison,
        float(steps[first:last].max(initial=0)),
        float(rest),
    )


def crossfade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`before` going over into `after`, both `[channels, n]`, with equal power.

    The usual gains, a quarter of a cosine and of a sine, keep the power of sounds that have nothing to do
    with each other. What is alike would become louder: the gains are divided by what that adds.
    """
    count = before.shape[1]
    phase = (np.arange(count, dtype=np.float32) + 0.5) / max(count, 1) * np.float32(math.pi / 2)
    down, up = np.cos(phase), np.sin(phase)
    norm = math.sqrt(float(np.vdot(before, before)) * float(np.vdot(after, after)))
    likeness = float(np.vdot(before, after)) / norm if norm > 0 else 0.0
    gain = 1 / np.sqrt(1 + 2 * max(0.0, likeness) * down * up)
    return ((before * down + after * up) * gain).astype(np.float32)


def choose_crossfade(before: np.ndarray, after: np.ndarray, rate: int, length: int) -> int:
    """The sample where a cross-fade of `length` samples from `before` to `after` is heard least.

    Both are audio of the same time, `[channels, n]`. It is tried every 5 ms, but not in the 20 ms at both
    ends, which are needed to measure it. 0 if there is no room for that.
    """
    total = min(before.shape[1], after.shape[1])
    before, after = before[:, :total], after[:, :total]
    hop = frame_hop(rate)
    edge = FLUX_FRAMES * hop
    places = range(edge, total - length - edge + 1, hop) or range(0, total - length + 1, hop)
    reference = reference_level(np.concatenate([before, after], axis=1), rate)
    best, lowest = 0, math.inf
    for place in places:
        end = place + length
        mixed = np.concatenate(
            [before[:, :place], crossfade(before[:, place:end], after[:, place:end]), after[:, end:]], axis=1
        )
        flux = join_flux(log_spectra(mixed, rate, reference), place / rate, end / rate)
        if flux < lowest:
            best, lowest = place, flux
    return best
