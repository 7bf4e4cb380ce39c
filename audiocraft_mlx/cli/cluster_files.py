"""Writes the clips that come back from a cluster, as `ClipWriter` writes those that are made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.cli.clip_files import ClipFiles
from audiocraft_mlx.cli.loop_takes import LoopTakes
from audiocraft_mlx.clips.manifest import manifest_line
from audiocraft_mlx.clips.saving import SavedFile
from audiocraft_mlx.files import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from audiocraft_mlx.clips.manifest import Manifest
    from audiocraft_mlx.cluster.values import MadeClip


@dataclass(frozen=True, eq=False)
class _Made:
    position: int
    clip: MadeClip


class ClusterFiles:
    """The files of the clips that a cluster makes.

    Attributes:
        made: how many of the clips have come.
    """

    def __init__(
        self,
        command: GenerateClips,
        files: Sequence[ClipFiles],
        manifest: Manifest | None,
        report: Callable[[str], None],
    ) -> None:
        self._command, self._files, self._manifest = command, files, manifest
        self._report = report
        self._takes: LoopTakes[_Made] = LoopTakes()
        self._position = {clip.index: position for position, clip in enumerate(command.clips)}
        self.made = 0

    def take(self, position: int, clip: MadeClip) -> None:
        """The clip of the command at `position` has come. Raises `OutputError` if it can't be written."""
        self.made += 1
        made, listed = _Made(position, clip), self._command.clips[position]
        if clip.loop is None:
            self._put(position, made)
            return
        group = range(listed.first, listed.first + listed.takes)
        for ranked in self._takes.add(listed.index, clip.loop[0], made, group, listed.kept):
            self._put(None if ranked.place is None else self._position[ranked.place], ranked.take)

    def _put(self, place: int | None, made: _Made) -> None:
        """Write a clip into the files of that at `place`; None: it isn't kept."""
        if place is None:
            return
        listed, files = self._command.clips[made.position], self._files[place]
        assert files.path is not None
        path = files.resolve_path(files.path) if self._command.output_on_worker is None else files.path
        own, *stems = made.clip.files
        if own.data is not None:
            _write(path, own.data)
        stem_paths = [path.with_stem(f"{path.stem}-{each.stem}") for each in stems]
        for stem_path, each in zip(stem_paths, stems, strict=True):
            if each.data is not None:
                _write(files.resolve_path(stem_path), each.data)
        saved = SavedFile(path, own.channels, own.samples, own.sample_rate, own.peak)
        self._report(f"wrote {saved}, seed {listed.request.seed}")
        if made.clip.loop is not None:
            self._report(made.clip.loop[1])
        if own.peak > 1:
            self._report(f"peak {own.peak:.2f} scaled down to full scale")
        if stem_paths:
            self._report(f"its stems: {', '.join(map(str, stem_paths))}")
        if self._manifest is None:
            return
        line = made.clip.manifest_line
        if line is None:
            seconds = own.samples / own.sample_rate
            metadata = self._command.describe(listed)
            stems_too = listed.output.stems
            line = manifest_line(path, metadata, seconds, own.sample_rate, listed.line, stems_too)
        self._manifest.append(line)


def _write(path: Path, data: bytes) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(data)

    write_file(path, write)
