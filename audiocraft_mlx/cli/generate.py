"""`musicgen-mlx`: descriptions, a melody, a style or a beginning in, audio files out.

Nothing heavy is imported before the arguments are known to be good: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from audiocraft_mlx.cli.arguments import STREAM, check_hearing, parse
from audiocraft_mlx.cli.common import run_command
from audiocraft_mlx.clips.metadata import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.errors import OutputError

_CLASSES = {
    MUSICGEN: ("audiocraft_mlx.models.musicgen", "MusicGen"),
    AUDIOGEN: ("audiocraft_mlx.models.audiogen", "AudioGen"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `musicgen-mlx` with `argv` (default: the process's own arguments) and return its exit status."""
    return run_program(MUSICGEN, argv)


def run_program(program: CommandDefaults, argv: list[str] | None) -> int:
    return run_command(lambda words: _generate(words, program), argv, program.name)


def _generate(argv: list[str] | None, program: CommandDefaults) -> None:
    arguments = parse(argv, program)
    if arguments.info is not None:
        from audiocraft_mlx.cli.info import show_info

        show_info(arguments.info)
        return

    from audiocraft_mlx.clips.planning import batches, plan_clips

    clips = plan_clips(arguments, program)
    streaming = arguments.output == STREAM
    if streaming and sys.stdout is None:
        raise OutputError("standard output is closed; give a file to --output")
    if arguments.plot:
        from audiocraft_mlx.audio.plot import require_matplotlib

        require_matplotlib()
    if arguments.play:
        from audiocraft_mlx.cli.playing import require_sounddevice

        require_sounddevice()

    from audiocraft_mlx.clips.inputs import read_heard
    from audiocraft_mlx.clips.source import read_source

    heard = read_heard(arguments)
    original = None if arguments.continue_ is None else read_source(arguments.continue_)

    from audiocraft_mlx.clips.memory import max_batch_size

    module, name = _CLASSES[program]
    model = getattr(import_module(module), name).get_pretrained(
        arguments.model,
        revision=arguments.revision,
        quantize=arguments.quantize,
        fast=arguments.fast,
        cache_bits=arguments.cache_bits,
    )
    check_hearing(arguments, model.condition_types)
    separator = None
    if arguments.stems:
        from audiocraft_mlx.checkpoints.demucs import load_htdemucs

        separator = load_htdemucs()

    from audiocraft_mlx.clips.making import Making

    making = Making(arguments, model, heard, original, separator)
    # What is heard while it is made is made alone.
    alone = streaming or arguments.play
    rows = 1 if alone else max_batch_size(model, arguments.duration, 2 if arguments.style_coef is None else 3)
    for batch in batches(clips, rows):
        paths = making.make(batch, len(clips))
    if arguments.open and sys.platform == "darwin" and len(clips) == len(paths) == 1 and not arguments.play:
        # Opening is a courtesy; over ssh, say, there is no player, and the file is there all the same.
        subprocess.run(["open", str(paths[0].resolve())], check=False, stderr=subprocess.DEVNULL)
