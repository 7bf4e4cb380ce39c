"""The options of notes that are followed in place of audio."""

from __future__ import annotations

from collections.abc import Callable

from audiocraft_mlx.validation import MIDI_TRACK, NumberRange


def add_note_options(add: Callable[..., object], number: Callable[[NumberRange], object]) -> None:
    """`add` is that of a group; `number` makes the type of an option with such a number."""
    add(
        "--midi-track",
        metavar="N",
        type=number(MIDI_TRACK),
        help="follow this track of --melody's MIDI file, of those that have notes (default: the highest note "
        "of all but the drums)",
    )
    add(
        "--chords",
        metavar="CHORDS",
        help="follow chords, each for a bar: 'C Am F G', or with bar lines '| Dm7 G7 | Cmaj7 |', at --bpm "
        "(melody models; the released ones were trained on one note at a time and follow chords loosely)",
    )
