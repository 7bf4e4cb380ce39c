"""The audio files of a request: a melody, a style, or a source clip that is continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audiocraft_mlx.audio.read import read_audio, require_non_silent
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.clips.source import SourceClip, read_source
from audiocraft_mlx.errors import UsageError

# A melody or style is read for the clip's duration and this: at most one window, and what separation needs
# around it (`GenModel.max_condition_duration`).
_EXTRA_SECONDS = 90.0


@dataclass(frozen=True, eq=False)
class AudioInput:
    """A melody or a style: float32 `[channels, samples]` at `rate`. Rows that share one encode it once."""

    audio: np.ndarray
    rate: int
    name: str | None = None
    """Its file, for the metadata."""


def load_inputs(requests: Sequence[ClipRequest]) -> list[ClipRequest]:
    """The requests with their audio files read, each file once.

    Raises:
        UsageError: a file can't be read, is silent, or is a source with more than two channels.
    """
    read: dict[tuple[Path, float], AudioInput] = {}
    sources: dict[Path, SourceClip] = {}
    loaded = []
    for request in requests:
        path = request.condition
        if isinstance(path, Path):
            key = (path, request.duration)
            if key not in read:
                read[key] = read_condition_audio(path, request.duration)
            if request.style is None:
                request = replace(request, melody=read[key])
            else:
                request = replace(request, style=read[key])
        elif path is not None and not isinstance(path, AudioInput):
            raise UsageError(f"a melody or style must be a path or an AudioInput, not {type(path).__name__}")
        if isinstance(request.source, Path):
            if request.source not in sources:
                sources[request.source] = read_source(request.source)
            request = replace(request, source=sources[request.source])
        elif request.source is not None and not isinstance(request.source, SourceClip):
            raise UsageError(f"source must be a path or a SourceClip, not {type(request.source).__name__}")
        loaded.append(request)
    return loaded


def read_condition_audio(path: Path, duration: float) -> AudioInput:
    """A melody or style for a clip of `duration` seconds: no more of a long file than is used.

    Raises `UsageError`.
    """
    audio, rate = read_audio(path, seconds=duration + _EXTRA_SECONDS)
    require_non_silent(audio.mean(axis=0, keepdims=True), str(path))  # the model takes the channels' mean
    return AudioInput(audio, rate, str(path))
