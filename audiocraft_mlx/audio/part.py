"""Puts new music in place of a part of a clip. Audio is float32 `[channels, samples]`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.flux import log_spectra, reference_level
from audiocraft_mlx.audio.join import choose_crossfade, crossfade, join_flux
from audiocraft_mlx.audio.splice import at_one_rate

REACH_SECONDS = 0.1
"""Cross-fades are within this of the part's ends."""
_FADE_SECONDS = 0.03
# What `choose_crossfade` sees at both ends of where it may be.
_SEEN_SECONDS = 0.02


@dataclass(frozen=True, eq=False)
class JoinedPart:
    """A clip with new music in it, `[channels, samples]`, and its cross-fades: samples, from and to."""

    audio: np.ndarray
    fades: tuple[tuple[int, int], ...]


def crossfade_part(
    source: np.ndarray,
    source_rate: int,
    start: float,
    end: float,
    new: np.ndarray,
    new_rate: int,
    new_start: float,
    rate: int,
) -> JoinedPart:
    """`source` with the music `new` from about second `start` to second `end`, in one array at `rate`.

    `new` begins at second `new_start` of the source, and has a little more than the part on both sides, as
    far as the source has. It is cross-faded with that where it is heard least: at the beginning in the 0.1 s
    before `start`, where both are the same music, and at the end within 0.1 s of `end`. Where `rate` is the
    source's, all other samples stay as they are. `new` alone is scaled down if it exceeds full scale; it may
    end too early. Mono is repeated where the other one has more channels.
    """
    source, new = at_one_rate(source, source_rate, new, new_rate, rate)
    new = np.clip(new, -1, 1)  # else the file would have to be scaled down for it
    samples = source.shape[1]
    offset = round(new_start * rate)
    # The whole clip with the new music at its place: silence where there is none.
    laid = np.zeros_like(source)
    new = new[:, : samples - offset]
    laid[:, offset : offset + new.shape[1]] = new
    begin, stop = offset, offset + new.shape[1]
    first, last = round(start * rate), min(round(end * rate), samples, stop)
    if last <= first:
        return JoinedPart(source, ())
    reach, seen = round(REACH_SECONDS * rate), round(_SEEN_SECONDS * rate)
    middle = (first + last) // 2
    joined = source.copy()
    joined[:, first:last] = laid[:, first:last]
    fades = []
    if first > 0:
        area = max(begin, first - reach - seen), min(first + seen, middle)
        place, length = _place(source, laid, area, rate)
        joined[:, place:first] = laid[:, place:first]
        _fade(joined, source, laid, place, length)
        fades.append((place, place + length))
    if last < samples:
        place, length = _place(laid, source, _area_of_end(last, stop, middle, rate), rate)
        joined[:, last : place + length] = laid[:, last : place + length]
        joined[:, place:last] = source[:, place:last]
        _fade(joined, laid, source, place, length)
        fades.append((place, place + length))
    return JoinedPart(joined, tuple(fades))


def flux_of_end(new: np.ndarray, source: np.ndarray, last: int, rate: int) -> float:
    """How much the cross-fade at the end of a part, sample `last`, from `new` to `source` is heard: its flux.

    Both are audio of the same time around it; `new` may end before `source` does.
    """
    stop = new.shape[1]
    place, length = _place(new, source, _area_of_end(last, stop, 0, rate), rate)
    joined = np.concatenate([new[:, :place], source[:, place:]], axis=1)
    _fade(joined, new, source, place, length)
    spectra = log_spectra(joined, rate, reference_level(source, rate))
    return join_flux(spectra, place / rate, (place + length) / rate)


def _area_of_end(last: int, stop: int, earliest: int, rate: int) -> tuple[int, int]:
    """Where the cross-fade at the end of a part may be."""
    reach = round(REACH_SECONDS * rate) + round(_SEEN_SECONDS * rate)
    return max(last - reach, earliest), min(last + reach, stop)


def _place(before: np.ndarray, after: np.ndarray, area: tuple[int, int], rate: int) -> tuple[int, int]:
    """Where in an area a cross-fade begins, and how many samples it has."""
    low, high = area[0], max(area)
    length = min(round(_FADE_SECONDS * rate), high - low)
    if not length:
        return low, 0
    return low + choose_crossfade(before[:, low:high], after[:, low:high], rate, length), length


def _fade(joined: np.ndarray, before: np.ndarray, after: np.ndarray, place: int, length: int) -> None:
    """Put the cross-fade into `joined`: beyond full scale only where one of both is."""
    part = slice(place, place + length)
    limit = np.maximum(1, np.maximum(np.abs(before[:, part]), np.abs(after[:, part])))
    joined[:, part] = np.clip(crossfade(before[:, part], after[:, part]), -limit, limit)
