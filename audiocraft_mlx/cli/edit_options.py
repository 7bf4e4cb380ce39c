"""The options that edit a part of a clip."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from audiocraft_mlx.errors import UsageError

_TIME = r"(?:[0-9]+:)?[0-9]+(?:\.[0-9]*)?"
_PART = re.compile(rf"({_TIME})-({_TIME})")


def add_edit_options(add: Callable[..., object]) -> None:
    """`add` is that of a group."""
    add(
        "--edit",
        metavar="FILE",
        type=Path,
        help="generate a part of this audio file anew; all else stays as it is (MAGNeT models)",
    )
    add(
        "--replace",
        metavar="FROM-TO",
        type=_part,
        help="which part of --edit's file, in seconds, such as 8-12 or 1:02.5-1:10",
    )


def check_edit_options(arguments: argparse.Namespace, default_duration: float) -> None:
    """Raise `UsageError` for options that don't go together."""
    if (arguments.edit is None) != (arguments.replace is None):
        raise UsageError(
            "--replace needs --edit FILE, which it is a part of"
            if arguments.edit is None
            else "--edit needs --replace FROM-TO, the seconds that are generated anew"
        )
    if arguments.edit is None:
        return
    others = {
        "--continue": arguments.source is not None,
        "--prompt-seconds": arguments.prompt_seconds is not None,
        "--melody": arguments.melody is not None,
        "--chords": arguments.chords is not None,
        "--style": arguments.style is not None,
        "--duration": arguments.duration != default_duration,
        "--play": arguments.play,
        "standard output (-o -)": str(arguments.output) == "-",
    }
    for option, is_given in others.items():
        if is_given:
            raise UsageError(f"--edit and {option} don't go together; leave one of them out")


def _part(text: str) -> tuple[float, float]:
    match = _PART.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be two times, such as 8-12 or 1:02.5-1:10, not {text!r}")
    start, end = map(_seconds, match.groups())
    if end <= start:
        raise argparse.ArgumentTypeError(f"must end after it begins, not {text!r}")
    return start, end


def _seconds(text: str) -> float:
    minutes, _, seconds = text.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)
