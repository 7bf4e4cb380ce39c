"""Songs by number; a number always gives the same song. Writes one as MIDI: `python songs.py 7 --midi 7.mid`.

A twentieth of all songs is held out, in whatever key, tempo and length: no number of the training set gives
their chords and motifs.
"""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path

from arrange import Material, arrange, invent
from draw import draw_attributes
from song import Song, describe, to_midi
from styles import STYLES

SECONDS = 20
"""Of a song that is used for training."""
ENDING = 8.0
"""Seconds of a song that aren't used: clips go on, and their windows must not all end as songs do."""


def is_held_out(style: str, mode: str, material: Material) -> bool:
    tune = (style, mode, material.progressions, material.themes)
    return zlib.crc32(repr(tune).encode()) % 20 == 0


def song(number: int, held_out: bool = False, seconds: float | None = None, style: str | None = None) -> Song:
    """Song `number` of the training or held-out set (of a style), of 8 to 16 bars or of `seconds`."""
    random_ = random.Random(f"{style or ''} {number}")
    while True:
        attributes = draw_attributes(random_, style)
        material = invent(attributes, random_)
        if is_held_out(attributes.style, attributes.mode, material) == held_out:
            return arrange(attributes, material, random_, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seconds", type=float, help="exact length; otherwise it has 8 to 16 bars")
    parser.add_argument("--style", choices=STYLES)
    parser.add_argument("--midi", type=Path, help="file to write")
    arguments = parser.parse_args()
    try:
        composed = song(arguments.number, arguments.held_out, arguments.seconds, arguments.style)
    except ValueError as error:
        parser.error(str(error))
    print(describe(composed))
    if arguments.midi:
        to_midi(composed).save(arguments.midi)


if __name__ == "__main__":
    main()
