"""The options that edit a part of a clip."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from audiocraft_mlx.clips.parts import parse_part
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import CANDIDATES, NumberRange


def add_edit_options(add: Callable[..., object], number: Callable[[NumberRange], object]) -> None:
    """`add` is that of a group; `number` makes the type of an option with such a number."""
    add(
        "--edit",
        metavar="FILE",
        type=Path,
        help="generate a part of this audio file anew; all else stays as it is",
    )
    add(
        "--replace",
        metavar="FROM-TO",
        type=_part,
        help="which part of --edit's file, in seconds, such as 8-12 or 1:02.5-1:10",
    )
    add(
        "--candidates",
        metavar="N",
        type=number(CANDIDATES),
        help="takes of that part, of which the one is kept that what follows suits best; a MAGNeT, which "
        "sees both sides, makes one (default: 8)",
    )


def check_edit_options(arguments: argparse.Namespace) -> None:
    """Raise `UsageError` for options that don't go together."""
    if (arguments.edit is None) != (arguments.replace is None):
        raise UsageError(
            "--replace needs --edit FILE, which it is a part of"
            if arguments.edit is None
            else "--edit needs --replace FROM-TO, the seconds that are generated anew"
        )
    if arguments.edit is None:
        if arguments.candidates is not None:
            raise UsageError("--candidates are takes of a part of a file; they need --edit and --replace")
        return
    others = {
        "--continue": arguments.source is not None,
        "--prompt-seconds": arguments.prompt_seconds is not None,
        "--melody": arguments.melody is not None,
        "--chords": arguments.chords is not None,
        "--style": arguments.style is not None,
        "--duration": arguments.duration is not None,
        "--play": arguments.play,
        "standard output (-o -)": str(arguments.output) == "-",
    }
    for option, is_given in others.items():
        if is_given:
            raise UsageError(f"--edit and {option} don't go together; leave one of them out")


def _part(text: str) -> tuple[float, float]:
    try:
        return parse_part(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
