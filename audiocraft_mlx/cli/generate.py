"""`musicgen-mlx`: descriptions, a melody, a style or a clip to continue in, audio files out.

Nothing heavy is imported before the arguments are validated: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from audiocraft_mlx.cli.arguments import GenerateClips, ShowInfo, option_name, parse
from audiocraft_mlx.cli.common import run_command
from audiocraft_mlx.clips.defaults import (
    AUDIOGEN,
    CHUNK_SECONDS,
    FIRST_CHUNK_SECONDS,
    MUSICGEN,
    CommandDefaults,
)
from audiocraft_mlx.clips.requests import FieldError
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.machine import PROGRAM_BYTES, require_memory

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

_CLASSES = {
    MUSICGEN: ("audiocraft_mlx.models.musicgen", "MusicGen"),
    AUDIOGEN: ("audiocraft_mlx.models.audiogen", "AudioGen"),
}


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
    from audiocraft_mlx.cli.clip_files import plan_files

    require_memory(PROGRAM_BYTES)  # else the imports below crash
    with _without_garbage_collection():
        # Everything that can be wrong is found before the model is loaded.
        files = plan_files(command)
        _check_sinks(command)

        from audiocraft_mlx.clips.inputs import load_inputs

        try:
            requests = load_inputs(command.requests)
        except FieldError as error:
            raise UsageError(error.describe(option_name)) from None
        model = _load_model(command)
        command.require_supported(model.condition_types, model.fills_masks)
        separator = None
        if command.output.stems:
            from audiocraft_mlx.checkpoints.demucs import load_htdemucs

            separator = load_htdemucs()

        from audiocraft_mlx.cli.clip_writer import ClipWriter
        from audiocraft_mlx.clips.making import generate_clips
        from audiocraft_mlx.clips.saving import check_size

    checked: set[tuple[float, object]] = set()
    for request, clip_files in zip(requests, files, strict=True):
        if clip_files.path is not None and (request.duration, request.source) not in checked:
            check_size(clip_files.path, request, command.output, model)
            checked.add((request.duration, request.source))
    # What is played or streamed while it is generated is generated alone.
    batch_size = 1 if command.streaming or command.play else None
    with closing(ClipWriter(command, files, model, separator)) as writer:
        try:
            events = generate_clips(
                model,
                requests,
                batch_size=batch_size,
                chunk_seconds=CHUNK_SECONDS,
                # Of files too: the codec's rounding depends on where its chunks begin.
                first_chunk_seconds=FIRST_CHUNK_SECONDS,
                on_progress=writer.show_progress,
            )
        except FieldError as error:
            raise UsageError(error.describe(option_name)) from None
        with closing(events):
            try:
                for event in events:
                    writer.handle(event)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(writer.save_partial()) from None
    if command.open and sys.platform == "darwin" and len(requests) == len(writer.paths) == 1:
        if not command.play:
            # A courtesy: over ssh, for example, there is no player, and the file is there all the same.
            path = str(writer.paths[0].resolve())
            subprocess.run(["open", path], check=False, stderr=subprocess.DEVNULL)


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

        check_plotting(command.requests[0].prompt)
    if command.play:
        from audiocraft_mlx.cli.playing import require_sounddevice

        require_sounddevice()


def _load_model(command: GenerateClips) -> GenModel:
    from audiocraft_mlx.models.loading import load_model

    module, name = _CLASSES[command.program]
    options = command.model
    return load_model(
        getattr(import_module(module), name),
        options.name,
        revision=options.revision,
        quantize=options.quantize,
        int8_activations=options.int8_activations,
        cache_bits=options.cache_bits,
        weights=options.weights,
        lora=options.lora,
    )
