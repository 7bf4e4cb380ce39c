"""The options of models that fill masks (MAGNeT)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import SPAN_ARRANGEMENTS, validate_decoding_steps


def add_masked_options(add: Callable[..., object], coefficient: Callable[[str], float]) -> None:
    """`add` is that of a group; `coefficient` the type of a coefficient of the guidance."""
    add(
        "--decoding-steps",
        metavar="N,N,...",
        type=_decoding_steps,
        help="MAGNeT: iterations of each codebook; more are slower (default: the model's, 20,10,10,10 or "
        "60,10,10,10 for the released ones)",
    )
    add(
        "--span-arrangement",
        choices=SPAN_ARRANGEMENTS,
        help="MAGNeT: which frames are masked together: three side by side, or three that begin at any frame "
        "(default: nonoverlap)",
    )
    add(
        "--max-cfg-coef",
        metavar="C",
        type=coefficient,
        help="MAGNeT: how closely to follow the prompt at first (default: the model's, 10 or 20 for the "
        "released ones)",
    )
    add(
        "--min-cfg-coef",
        metavar="C",
        type=coefficient,
        help="MAGNeT: the same at the end (default: the model's, 1 for the released ones)",
    )


def _decoding_steps(text: str) -> tuple[int, ...]:
    try:
        return validate_decoding_steps([int(part) for part in text.split(",")])
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between, such as 20,10,10,10, not {text!r}"
        ) from None
