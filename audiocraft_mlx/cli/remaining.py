"""What one call of a command makes of its list of clips: those of its shard that aren't there yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.cli.clip_files import ClipFiles
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.errors import UsageErrors

if TYPE_CHECKING:
    from audiocraft_mlx.clips.existing import Existing
    from audiocraft_mlx.clips.manifest import Manifest


def select_remaining(
    command: GenerateClips, files: Sequence[ClipFiles], manifest: Manifest | None
) -> tuple[GenerateClips, list[ClipFiles]]:
    """The command and the files without clips that it doesn't make, which it tells.

    What is there gets a line in the `manifest`, if it has none.

    Raises:
        UsageErrors: in the place of a clip is another file.
    """
    clips = clips_of_shard(command)
    if not command.skip_existing or not clips:
        return without_existing(command, files, clips, None)
    from audiocraft_mlx.clips.existing import find_existing

    existing = find_existing(clips, lambda clip: paths_of_clip(clip, files[clip.index]), command.describe)
    remaining = without_existing(command, files, clips, existing)
    if manifest is not None:
        _add_missing_lines(clips, files, existing, manifest)
    return remaining


def clips_of_shard(command: GenerateClips) -> list[ListedClip]:
    """Those of the command's clips that it is to make; it tells if there are none."""
    clips = list(command.clips) if command.shard is None else command.shard.clips(command.clips)
    if command.shard is not None and not clips:
        print_stdout(f"shard {command.shard}: the list has {len(command.clips)} clips, and none is of it")
    return clips


def without_existing(
    command: GenerateClips,
    files: Sequence[ClipFiles] | Mapping[int, ClipFiles],
    clips: Sequence[ListedClip],
    existing: Existing | None,
) -> tuple[GenerateClips, list[ClipFiles]]:
    """The command and the files of those of `clips` that aren't there. Raises `UsageErrors`."""
    left = list(clips)
    if existing is not None:
        _require_same(command, existing)
        if existing.made:
            print_stdout(f"{len(existing.made)} of {len(clips)} clips are there already")
        left = [clip for clip in clips if clip.index not in existing.made]
        if existing.first_seed is not None:
            left = [clip.with_first_seed(existing.first_seed) for clip in left]
    return replace(command, clips=tuple(left)), [files[clip.index] for clip in left]


def paths_of_clip(clip: ListedClip, files: ClipFiles) -> list[Path]:
    """All files of a clip, its own first."""
    from audiocraft_mlx.clips.existing import STEMS

    if files.path is None:
        return []
    stems = [files.path.with_stem(f"{files.path.stem}-{name}") for name in STEMS]
    plots = [] if files.plot is None else [files.plot]
    return [files.path, *plots, *(stems if clip.output.stems else [])]


def _require_same(command: GenerateClips, existing: Existing) -> None:
    what_to_do = "remove or rename it, or choose another output"
    messages = []
    for clip, difference in existing.differing:
        where = "" if clip.line is None else f"{command.prompts_file}, line {clip.line}: "
        messages.append(f"{where}{difference}; {what_to_do}")
    if messages:
        raise UsageErrors(messages)


def _add_missing_lines(
    clips: Sequence[ListedClip], files: Sequence[ClipFiles], existing: Existing, manifest: Manifest
) -> None:
    from audiocraft_mlx.clips.manifest import line_of_existing

    for clip in clips:
        path = files[clip.index].path
        if clip.index in existing.made and path is not None and str(path) not in manifest.files:
            manifest.append(line_of_existing(path, clip, existing.made[clip.index]))
