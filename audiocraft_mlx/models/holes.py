"""Parts of a clip that are made anew, as users say them."""

from __future__ import annotations

from collections.abc import Sequence

from audiocraft_mlx.decoding.windows import end_frame, first_frame
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_number

Hole = tuple[float, float]
"""A part of a clip, from one second to another."""


def hole_frames(
    holes: Sequence[Hole], seconds: float, frames: int, frame_rate: float
) -> list[tuple[int, int]]:
    """The frames of `holes` in a clip of `seconds`. Raises `UsageError` for what is no hole in it."""
    if not isinstance(holes, Sequence) or not holes:
        raise UsageError("holes must be a list of parts of the clip, (from second, to second)")
    found = []
    for hole in holes:
        if not isinstance(hole, Sequence) or isinstance(hole, str) or len(hole) != 2:
            raise UsageError(f"a hole must be (from second, to second), not {hole!r}")
        start, end = hole
        within = f"from 0 to the end of the clip, {seconds:g} s"
        validate_number("the beginning of a hole", start, within, lambda s: 0 <= s < seconds)
        # The time of a whole clip may have been rounded.
        validate_number("the end of a hole", end, within, lambda e: 0 < e <= seconds + 0.01)
        if end <= start:
            raise UsageError(f"a hole must end after it begins, not {start:g} to {end:g} s")
        last = min(end_frame(end, frame_rate), frames)
        found.append((first_frame(start, frame_rate), last))
    return found
