"""What one call of a command makes of its list of clips: those of its shard that aren't there yet."""

from __future__ import annotations

from collections.abc import Sequence
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
    clips = list(command.clips) if command.shard is None else command.shard.clips(command.clips)
    if command.shard is not None and not clips:
        print_stdout(f"shard {command.shard}: the list has {len(command.clips)} clips, and none is of it")
    if command.skip_existing and clips:
        from audiocraft_mlx.clips.existing import find_existing

        existing = find_existing(clips, lambda clip: _paths(clip, files[clip.index]), command.describe)
        _require_same(command, existing)
        if manifest is not None:
            _add_missing_lines(clips, files, existing, manifest)
        if existing.made:
            print_stdout(f"{len(existing.made)} of {len(clips)} clips are there already")
        clips = [clip for clip in clips if clip.index not in existing.made]
        if existing.first_seed is not None:
            clips = [clip.with_first_seed(existing.first_seed) for clip in clips]
    return replace(command, clips=tuple(clips)), [files[clip.index] for clip in clips]


def _paths(clip: ListedClip, files: ClipFiles) -> list[Path]:
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
    from audiocraft_mlx.audio.read import read_info
    from audiocraft_mlx.clips.manifest import manifest_line

    for clip in clips:
        path = files[clip.index].path
        if clip.index in existing.made and path is not None and str(path) not in manifest.files:
            info, metadata = read_info(path), existing.made[clip.index]
            seconds = info.frames / info.rate
            manifest.append(manifest_line(path, metadata, seconds, info.rate, clip.line, clip.output.stems))
