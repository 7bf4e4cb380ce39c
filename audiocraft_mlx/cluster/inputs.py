"""The audio and the notes that clips are made from, apart from their requests: many share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiocraft_mlx.clips.inputs import load_inputs
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.cluster.values import InputKey

_FIELDS = ("melody", "style", "source")


def input_keys(request: ClipRequest) -> list[InputKey]:
    """One for each file that `request`, which hasn't been read, names."""
    keys: list[InputKey] = []
    for name in _FIELDS:
        path = getattr(request, name)
        if isinstance(path, Path):
            part = None if name == "source" else request.duration
            keys.append((f"{name}/{request.midi_track}", str(path), part))
    return keys


def read_inputs(request: ClipRequest) -> dict[InputKey, Any]:
    """What is in the files of `request`. Raises `UsageError`."""
    keys = input_keys(request)
    if not keys:
        return {}
    (loaded,) = load_inputs([request])
    return {key: getattr(loaded, key[0].partition("/")[0]) for key in keys}


def with_inputs(request: ClipRequest, given: Mapping[InputKey, Any]) -> ClipRequest:
    """`request` with what is in its files."""
    fields = {key[0].partition("/")[0]: given[key] for key in input_keys(request)}
    return replace(request, **fields) if fields else request
