"""A list of clips in portions whose audio files fit into memory together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from audiocraft_mlx.clips.prompt_lines import ListedClip

# Some 60 MB each, if they are songs: beyond, all clips of a batch would seldom find each other anyway.
_MOST_FILES = 16


def portions(clips: Sequence[ListedClip], most_files: int = _MOST_FILES) -> Iterator[range]:
    """The positions of `clips` that are planned together, with up to `most_files` different files that they
    read: all of them, if they read no more."""
    start, files = 0, set[Path]()
    for position, clip in enumerate(clips):
        request = clip.request
        read = {path for path in (request.condition, request.source) if isinstance(path, Path)}
        if position > start and len(files | read) > most_files:
            yield range(start, position)
            start, files = position, set()
        files |= read
    if start < len(clips):
        yield range(start, len(clips))
