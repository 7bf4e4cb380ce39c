"""The names of the files of a list of clips: the same for all processes that share the list."""

from __future__ import annotations

import os
import platform
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from audiocraft_mlx.audio.formats import BIT_DEPTHS
from audiocraft_mlx.clips.prompt_lines import ListedClip


def clip_paths(clips: Sequence[ListedClip], path: Path, first: int = 1) -> list[Path | None]:
    """The file of each clip; None for takes that aren't kept.

    It is what the clip's line says, or else `path`; of several clips with their numbers among all clips that
    are kept, from `first` on, and the ending of the clip's own format.
    """
    count = sum(clip.take < clip.kept for clip in clips)
    numbers = iter(range(first, first + count))
    name = namer(path, count, first)
    paths: list[Path | None] = []
    for clip in clips:
        if clip.take >= clip.kept:
            paths.append(None)
            continue
        number = next(numbers)
        if clip.path is not None:
            paths.append(namer(clip.path, clip.kept)(clip.take + 1))
        else:
            paths.append(_with_format(name(number), clip.output.audio_format))
    return paths


def namer(path: Path, count: int, first: int = 1) -> Callable[[int], Path]:
    """Numbers → names: `name-1.wav` …, with leading zeros that keep them in order; of one only, `path`."""
    if count == 1:
        return lambda number: path
    digits, stem, suffix = len(str(first + count - 1)), path.stem, path.suffix
    return lambda number: path.with_name(f"{stem}-{number:0{digits}}{suffix}")


def file_keys(paths: Iterable[Path | None]) -> list[str | None]:
    """What is equal for paths that name the same file, which needn't be there; None stays None.

    Links to folders are followed, links to files aren't.
    """
    folders: dict[Path, str] = {}
    keys: list[str | None] = []
    for path in paths:
        if path is None:
            keys.append(None)
            continue
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        key = os.path.join(folders[path.parent], path.name)
        if platform.system() == "Darwin":  # where upper and lower case are the same name
            key = unicodedata.normalize("NFC", key).casefold()
        keys.append(key)
    return keys


def _with_format(path: Path, name: str) -> Path:
    extension = path.suffix[1:].lower()
    return path if extension == name or extension not in BIT_DEPTHS else path.with_suffix(f".{name}")
