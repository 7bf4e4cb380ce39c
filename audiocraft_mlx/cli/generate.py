"""`musicgen-mlx`: descriptions, a melody, a style or a beginning in, audio files out.

Nothing heavy is imported before the arguments are known to be good: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from audiocraft_mlx.audio.recipe import AUDIOGEN, MUSICGEN, Program
from audiocraft_mlx.cli.arguments import STREAM, check_hearing, parse
from audiocraft_mlx.cli.common import run
from audiocraft_mlx.errors import OutputError

_CLASSES = {
    MUSICGEN: ("audiocraft_mlx.models.musicgen", "MusicGen"),
    AUDIOGEN: ("audiocraft_mlx.models.audiogen", "AudioGen"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `musicgen-mlx` with `argv` (default: the process's own arguments) and return its exit status."""
    return run_program(MUSICGEN, argv)


def run_program(program: Program, argv: list[str] | None) -> int:
    return run(lambda words: _generate(words, program), argv, program.name)


def _generate(argv: list[str] | None, program: Program) -> None:
    arguments = parse(argv, program)
    if arguments.info is not None:
        from audiocraft_mlx.cli.info import show_info

        show_info(arguments.info)
        return

    from audiocraft_mlx.cli.clips import batches, plan_clips

    clips = plan_clips(arguments, program)
    streaming = arguments.output == STREAM
    if streaming and sys.stdout is None:
        raise OutputError("standard output is closed; give a file to --output")
    if arguments.plot:
        from audiocraft_mlx.audio.picture import require_matplotlib

        require_matplotlib()
    if arguments.play:
        from audiocraft_mlx.cli.playing import require_sounddevice

        require_sounddevice()

    from audiocraft_mlx.cli.continuing import read_original
    from audiocraft_mlx.cli.hearing import read_heard

    heard = read_heard(arguments)
    original = None if arguments.continue_ is None else read_original(arguments.continue_)

    from audiocraft_mlx.cli.memory import rows_at_once

    module, name = _CLASSES[program]
    model = getattr(import_module(module), name).get_pretrained(
        arguments.model,
        revision=arguments.revision,
        quantize=arguments.quantize,
        fast=arguments.fast,
        cache_bits=arguments.cache_bits,
    )
    check_hearing(arguments, model.hears)
    separator = None
    if arguments.stems:
        from audiocraft_mlx.checkpoints.demucs import load_htdemucs

        separator = load_htdemucs()

    from audiocraft_mlx.cli.making import Making

    making = Making(arguments, model, heard, original, separator)
    # What is heard while it is made is made alone.
    alone = streaming or arguments.play
    rows = 1 if alone else rows_at_once(model, arguments.duration, 2 if arguments.style_coef is None else 3)
    for batch in batches(clips, rows):
        paths = making.make(batch, len(clips))
    if arguments.open and sys.platform == "darwin" and len(clips) == len(paths) == 1 and not arguments.play:
        # Opening is a courtesy; over ssh, say, there is no player, and the file is there all the same.
        subprocess.run(["open", str(paths[0].resolve())], check=False, stderr=subprocess.DEVNULL)
