"""Audio of training songs for the codec: `python render_songs.py --songs 800` → work/renders.npy."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from render import SAMPLE_RATE, render
from songs import ENDING, SECONDS, song


def excerpt(number: int, held_out: bool = False, style: str | None = None, seconds: int = SECONDS):
    """Song `number` and its first `seconds`, float32 `[samples]`."""
    composed = song(number, held_out, seconds + ENDING, style)
    return composed, render(composed)[: seconds * SAMPLE_RATE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("work/renders.npy"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    start = time.time()
    shape = (arguments.songs, SECONDS * SAMPLE_RATE)
    audio = np.lib.format.open_memmap(arguments.out, "w+", np.int16, shape)
    for number in range(arguments.songs):
        audio[number] = np.round(32767 * excerpt(number)[1])
    audio.flush()
    print(f"{arguments.songs} songs of {SECONDS} s in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
