"""The options of loops."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import BARS, NumberRange

_KEPT = NumberRange(int, "an integer of at least 1", lambda kept: kept >= 1)


def add_loop_options(add: Callable[..., object], number: Callable[[NumberRange], object]) -> None:
    """`add` is that of a group; `number` makes the type of an option with such a number."""
    add(
        "--loop",
        action="store_true",
        help="make a loop: its end goes on at its beginning, and --bpm is added to the prompt; of several "
        "takes the best is the first",
    )
    add(
        "--bars",
        metavar="N",
        type=number(BARS),
        help="bars of a loop, instead of --duration (needs --bpm)",
    )
    add(
        "--keep-best",
        metavar="N",
        type=number(_KEPT),
        help="of the loops of each prompt write the best N only",
    )


def check_loop_options(arguments: argparse.Namespace) -> None:
    """Raise `UsageError` for options that don't go together."""
    if not arguments.loop:
        if arguments.keep_best is not None:
            raise UsageError("--keep-best is for loops; it needs --loop")
        return
    if arguments.bars is not None and arguments.duration is not None:
        raise UsageError("--bars and --duration don't go together: the bars are the duration; leave one out")
    if arguments.edit is not None:
        raise UsageError("--loop and --edit don't go together; leave one of them out")
    if str(arguments.output) == "-":
        raise UsageError(
            "a loop is cut when all of it is made, and can't be streamed; give a file to --output"
        )
    if arguments.play:
        raise UsageError("a loop is cut when all of it is made; leave --play out, and play the file")
    if arguments.keep_best is not None and arguments.keep_best > arguments.takes:
        raise UsageError(
            f"--keep-best {arguments.keep_best} are more than the takes; ask for more with --takes"
        )
