"""`--cluster`: the clips of a command are made by the machines of a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.cli.clip_files import ClipFiles, plan_files
from audiocraft_mlx.cli.cluster_files import ClusterFiles
from audiocraft_mlx.cli.common import print_stderr, print_stdout
from audiocraft_mlx.cli.inputs import described, read_inputs
from audiocraft_mlx.cli.remaining import clips_of_shard, paths_of_clip, select_remaining, without_existing
from audiocraft_mlx.clips.loops import made_seconds
from audiocraft_mlx.clips.manifest import Manifest
from audiocraft_mlx.clips.portions import portions
from audiocraft_mlx.cluster.connection import connect, require_dask
from audiocraft_mlx.cluster.values import ClipTask, MadeClip, ModelSpec, Needs
from audiocraft_mlx.errors import ClusterError, MusicGenError, UsageError
from audiocraft_mlx.progress import beside_bars, progress_bar

if TYPE_CHECKING:
    from audiocraft_mlx.clips.prompt_lines import ListedClip
    from audiocraft_mlx.cluster.machines import Machine, Machines

# Of the files that a machine reads to check a list: they travel there.
_MOST_FILES = 2
_MOST_NAMED = 10


def generate_on_cluster(command: GenerateClips) -> None:
    """Everything that can be found to be wrong is found before the first clip is made."""
    assert command.cluster is not None
    require_dask(command.cluster)
    files = plan_files(command)
    manifest = None if command.manifest is None else Manifest(command.manifest)
    if command.output_on_worker is None:
        command, files = select_remaining(command, files, manifest)
    else:
        clips = clips_of_shard(command)
        command, files = without_existing(command, files, clips, None)
    if not command.clips:
        return
    for part in portions(command.clips):
        read_inputs(command, part)
    asyncio.run(_run(command, files, manifest))


async def _run(command: GenerateClips, files: Sequence[ClipFiles], manifest: Manifest | None) -> None:
    from audiocraft_mlx.cluster.machines import Machines

    assert command.cluster is not None
    bar = _Bar()
    spec, place = ModelSpec(command.program.name, command.model), str(command.cluster)
    async with connect(command.cluster, bar.report) as client:
        machines = Machines(client, spec, _needs(command, files), bar.report, place)
        try:
            if command.output_on_worker is not None and command.skip_existing:
                command, files = await _without_existing(command, files, manifest, machines)
                if not command.clips:
                    return
            facts = await machines.facts()
            command.require_supported(facts.condition_types, facts.fills_masks)
            await _check(command, files, spec, machines)
            await _make(command, files, manifest, spec, machines, bar)
        finally:
            bar.close()
            await machines.close()


async def _without_existing(
    command: GenerateClips, files: Sequence[ClipFiles], manifest: Manifest | None, machines: Machines
) -> tuple[GenerateClips, list[ClipFiles]]:
    """What isn't there yet where the machines write."""
    from audiocraft_mlx.cluster.tasks import look_for_clips

    of_index = dict(zip((clip.index for clip in command.clips), files, strict=True))
    paths = {clip.index: paths_of_clip(clip, of_index[clip.index]) for clip in command.clips}
    metadata = {clip.index: command.describe(clip) for clip in command.clips}
    in_manifest = None if manifest is None else frozenset(manifest.files)
    existing, lines = await machines.call(look_for_clips, command.clips, paths, metadata, in_manifest)
    remaining = without_existing(command, of_index, command.clips, existing)
    for line in lines:
        if manifest is not None:
            manifest.append(line)
    return remaining


async def _check(
    command: GenerateClips, files: Sequence[ClipFiles], spec: ModelSpec, machines: Machines
) -> None:
    """Raise what the model can't do, as `MusicGenError`, with the lines at fault."""
    from audiocraft_mlx.cluster.tasks import check_clips

    for part in portions(command.clips, _MOST_FILES):
        clips = command.clips[part.start : part.stop]
        of_part = [
            (clip.request, clip.output, each.path)
            for clip, each in zip(clips, files[part.start : part.stop], strict=True)
        ]
        requests = [clip.request for clip in clips]
        found = await machines.call(check_clips, spec, of_part, inputs=requests)
        if not found:
            continue
        errors = {clips[place].index: error for place, error in found.items()}

        def check(clip: ListedClip, errors: dict[int, MusicGenError] = errors) -> None:
            if clip.index in errors:
                raise errors[clip.index]

        command.check_clips(check, clips)
        first = next(iter(errors.values()))
        raise UsageError(described(first)) if isinstance(first, UsageError) else first


async def _make(
    command: GenerateClips,
    files: Sequence[ClipFiles],
    manifest: Manifest | None,
    spec: ModelSpec,
    machines: Machines,
    bar: _Bar,
) -> None:
    total = sum(made_seconds(clip.request) for clip in command.clips)
    writer = ClusterFiles(command, files, manifest, bar.report)
    bar.start(total, len(command.clips))

    def task_of(position: int) -> ClipTask:
        clip = command.clips[position]
        metadata = command.describe(clip)
        on_worker = command.output_on_worker is not None
        return ClipTask(
            spec,
            clip.request,
            clip.output,
            metadata if command.tags else None,
            files[position].path if on_worker else None,
            clip.line,
            metadata if on_worker and manifest is not None else None,
        )

    def take(position: int, made: MadeClip, machine: Machine) -> None:
        writer.take(position, made)
        bar.advance(made.seconds)

    try:
        hopeless = await machines.make(range(len(command.clips)), task_of, take)
    except (asyncio.CancelledError, KeyboardInterrupt):
        bar.close()
        raise KeyboardInterrupt(
            f"interrupted; {writer.made} of {len(command.clips)} clips are made, and --skip-existing goes on"
        ) from None
    except ClusterError as error:
        raise ClusterError(f"{writer.made} of {len(command.clips)} clips are made; {error}") from error
    finally:
        bar.close()
    for line in _table(machines.used, bar.seconds):
        print_stdout(line)
    if hopeless:
        for position in sorted(hopeless)[:_MOST_NAMED]:
            clip = command.clips[position]
            which = f"clip {clip.index + 1}" if clip.line is None else f"line {clip.line}"
            print_stderr(f"{which}: {hopeless[position]}")
        raise ClusterError(
            f"{len(hopeless)} of {len(command.clips)} clips could not be made; when what is wrong is mended,"
            " the same command with --skip-existing makes them"
        )


def _needs(command: GenerateClips, files: Sequence[ClipFiles]) -> Needs:
    requests, outputs = command.requests, [clip.output for clip in command.clips]
    branches = 2 if all(request.style_coef is None for request in requests) else 3
    fades = any(section.fade for request in requests for section in request.sections)
    folders = {each.path.parent for each in files if each.path is not None}
    return Needs(
        seconds=max(map(made_seconds, requests)),
        branches=branches + fades,
        alone=any(request.replace is not None for request in requests),
        stems=any(output.stems for output in outputs),
        folders=tuple(sorted(folders)) if command.output_on_worker is not None else (),
    )


def _table(machines: Sequence[Machine], elapsed: float) -> list[str]:
    """What each machine has made, and all together."""
    rows = [(str(m), str(m.clips), f"{m.seconds:.1f} s", f"{m.speed:.2f}x") for m in machines]
    seconds = sum(machine.seconds for machine in machines)
    clips = sum(machine.clips for machine in machines)
    if len(rows) != 1:
        rows.append(("all", str(clips), f"{seconds:.1f} s", f"{seconds / max(elapsed, 1e-9):.2f}x"))
    rows.insert(0, ("machine", "clips", "music", "real time"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(widths[i]) for i, cell in enumerate(row) if i)])
        for row in rows
    ]


class _Bar:
    """The bar over all clips, and lines beside it."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._show: Callable[[float, float], None] | None = None
        self._total = self._made = self._begun = 0.0
        self.seconds = 0.0
        """How long it took, when it is closed."""

    def start(self, total: float, clips: int) -> None:
        """`total` seconds of music in so many clips."""
        self._total, self._begun = total, time.perf_counter()
        self._show = self._open.enter_context(progress_bar(total, f"{clips} clips "))

    def advance(self, seconds: float) -> None:
        self._made = min(self._made + seconds, self._total)
        if self._show is not None:
            self._show(self._made, self._total)

    def report(self, line: str) -> None:
        if self._show is None:
            print_stdout(line)
            return
        with beside_bars():
            print_stdout(line)

    def close(self) -> None:
        if self._show is not None:
            self.seconds = time.perf_counter() - self._begun
        self._show = None
        self._open.close()
