"""The clips that one call of the command makes: their prompts, seeds and files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.cli.arguments import STREAM
from audiocraft_mlx.clips.metadata import CommandDefaults, GenerationMetadata, OptionValue
from audiocraft_mlx.files import check_writable, next_free_path


@dataclass(frozen=True)
class Clip:
    """One clip to be made. `path` is None for one that goes to standard output alone."""

    metadata: GenerationMetadata
    path: Path | None
    picture: Path | None


def plan_clips(arguments: argparse.Namespace, program: CommandDefaults) -> list[Clip]:
    """The clips of all prompts and takes, each with the seed after the one before.

    Where no file was named several get numbers that are free now; see `free`.

    Raises:
        OutputError: a file can't be written where it should be.
    """
    prompts: list[str] = arguments.prompts
    # Without a seed one is drawn here, so that it can be shown and the clip made again.
    first_seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    paths: Sequence[Path | None] = [None]
    if arguments.output is None:
        usual = Path(f"{program.output_name}.{arguments.chosen_format.name}")
        paths = [usual] if len(prompts) == 1 else _unused_row(usual, len(prompts))
    elif arguments.output != STREAM:
        paths = _numbered(arguments.output, len(prompts))
    pictures = [None] * len(prompts) if arguments.plot is None else _numbered(arguments.plot, len(prompts))
    for path in paths:
        if path is not None:
            check_writable(free(path, arguments))
    for picture in pictures:
        if picture is not None:
            check_writable(picture)
    return [
        Clip(_recipe(arguments, program, prompt, (first_seed + row) % 2**32), path, picture)
        for row, (prompt, path, picture) in enumerate(zip(prompts, paths, pictures, strict=True))
    ]


def free(path: Path, arguments: argparse.Namespace) -> Path:
    """Where to write what is called `path`: only files that the user has named are replaced."""
    return next_free_path(path) if arguments.output is None else path


def batches(clips: Sequence[Clip], size: int) -> Iterator[Sequence[Clip]]:
    for start in range(0, len(clips), size):
        yield clips[start : start + size]


def _numbered(path: Path, count: int, first: int = 1) -> list[Path]:
    """`path`, or if there are more `name-1.wav` …, with so many digits that they stay in order."""
    if count == 1:
        return [path]
    digits = len(str(first + count - 1))
    return [path.with_stem(f"{path.stem}-{first + index:0{digits}}") for index in range(count)]


def _unused_row(path: Path, count: int) -> list[Path]:
    """The first so many numbered names in a row that are all free."""
    first = 1
    while True:
        row = _numbered(path, count, first)
        taken = [index for index, name in enumerate(row) if os.path.lexists(name)]
        if not taken:
            return row
        first += taken[-1] + 1


def _recipe(
    arguments: argparse.Namespace, program: CommandDefaults, prompt: str, seed: int
) -> GenerationMetadata:
    chosen = arguments.chosen_format.name
    options: dict[str, OptionValue | None] = {
        "revision": arguments.revision,
        "quantize": arguments.quantize,
        "fast": arguments.fast or None,
        "cache-bits": arguments.cache_bits,
        "melody": _text(arguments.melody),
        "style": _text(arguments.style),
        "style-coef": arguments.style_coef,
        "continue": _text(arguments.continue_),
        "prompt-seconds": arguments.prompt_seconds,
        "format": None if chosen == "wav" else chosen,
        "bit-depth": arguments.bit_depth,
        "normalize": None if arguments.normalize == "none" else arguments.normalize,
        "lufs": arguments.lufs,
        "fade-out": arguments.fade_out,
    }
    return GenerationMetadata(
        prompt,
        arguments.model,
        seed,
        arguments.duration,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        temperature=arguments.temperature,
        cfg_coef=arguments.cfg_coef,
        options={name: value for name, value in options.items() if value is not None},
        program=program.name,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
