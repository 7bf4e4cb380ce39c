"""Parts of a clip as users write them."""

from __future__ import annotations

import re

from audiocraft_mlx.errors import UsageError

_TIME = r"(?:[0-9]{1,6}:)?[0-9]{1,9}(?:\.[0-9]*)?"
_PART = re.compile(rf"({_TIME})-({_TIME})", re.ASCII)


def parse_part(text: str) -> tuple[float, float]:
    """From which second to which, of `8-12` or `1:02.5-1:10`. Raises `UsageError`."""
    match = _PART.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"must be two times, such as 8-12 or 1:02.5-1:10, not {text!r}")
    start, end = map(_seconds, match.groups())
    if end <= start:
        raise UsageError(f"must end after it begins, not {text!r}")
    return start, end


def part_text(part: tuple[float, float]) -> str:
    """What `parse_part` reads, in seconds."""
    return "-".join(map(_text, part))


def _text(time: float) -> str:
    text = str(int(time)) if float(time).is_integer() else str(float(time))
    # Python writes times below 0.1 ms as 1e-05.
    return text if "e" not in text else f"{time:.20f}".rstrip("0")


def _seconds(text: str) -> float:
    minutes, _, seconds = text.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)
