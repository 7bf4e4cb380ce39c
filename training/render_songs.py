"""Audio of training songs for the codec: `python render_songs.py --songs 600` → work/stems.npy."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import processes
from render import SAMPLE_RATE, mix, render_stems
from song import STEMS, Song
from songs import ENDING, SECONDS, song


def excerpt(
    number: int, held_out: bool = False, style: str | None = None, seconds: int = SECONDS
) -> tuple[Song, np.ndarray]:
    """Song `number` and its first `seconds`, float32 `[samples]`."""
    composed, stems = excerpt_stems(number, held_out, style, seconds)
    return composed, mix(stems)


def excerpt_stems(
    number: int, held_out: bool = False, style: str | None = None, seconds: int = SECONDS
) -> tuple[Song, np.ndarray]:
    """As `excerpt`, float32 `[STEMS, samples]`."""
    composed = song(number, held_out, seconds + ENDING, style)
    return composed, render_stems(composed)[:, : seconds * SAMPLE_RATE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("work/stems.npy"))
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    shape = (arguments.songs, len(STEMS), SECONDS * SAMPLE_RATE)
    np.lib.format.open_memmap(arguments.out, "w+", np.int16, shape).flush()
    processes.run(render_songs, arguments.processes, arguments)


def render_songs(arguments: argparse.Namespace) -> None:
    start = time.time()
    audio = np.lib.format.open_memmap(arguments.out, "r+")
    for number in range(processes.number(), arguments.songs, processes.count()):
        audio[number] = np.round(32767 * np.clip(excerpt_stems(number)[1], -1, 1))
    audio.flush()
    print(f"{arguments.songs} songs of {SECONDS} s in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
