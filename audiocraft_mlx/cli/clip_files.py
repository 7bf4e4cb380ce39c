"""The names of the files that one call of a command writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.files import check_writable, follow_links, next_free_path, remove_stale_parts


@dataclass(frozen=True)
class ClipFiles:
    """Where a clip goes."""

    path: Path | None
    """None: to standard output alone."""
    plot: Path | None
    overwrite: bool
    """Whether files at these names are replaced: only those that the user has named."""

    def resolve_path(self, path: Path) -> Path:
        """`path`, or the first free name beside it."""
        return path if self.overwrite else next_free_path(path)


def plan_files(command: GenerateClips) -> list[ClipFiles]:
    """The files of each clip. Several clips are numbered; default names have numbers that are free now.

    Loops that aren't kept have none: see `LoopTakes`.

    Raises:
        OutputError: a file can't be written where it should be.
    """
    kept = command.takes if command.keep_best is None else command.keep_best
    count = len(command.requests) // command.takes * kept
    paths: Sequence[Path | None] = [None] * count
    if command.path is None:
        default = Path(f"{command.program.output_name}.{command.output.audio_format}")
        paths = [default] if count == 1 else _free_numbered_paths(default, count)
    elif not command.streaming:
        paths = _numbered(command.path, count)
    plots = [None] * count if command.plot is None else _numbered(command.plot, count)
    files = [
        ClipFiles(path, plot, overwrite=command.path is not None)
        for path, plot in zip(paths, plots, strict=True)
    ]
    _check_all_writable([clip.resolve_path(clip.path) for clip in files if clip.path is not None])
    _check_all_writable([clip.plot for clip in files if clip.plot is not None])
    dropped = [ClipFiles(None, None, overwrite=False)] * (command.takes - kept)
    return [clip for first in range(0, count, kept) for clip in (*files[first : first + kept], *dropped)]


def _check_all_writable(paths: Sequence[Path]) -> None:
    """`check_writable` for files in one folder, without what killed processes left where they go.

    The first one stands for all that don't exist yet: there may be thousands.
    """
    if not paths:
        return
    others = paths[1:]
    if others:
        with suppress(OSError):  # a folder that can be written, but not listed, or none
            names = {*os.listdir(paths[0].parent)}
            others = [path for path in others if path.name in names]
    checked = [paths[0], *others]
    for folder in {follow_links(path).parent for path in checked}:
        remove_stale_parts(folder)
    for path in checked:
        check_writable(path)


def _numbered(path: Path, count: int, first: int = 1) -> list[Path]:
    """`path`, or if there are more `name-1.wav` …, with leading zeros that keep them in order."""
    if count == 1:
        return [path]
    digits, stem, suffix = len(str(first + count - 1)), path.stem, path.suffix
    return [path.with_name(f"{stem}-{first + index:0{digits}}{suffix}") for index in range(count)]


def _free_numbered_paths(path: Path, count: int) -> list[Path]:
    """The first `count` consecutive numbered names that are all free."""
    first = 1
    while True:
        names = _numbered(path, count, first)
        taken = [index for index, name in enumerate(names) if os.path.lexists(name)]
        if not taken:
            return names
        first += taken[-1] + 1
