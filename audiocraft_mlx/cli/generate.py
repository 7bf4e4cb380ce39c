"""`musicgen-mlx`: descriptions, a melody, a style or a clip to continue in, audio files out.

Nothing heavy is imported before the arguments are validated: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from audiocraft_mlx.cli.arguments import GenerateClips, ShowInfo, parse
from audiocraft_mlx.cli.common import run_command
from audiocraft_mlx.cli.inputs import described, read_inputs
from audiocraft_mlx.clips.defaults import (
    CHUNK_SECONDS,
    FIRST_CHUNK_SECONDS,
    MUSICGEN,
    CommandDefaults,
)
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.machine import PROGRAM_BYTES, require_memory

if TYPE_CHECKING:
    from audiocraft_mlx.cli.clip_files import ClipFiles
    from audiocraft_mlx.cli.clip_writer import ClipWriter
    from audiocraft_mlx.clips.prompt_lines import ListedClip
    from audiocraft_mlx.clips.requests import ClipRequest
    from audiocraft_mlx.models.genmodel import GenModel


def main(argv: list[str] | None = None) -> int:
    """Run `musicgen-mlx` with `argv` (default: the process's own arguments) and return its exit status."""
    return run_program(MUSICGEN, argv)


def run_program(program: CommandDefaults, argv: list[str] | None) -> int:
    return run_command(lambda words: _run(words, program), argv, program.name)


def _run(argv: list[str] | None, program: CommandDefaults) -> None:
    command = parse(argv, program)
    if isinstance(command, ShowInfo):
        from audiocraft_mlx.cli.info import show_info

        show_info(command.path)
    else:
        _generate(command)


def _generate(command: GenerateClips) -> None:
    if command.cluster is not None:
        from audiocraft_mlx.cli.cluster_run import generate_on_cluster

        generate_on_cluster(command)
        return
    from audiocraft_mlx.cli.clip_files import plan_files

    require_memory(PROGRAM_BYTES)  # else the imports below crash
    with _without_garbage_collection():
        # Everything that can be wrong is found before the model is loaded.
        files = plan_files(command)
        _check_sinks(command)

        from audiocraft_mlx.cli.remaining import select_remaining

        manifest = None
        if command.manifest is not None:
            from audiocraft_mlx.clips.manifest import Manifest

            manifest = Manifest(command.manifest)
        command, files = select_remaining(command, files, manifest)
        if not command.clips:
            return

        from audiocraft_mlx.clips.portions import portions

        parts = list(portions(command.clips))
        # All are read now to find what is wrong; what doesn't fit into memory is read again in its turn.
        loaded = [read_inputs(command, part) for part in parts[:1]]
        for part in parts[1:]:
            read_inputs(command, part)

        def requests_of(part: range) -> list[ClipRequest]:
            return loaded[0] if len(parts) == 1 else read_inputs(command, part)

        from audiocraft_mlx.clips.loading import load_clip_model

        model = load_clip_model(command.program, command.model)
        command.require_supported(model.condition_types, model.fills_masks)
        separator = None
        if any(clip.output.stems for clip in command.clips):
            from audiocraft_mlx.checkpoints.demucs import load_htdemucs

            separator = load_htdemucs()

        from audiocraft_mlx.cli.clip_writer import ClipWriter

    for part in parts:
        _check_part(command, files, model, part, requests_of(part), with_plan=len(parts) > 1)
    with closing(ClipWriter(command, files, model, separator, manifest)) as writer:
        for part in parts:
            _generate_part(command, model, part, requests_of(part), writer)
    if command.open and sys.platform == "darwin" and len(command.clips) == len(writer.paths) == 1:
        if not command.play:
            # A courtesy: over ssh, for example, there is no player, and the file is there all the same.
            path = str(writer.paths[0].resolve())
            subprocess.run(["open", path], check=False, stderr=subprocess.DEVNULL)


def _check_part(
    command: GenerateClips,
    files: Sequence[ClipFiles],
    model: GenModel,
    part: range,
    requests: Sequence[ClipRequest],
    with_plan: bool,
) -> None:
    """Raise `OutputError` for files that are too large, and `UsageError` for what the model can't do."""
    from audiocraft_mlx.clips.planning import plan_clips
    from audiocraft_mlx.clips.saving import check_size

    checked: set[tuple[float, object, object]] = set()
    for position, request in zip(part, requests, strict=True):
        path, output = files[position].path, command.clips[position].output
        key = (request.duration, request.source, output)
        if path is not None and key not in checked:
            check_size(path, request, output, model)
            checked.add(key)
    if with_plan:
        with _errors_with_lines(command, model, part):
            plan_clips(model, requests)


def _generate_part(
    command: GenerateClips, model: GenModel, part: range, requests: Sequence[ClipRequest], writer: ClipWriter
) -> None:
    from audiocraft_mlx.clips.making import generate_clips

    with _errors_with_lines(command, model, part):
        events = generate_clips(
            model,
            requests,
            # What is played or streamed while it is generated is generated alone.
            batch_size=1 if command.streaming or command.play else None,
            chunk_seconds=CHUNK_SECONDS,
            # Of files too: the codec's rounding depends on where its chunks begin.
            first_chunk_seconds=FIRST_CHUNK_SECONDS,
            on_progress=lambda progress: writer.show_progress(progress, part.start),
        )
    with closing(events):
        try:
            for event in events:
                writer.handle(event, part.start)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(writer.save_partial()) from None


@contextmanager
def _errors_with_lines(command: GenerateClips, model: GenModel, part: range) -> Iterator[None]:
    """Of planning the clips of `part`."""
    try:
        yield
    except UsageError as error:
        from audiocraft_mlx.clips.planning import plan_clips

        def check(clip: ListedClip) -> None:
            plan_clips(model, [clip.request])

        command.check_clips(check, command.clips[part.start : part.stop])
        raise UsageError(described(error)) from None


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """For what is imported and loaded, and stays: to look for garbage in it takes a while each time."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _check_sinks(command: GenerateClips) -> None:
    """Raise an error if there is no standard output, or nothing to plot or play with."""
    if command.streaming and sys.stdout is None:
        raise OutputError("standard output is closed; give a file to --output")
    if command.plot is not None:
        from audiocraft_mlx.audio.plot import check_plotting

        check_plotting(command.clips[0].request.prompt)
    if command.play:
        from audiocraft_mlx.cli.playing import require_sounddevice

        require_sounddevice()
