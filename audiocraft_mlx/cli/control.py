"""The options that steer the music over its time, or away from a text."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from audiocraft_mlx.conditioning.sections import Section, parse_section
from audiocraft_mlx.errors import UsageError


def add_control(add: Callable[..., object]) -> None:
    add(
        "--section",
        dest="sections",
        metavar="SEC:TEXT",
        type=_section,
        action="append",
        help="from this second on play TEXT: '12: drums come in'; '24~4: full orchestra' cross-fades over "
        "4 s; may be given several times, and one at 0 instead of a prompt",
    )
    add(
        "--negative",
        metavar="TEXT",
        help="what it shall not be, 'vocals, distortion' for example: guidance leads away from it",
    )


def _section(text: str) -> Section:
    try:
        return parse_section(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
