"""Joins a source clip and the music that continues it or replaces a part of it.

Audio is float32 `[channels, samples]`.
"""

from __future__ import annotations

import numpy as np

from audiocraft_mlx.audio.resample import resample

# The step at the joint is faded out over this time.
_JOINT_SECONDS = 0.01


def append_continuation(
    source: np.ndarray,
    source_rate: int,
    new: np.ndarray,
    new_rate: int,
    rate: int,
    smooth: bool = True,
) -> np.ndarray:
    """`source` and the music `new` that continues it, in one array at `rate`.

    Where `rate` is the source's, its samples stay as they are. `new` alone is scaled down if it exceeds full
    scale. Mono is repeated where the other one has more channels. `smooth`: see `smooth_joint`.
    """
    before, new = at_one_rate(source, source_rate, new, new_rate, rate)
    return np.concatenate([before, smooth_joint(before, new, rate) if smooth else new], axis=1)


def replace_part(
    source: np.ndarray,
    source_rate: int,
    start: float,
    end: float,
    new: np.ndarray,
    new_rate: int,
    new_start: float,
    rate: int,
) -> np.ndarray:
    """`source` with the music `new` from second `start` to second `end`, in one array at `rate`.

    `new` begins at second `new_start` of the source, `start` or a little before. As `append_continuation`
    otherwise, and there is a joint at either end.
    """
    source, new = at_one_rate(source, source_rate, new, new_rate, rate)
    first, last = round(start * rate), min(round(end * rate), source.shape[1])
    skipped = max(0, round((start - new_start) * rate))
    part = new[:, skipped : skipped + last - first]
    last = first + part.shape[1]
    before, after = source[:, :first], source[:, last:]
    if before.shape[1]:
        part = smooth_joint(before, part, rate)
    if after.shape[1]:
        part = smooth_joint(after[:, ::-1], part[:, ::-1], rate)[:, ::-1]
    return np.concatenate([before, part, after], axis=1)


def at_one_rate(
    source: np.ndarray, source_rate: int, new: np.ndarray, new_rate: int, rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """`source` and `new` at `rate`, with as many channels; `new` is scaled down if it exceeds full scale."""
    new = resample(new / max(1.0, float(np.abs(new).max())), new_rate, rate)
    source = broadcast_channels(resample(source, source_rate, rate), len(new))
    return source, broadcast_channels(new, len(source))


def smooth_joint(before: np.ndarray, new: np.ndarray, rate: int) -> np.ndarray:
    """`new`, changed to start at the level where `before` ends; both with the same channels.

    The codec reproduces the source only approximately, so `new` starts at another level: a click. A crossfade
    would need the source to overlap with it, and a fade-in starts with a step to zero, another click. So the
    step is subtracted, and that correction fades out within milliseconds.
    """
    length = min(round(_JOINT_SECONDS * rate), new.shape[1])
    fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(length, dtype=np.float32) / length)
    smooth = new.copy()
    smooth[:, :length] += (before[:, -1:] - new[:, :1]) * fade
    limit = np.maximum(1, np.abs(before[:, -1:]))  # a float source may end beyond full scale
    return np.clip(smooth, -limit, limit)


def broadcast_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Mono repeated to `channels`; audio with at least `channels` is unchanged."""
    return np.repeat(audio, channels, axis=0) if len(audio) < channels else audio
