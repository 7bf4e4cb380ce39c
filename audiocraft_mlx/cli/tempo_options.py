"""The options of a tempo, which chords and loops share."""

from __future__ import annotations

from collections.abc import Callable

from audiocraft_mlx.validation import BEATS_PER_BAR, BPM, DEFAULT_BEATS_PER_BAR, NumberRange


def add_tempo_options(add: Callable[..., object], number: Callable[[NumberRange], object]) -> None:
    """`add` is that of a group; `number` makes the type of an option with such a number."""
    add("--bpm", metavar="NUMBER", type=number(BPM), help="beats per minute")
    add(
        "--beats-per-bar",
        metavar="N",
        type=number(BEATS_PER_BAR),
        help=f"beats of a bar (default: {DEFAULT_BEATS_PER_BAR})",
    )
