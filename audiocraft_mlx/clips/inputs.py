"""The audio files that a clip is made from: a melody, a style, or what it goes on from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiocraft_mlx.audio.read import read_audio, require_non_silent

# Seconds beyond the music's own length that may be heard of a melody or style: a window, and what is needed
# around it.
_BEYOND = 90.0


@dataclass(frozen=True)
class Heard:
    """Float32 `[channels, samples]` at `rate`."""

    audio: np.ndarray
    rate: int


def read_heard(arguments: argparse.Namespace) -> Heard | None:
    """The melody or the style. Of a long file no more is read than may be heard. Raises `UsageError`."""
    path: Path | None = arguments.melody or arguments.style
    if path is None:
        return None
    audio, rate = read_audio(path, seconds=arguments.duration + _BEYOND)
    require_non_silent(audio.mean(axis=0, keepdims=True), str(path))  # the channels are heard together
    return Heard(audio, rate)
