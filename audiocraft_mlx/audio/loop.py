"""Cuts a loop of an exact length out of longer music: its end flows into its beginning.

Audio is float32 `[channels, samples]`.

The music around the loop, a lead-in and a lead-out, leaves a choice of where it is cut. Two places, a loop's
length apart, are alike where the spectra around them are. The cross-fade from the later to the earlier one is
tried at the most alike ones, and before each beat. It is made where it adds least to the flux that the music
has there by itself. Where there is a beat, the places must be a whole number of beats apart. Where that isn't
the loop's length (the model plays at a tempo of its own), the loop is stretched to it. At last the loop is
turned around so that it begins on a beat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from audiocraft_mlx.audio.beat import Beat, beat_times, find_beat, first_beat, phase_error
from audiocraft_mlx.audio.flux import (
    Spectra,
    frame_hop,
    log_spectra,
    onset_strength,
    reference_level,
    spectral_flux,
)
from audiocraft_mlx.audio.join import (
    JoinMeasure,
    beat_flux,
    choose_crossfade,
    crossfade,
    highest_flux,
    join_flux,
)
from audiocraft_mlx.audio.stretch import stretch_loop

LEAD_IN_SECONDS, LEAD_OUT_SECONDS = 1.0, 2.0
"""What is made before and after a loop, to choose from."""
# The cross-fade of music with a beat, and those that are tried without one.
_FADE_SECONDS, _LONG_FADES_SECONDS = (0.05,), (0.2, 0.5)
# That right before a beat.
_SHORT_FADE_SECONDS = 0.01
# Those at both ends of a join that a model made anew, and how far inside they may be; and without a beat.
_EDGE_FADE_SECONDS, _EDGE_SECONDS = 0.05, 0.2
_LONG_EDGE_FADE_SECONDS, _LONG_EDGE_SECONDS = 0.15, 0.25
# The spectra of this much time around two places are compared, those near the place the most.
_CONTEXT_SECONDS = 0.25
# Places may be this much more or less than whole beats apart: nobody hears it, and there is more choice.
_BEAT_TOLERANCE = 0.0075
_MOST_STRETCH = 0.08
# Parts of the flux of the beats: up to which a join is good, and what it may add without being heard.
_MOST, _UNHEARD = 0.9, 0.1
# What is before and after a cross-fade is looked at to find its flux.
_AROUND_SECONDS = 0.06
# Cross-fades that are tried, at places that aren't neighbours.
_TRIED, _APART_SECONDS = 12, 0.02
# A loop begins this much before its first beat, or the attack would be its last samples.
_BEFORE_BEAT = 0.005
# Beats on both sides of a join are compared over this time.
_PHASE_SECONDS = 3.0
MOST_BEAT_ERROR = 0.02
"""Seconds. From here on a beat is heard to stumble."""


@dataclass(frozen=True)
class LoopMeasure:
    """How much a loop's join is heard.

    Attributes:
        join: beside the loop's own beats.
        beat_error: by how many seconds the beat comes late after the join; None: there is no beat.
    """

    join: JoinMeasure
    beat_error: float | None

    @property
    def score(self) -> float:
        """Below 1: the join is no more than a beat, and the beat goes on. The lower the better."""
        step = self.join.step / max(self.join.largest_step, 1e-9)
        off_beat = abs(self.beat_error or 0.0) / MOST_BEAT_ERROR
        return max(self.join.score, off_beat, step if self.join.clicks else 0.0)


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop.

    Attributes:
        audio: its samples.
        join: the samples from which and up to which it was cross-faded, or made anew; they may go around its
            end.
        stretch: how much longer it was made: 0.01 for 1 %.
        measure: how much the join is heard.
        beats: how many it has; None: there is no beat, or their number isn't whole.
        beat: that of its music; None: there is none.
        is_filled: the join is music that a model made, with both sides in view, not a cross-fade.
    """

    audio: np.ndarray
    join: tuple[int, int]
    stretch: float
    measure: LoopMeasure
    beats: int | None = None
    beat: Beat | None = None
    is_filled: bool = False


def cut_loop(audio: np.ndarray, rate: int, samples: int) -> Loop:
    """The best loop of `samples` samples in `audio`, which is longer. Raises `ValueError` if it isn't."""
    if audio.shape[1] < samples or samples < 1:
        raise ValueError(f"no loop of {samples} samples is in {audio.shape[1]}")
    spectra = log_spectra(audio, rate)
    beat = find_beat(spectra)
    if beat is not None and samples < 2 * beat.period * rate:
        beat = None
    longest = min(samples // 4, audio.shape[1] - samples)
    fades = {min(round(fade * rate), longest) for fade in (_FADE_SECONDS if beat else _LONG_FADES_SECONDS)}
    joins = [
        join for fade in sorted(fades) for join in _alike_places(spectra, audio.shape[1], samples, fade, beat)
    ]
    joins += _places_at_beats(audio.shape[1], samples, beat, rate, spectra.hop)
    flux, reference = spectral_flux(spectra), reference_level(audio, rate)
    most = beat_flux(spectra, max(fades) / rate, beat)
    steps = np.abs(np.diff(audio, axis=1)).max(axis=0)

    def heard(join: _CrossFade) -> tuple[bool, float, float]:
        own, added, step = _heard(audio, rate, join, flux, reference)
        clicks = step > steps[join.place + join.fade : join.place + join.length - 1].max(initial=0)
        return own > _MOST * most or clicks, max(added - _UNHEARD * most, 0.0), own

    best: Loop | None = None
    for join in sorted(joins, key=heard)[:_TRIED]:
        loop = _join(audio, rate, join, samples, beat)
        if best is None or loop.measure.score < best.measure.score:
            best = loop
        if best.measure.score <= 1:  # nearly always the first
            break
    assert best is not None
    return best


def measure_loop(
    audio: np.ndarray, rate: int, join: tuple[int, int], beat: Beat | None = None
) -> LoopMeasure:
    """How much the join of a loop is heard, from sample `join[0]` to sample `join[1]`; equal: a plain cut.

    Args:
        beat: at whose `period` the loop's beats are looked for; None: it has none.
    """
    samples, width, frame = audio.shape[1], join[1] - join[0], frame_hop(rate)
    # The join in the middle, and around it as much as is compared, however short the loop is.
    turned = np.roll(audio, samples // 2 - (join[0] + width // 2), axis=1)
    beside = min(round(_PHASE_SECONDS * rate), samples)
    around = -(-max(round(_AROUND_SECONDS * rate), beside - samples // 2) // frame) * frame
    spectra = log_spectra(np.pad(turned, ((0, 0), (around, around)), mode="wrap"), rate)
    hop, first = spectra.seconds, around // frame
    start = samples // 2 - width // 2
    flux = join_flux(spectra, (around + start) / rate, (around + start + width) / rate)
    once = Spectra(spectra.frames[first : first + max(1, samples // frame)], frame, rate)
    error = None
    if beat is not None:
        onsets = onset_strength(spectra)
        at, frames = round((around + samples // 2) / frame), round(beside / frame)
        error = phase_error(onsets[at - frames : at], onsets[at : at + frames], hop, beat.period)
        beat = Beat(beat.period, first_beat(onset_strength(once), hop, beat.period), beat.strength)
    steps = np.abs(np.diff(turned, axis=1)).max(axis=0, initial=0)
    begin, end = max(0, start - 1), start + width + 1
    rest = max(steps[:begin].max(initial=0), steps[end:].max(initial=0))
    measure = JoinMeasure(
        flux, beat_flux(once, width / rate, beat), float(steps[begin:end].max(initial=0)), float(rest)
    )
    return LoopMeasure(measure, error)


def fill_join(loop: Loop, rate: int, start: int, new: np.ndarray) -> Loop:
    """`loop` with the music `new`, from sample `start` on and around its end, in place of its join.

    All other samples stay as they are. In the first and the last 0.2 s of `new` (0.25 s without a beat) the
    loop's own music cross-fades with it, where that is heard least. The measure is that of the cross-fade
    which is heard more.
    """
    samples, count = loop.audio.shape[1], new.shape[1]
    turned = np.roll(loop.audio, -start, axis=1)
    old = turned[:, :count]
    fade, reach = _EDGE_FADE_SECONDS, _EDGE_SECONDS
    if loop.beat is None:
        fade, reach = _LONG_EDGE_FADE_SECONDS, _LONG_EDGE_SECONDS
    area = min(round(reach * rate), count // 4)
    width = min(round(fade * rate), area)
    first = choose_crossfade(old[:, :area], new[:, :area], rate, width)
    last = count - area + choose_crossfade(new[:, -area:], old[:, -area:], rate, width)
    parts = [
        old[:, :first],
        crossfade(old[:, first : first + width], new[:, first : first + width]),
        new[:, first + width : last],
        crossfade(new[:, last : last + width], old[:, last : last + width]),
        turned[:, last + width :],
    ]
    audio = np.roll(np.concatenate(parts, axis=1), start, axis=1)
    begin = start % samples
    measures = [
        measure_loop(audio, rate, (begin + place, begin + place + width), loop.beat)
        for place in (first, last)
    ]
    worst = max(measures, key=lambda measure: measure.score)
    return replace(loop, audio=audio, join=(begin, begin + count), measure=worst, is_filled=True)


@dataclass(frozen=True)
class _CrossFade:
    """From the music `length` samples behind `place` to that at `place`, over `fade` samples."""

    place: int
    length: int
    fade: int


def _alike_places(spectra: Spectra, end: int, samples: int, fade: int, beat: Beat | None) -> list[_CrossFade]:
    """Cross-fades where the music is most alike, in audio of `end` samples."""
    hop, frames = spectra.hop, spectra.frames
    context = round(_CONTEXT_SECONDS / spectra.seconds)
    weights = np.bartlett(2 * context + 1).astype(np.float32)
    weights /= weights.sum()
    found: list[tuple[float, int, int]] = []
    for length in _lengths(samples, hop, beat, spectra.rate):
        # Every sample of the loop and of the cross-fade behind it must be there.
        last = (end - fade - length) // hop
        if last < 0:
            continue
        apart = round(length / hop)
        shared = len(frames) - apart
        if shared <= 0:
            continue
        distance = np.abs(frames[apart:] - frames[:shared]).mean(axis=1)
        smooth = np.convolve(np.pad(distance, context, mode="edge"), weights, "valid")
        # The cross-fade is behind its place.
        centre = round(fade / 2 / hop)
        for place in range(min(last + 1, shared - centre)):
            found.append((float(smooth[place + centre]), place * hop, length))
    found.sort()
    chosen: list[_CrossFade] = []
    apart = round(_APART_SECONDS * spectra.rate)
    for _, place, length in found:
        if all(abs(place - other.place) >= apart for other in chosen):
            chosen.append(_CrossFade(place, length, fade))
            if len(chosen) == _TRIED:
                break
    return chosen or [_CrossFade(0, samples, fade)]


def _places_at_beats(end: int, samples: int, beat: Beat | None, rate: int, hop: int) -> list[_CrossFade]:
    """Short cross-fades right before a beat, where music goes on in another way by itself."""
    if beat is None:
        return []
    fade = round(_SHORT_FADE_SECONDS * rate)
    begins = (beat_times(beat, end / rate) - _SHORT_FADE_SECONDS - _BEFORE_BEAT) * rate
    return [
        _CrossFade(round(begin), length, fade)
        for length in _lengths(samples, hop, beat, rate)
        for begin in begins
        if 0 <= round(begin) <= end - length - fade
    ]


def _lengths(samples: int, hop: int, beat: Beat | None, rate: int) -> list[int]:
    """How far apart two places of the music may be, in samples: `samples` if that is possible."""
    if beat is None:
        return [samples]
    period, tolerance = beat.period * rate, _BEAT_TOLERANCE * rate
    whole = max(1, round(samples / period)) * period
    if abs(whole - samples) <= tolerance:
        return [samples]
    if abs(whole / samples - 1) > _MOST_STRETCH:
        return [samples]
    steps = int(tolerance // hop)
    return [round(whole) + step * hop for step in range(-steps, steps + 1)]


def _heard(
    audio: np.ndarray, rate: int, join: _CrossFade, flux: np.ndarray, reference: float
) -> tuple[float, float, float]:
    """The flux of a cross-fade, by how much it is above what both places have by themselves, and its step."""
    around = min(round(_AROUND_SECONDS * rate), join.place + join.length)
    later, end = join.place + join.length, join.place + join.fade
    parts = [audio[:, later - around : later], _faded(audio, join), audio[:, end : end + around]]
    joined = np.concatenate(parts, axis=1)
    spectra = log_spectra(joined, rate, reference)
    own = join_flux(spectra, around / rate, (around + join.fade) / rate)
    there = [
        highest_flux(flux, spectra.seconds, place / rate, (place + join.fade) / rate)
        for place in (join.place, later)
    ]
    step = np.abs(np.diff(joined[:, max(0, around - 1) : around + join.fade + 1], axis=1)).max(initial=0)
    return own, own - min(there), float(step)


def _faded(audio: np.ndarray, join: _CrossFade) -> np.ndarray:
    later = join.place + join.length
    return crossfade(audio[:, later : later + join.fade], audio[:, join.place : join.place + join.fade])


def _join(audio: np.ndarray, rate: int, join: _CrossFade, samples: int, beat: Beat | None) -> Loop:
    """The loop with this cross-fade, as one of `samples`."""
    place, length, fade = join.place, join.length, join.fade
    loop = np.concatenate([_faded(audio, join), audio[:, place + fade : place + length]], axis=1)
    loop = stretch_loop(loop, rate, samples)
    fade = round(fade * samples / length)
    begin = fade % samples
    if beat is not None:
        period = beat.period * samples / length
        onsets = onset_strength(log_spectra(np.tile(loop, 2), rate))[: samples // frame_hop(rate)]
        first = first_beat(onsets, frame_hop(rate) / rate, period)
        beat = Beat(period, first, beat.strength)
        times = beat_times(beat, samples / rate + period) - _BEFORE_BEAT
        # One that the cross-fade ends at is found a little earlier or later now.
        begin = int(times[np.searchsorted(times, fade / rate - _SHORT_FADE_SECONDS)] * rate) % samples
        beat = replace(beat, first=(first - begin / rate) % period)
    loop = np.roll(loop, -begin, axis=1)
    faded = ((-begin) % samples, (-begin) % samples + fade)
    beats = None if beat is None else samples / rate / beat.period
    whole = None if beats is None or abs(beats - round(beats)) > 0.05 else round(beats)
    return Loop(loop, faded, samples / length - 1, measure_loop(loop, rate, faded, beat), whole, beat)
