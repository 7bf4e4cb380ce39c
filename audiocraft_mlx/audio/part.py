"""Puts new music in place of a part of a clip. Audio is float32 `[channels, samples]`."""

from __future__ import annotations

import numpy as np

from audiocraft_mlx.audio.join import choose_crossfade, crossfade
from audiocraft_mlx.audio.resample import resample
from audiocraft_mlx.audio.splice import broadcast_channels

REACH_SECONDS = 0.1
"""Cross-fades are within this of the part's ends."""
_FADE_SECONDS = 0.03
# What `choose_crossfade` sees at both ends of where it may be.
_SEEN_SECONDS = 0.02


def crossfade_part(
    source: np.ndarray,
    source_rate: int,
    start: float,
    end: float,
    new: np.ndarray,
    new_rate: int,
    new_start: float,
    rate: int,
) -> np.ndarray:
    """`source` with the music `new` from about second `start` to second `end`, in one array at `rate`.

    `new` begins at second `new_start` of the source, and has a little more than the part on both sides, as
    far as the source has. It is cross-faded with that where it is heard least: at the beginning in the 0.1 s
    before `start`, where both are the same music, and at the end within 0.1 s of `end`. Where `rate` is the
    source's, all other samples stay as they are. `new` alone is scaled down if it exceeds full scale; it may
    end too early. Mono is repeated where the other one has more channels.
    """
    new = new / max(1.0, float(np.abs(new).max()))
    new = resample(new, new_rate, rate)
    source = broadcast_channels(resample(source, source_rate, rate), len(new))
    samples = source.shape[1]
    offset = round(new_start * rate)
    # The whole clip with the new music at its place: silence where there is none.
    laid = np.zeros_like(source)
    new = broadcast_channels(new, len(source))[:, : samples - offset]
    laid[:, offset : offset + new.shape[1]] = new
    begin, stop = offset, offset + new.shape[1]
    first, last = round(start * rate), min(round(end * rate), samples, stop)
    if last <= first:
        return source
    reach, seen = round(REACH_SECONDS * rate), round(_SEEN_SECONDS * rate)
    middle = (first + last) // 2
    joined = source.copy()
    low, high = 0, samples
    if first > 0:
        area = max(begin, first - reach - seen), min(first + seen, middle)
        low = _join(joined, source, laid, area, rate)
    if last < samples:
        area = max(last - reach - seen, middle, low), min(last + reach + seen, stop)
        high = _join(joined, laid, source, area, rate, at_end=True)
    joined[:, low:high] = laid[:, low:high]
    return joined


def _join(
    joined: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    area: tuple[int, int],
    rate: int,
    at_end: bool = False,
) -> int:
    """Put a cross-fade from `before` to `after` into an area of `joined`; the sample at its inner end."""
    low, high = area
    if high <= low:
        return low
    length = min(round(_FADE_SECONDS * rate), high - low)
    place = low + choose_crossfade(before[:, low:high], after[:, low:high], rate, length)
    joined[:, place : place + length] = crossfade(
        before[:, place : place + length], after[:, place : place + length]
    )
    return place if at_end else place + length
