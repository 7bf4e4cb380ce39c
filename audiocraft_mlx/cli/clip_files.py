"""The names of the files that one call of a command writes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.clips.naming import clip_paths, file_keys, namer
from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.clips.prompt_lists import LineErrors
from audiocraft_mlx.errors import OutputError
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
        UsageError: two clips have the same name, or what a line names can't be written.
        OutputError: another file can't be written where it should be.
    """
    clips = command.clips
    paths: list[Path | None] = [None] * len(clips)
    if command.path is None:
        default = Path(f"{command.program.output_name}.{command.audio_format}")
        paths = _free_paths(clips, default)
    elif not command.streaming:
        paths = clip_paths(clips, command.path)
    if command.output_on_worker is not None:
        folder = command.output_on_worker
        paths = [None if path is None else folder / path for path in paths]
    plots = _plots(command)
    files = [
        ClipFiles(path, plot, overwrite=command.path is not None or clip.path is not None)
        for clip, path, plot in zip(clips, paths, plots, strict=True)
    ]
    _check_unique(command, paths)
    if command.output_on_worker is not None:
        return files  # it is the workers that see them
    mine = {clip.index for clip in (clips if command.shard is None else command.shard.clips(clips))}
    named = {index: files[index] for index in mine if clips[index].path is not None}
    _check_named(command, named)
    others = [files[index] for index in sorted(mine - {*named})]
    _check_all_writable([clip.resolve_path(clip.path) for clip in others if clip.path is not None])
    _check_all_writable([clip.plot for clip in files if clip.plot is not None])
    return files


def _plots(command: GenerateClips) -> list[Path | None]:
    plot, kept = command.plot, [clip.take < clip.kept for clip in command.clips]
    if plot is None:
        return [None] * len(kept)
    name, numbers = namer(plot, sum(kept)), itertools.count(1)
    return [name(next(numbers)) if has_file else None for has_file in kept]


def _check_unique(command: GenerateClips, paths: Sequence[Path | None]) -> None:
    """Raise `UsageErrors` for two clips with the same file, or a file that the command needs otherwise."""
    if command.prompts_file is None and command.manifest is None:
        return  # they are numbered; and who names an input as the output of one clip wants that
    errors = LineErrors(command.prompts_file)
    others = {command.prompts_file: "the file of prompts", command.manifest: "the manifest"}
    for clip in command.clips:
        for path in (clip.request.condition, clip.request.source):
            if isinstance(path, Path) and clip.line is not None:
                others.setdefault(path, f"read by line {clip.line}")
    taken = {key: what for key, what in zip(file_keys(others), others.values(), strict=True) if key}
    seen: dict[str, int] = {}
    for index, key in enumerate(file_keys(paths)):
        if key is None:
            continue
        clip, first = command.clips[index], seen.setdefault(key, index)
        if key in taken:
            errors.add(clip.line, f"its file {paths[index]} is {taken[key]}; choose another output")
        elif first != index:
            # The numbered one is named after the others.
            other = command.clips[first]
            clip, other = (clip, other) if clip.path is not None else (other, clip)
            whose = "another clip's" if other.line is None else f"line {other.line}'s"
            errors.add(clip.line, f"its file {paths[index]} is {whose}, too; choose another output")
    errors.raise_any()


def _check_named(command: GenerateClips, named: Mapping[int, ClipFiles]) -> None:
    """Raise `UsageErrors` for lines whose file can't be written."""
    errors = LineErrors(command.prompts_file)
    folders: dict[Path, frozenset[str] | None] = {}
    for index in sorted(named):
        path = named[index].path
        if path is None:
            continue
        if path.parent not in folders:
            folders[path.parent] = _names_in(path.parent)
            remove_stale_parts(path.parent)
        elif path.name not in (folders[path.parent] or (path.name,)):
            continue  # the folder's first one stands for all that don't exist yet
        try:
            check_writable(path)
        except OutputError as error:
            errors.add(command.clips[index].line, str(error))
    errors.raise_any()


def _check_all_writable(paths: Sequence[Path]) -> None:
    """`check_writable` for files in one folder, without what killed processes left where they go.

    The first one stands for all that don't exist yet: there may be thousands.
    """
    if not paths:
        return
    names = _names_in(paths[0].parent)
    checked = [paths[0], *(path for path in paths[1:] if names is None or path.name in names)]
    for folder in {follow_links(path).parent for path in checked}:
        remove_stale_parts(folder)
    for path in checked:
        check_writable(path)


def _names_in(folder: Path) -> frozenset[str] | None:
    """None of a folder that can be written, but not listed, or that isn't there."""
    with suppress(OSError):
        return frozenset(os.listdir(folder))
    return None


def _free_paths(clips: Sequence[ListedClip], path: Path) -> list[Path | None]:
    """Names for `clips`: consecutive numbers that are all free, but for those that have names."""
    first = 1
    numbered = [clip.take < clip.kept for clip in clips]
    if sum(numbered) == 1:
        return clip_paths(clips, path)
    while True:
        paths = clip_paths(clips, path, first)
        number, last_taken = first, 0
        for clip, candidate in zip(clips, paths, strict=True):
            if candidate is not None:
                if clip.path is None and os.path.lexists(candidate):
                    last_taken = number
                number += 1
        if not last_taken:
            return paths
        first = last_taken + 1
