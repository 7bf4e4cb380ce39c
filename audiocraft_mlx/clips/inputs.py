"""Reads the audio files of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from audiocraft_mlx.clips.notes import NoteInput, read_notes
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.clips.source import AudioInput, SourceClip, read_condition_audio, read_source
from audiocraft_mlx.conditioning.midi import is_midi
from audiocraft_mlx.errors import UsageError


def load_inputs(requests: Sequence[ClipRequest]) -> list[ClipRequest]:
    """The requests with their audio files read, each file once.

    Raises:
        UsageError: a file can't be read, is silent, or is a source with more than two channels.
    """
    read: dict[tuple[Path, float], AudioInput] = {}
    notes: dict[tuple[Path, int | None], NoteInput] = {}
    sources: dict[Path, SourceClip] = {}
    loaded = []
    for request in requests:
        path = request.condition
        if isinstance(path, Path) and request.style is None and is_midi(path):
            of_track = (path, request.midi_track)
            if of_track not in notes:
                notes[of_track] = read_notes(*of_track)
            request = replace(request, melody=notes[of_track])
        elif isinstance(path, Path):
            key = (path, request.duration)
            if key not in read:
                read[key] = read_condition_audio(path, request.duration)
            if request.style is None:
                request = replace(request, melody=read[key])
            else:
                request = replace(request, style=read[key])
        elif path is not None and not isinstance(path, (AudioInput, NoteInput)):
            raise UsageError(f"a melody or style must be a path or an AudioInput, not {type(path).__name__}")
        if isinstance(request.source, Path):
            if request.source not in sources:
                sources[request.source] = read_source(request.source, with_codes=True)
            request = replace(request, source=sources[request.source])
        elif request.source is not None and not isinstance(request.source, SourceClip):
            raise UsageError(f"source must be a path or a SourceClip, not {type(request.source).__name__}")
        loaded.append(request)
    return loaded
