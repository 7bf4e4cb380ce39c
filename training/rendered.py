"""Renders for the evaluation, kept in a folder: held-out songs, and renders through the codec."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from render import mix
from render_songs import excerpt
from song import Song
from songs import ENDING, SECONDS, song
from spectra import FULL_SCALE, to_float

from audiocraft_mlx.files import write_file

PIECE = 20
"""Clips in a file."""


def write_clips(path: Path, clips: Iterable[np.ndarray]) -> None:
    """Float clips `[samples]` as int16 `[clips, samples]`; the file is there when all are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is above full scale becomes full scale, as in a file.
    audio = np.stack([np.round(np.clip(clip, -1, 1) * FULL_SCALE).astype(np.int16) for clip in clips])
    write_file(path, lambda file: np.save(file, audio))


def training_songs(count: int) -> list[Song]:
    """Those that `render_songs.py` renders."""
    return [song(number, seconds=SECONDS + ENDING) for number in range(count)]


def training_renders(folder: Path, stems: Path, count: int) -> np.ndarray:
    """Int16 `[count, samples]` of `training_songs`, from what `render_songs.py` wrote; or all it has."""
    rendered = np.load(stems, mmap_mode="r")
    count = min(count, len(rendered))
    return in_pieces(folder / "training", count, lambda number: mix(to_float(rendered[number])))


def held_out_songs(count: int, seconds: float = SECONDS) -> list[Song]:
    return [song(number, True, seconds + ENDING) for number in range(count)]


def held_out_renders(folder: Path, count: int, seconds: int = SECONDS) -> np.ndarray:
    """Int16 `[count, samples]` of `held_out_songs`."""

    def render(number: int) -> np.ndarray:
        return excerpt(number, True, seconds=seconds)[1]

    return in_pieces(folder / f"held_out-{seconds}s", count, render)


def in_pieces(folder: Path, count: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
    """Int16 `[count, samples]` of what `make` gives for each number; `folder` keeps files of `PIECE`."""
    pieces = []
    for first in range(0, count, PIECE):
        numbers = range(first, min(first + PIECE, count))
        path = folder / f"{first:04}.npy"
        if not path.exists() or len(np.load(path, mmap_mode="r")) < len(numbers):
            write_clips(path, map(make, numbers))
        pieces.append(np.load(path)[: len(numbers)])
    return np.concatenate(pieces)


class ThroughCodec:
    """Encodes and decodes with the codec of `train_codec.py`; what it made is kept for each checkpoint."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        import torch
        from codec import Codec

        torch.set_num_threads(1)
        self._codec = Codec()
        self._codec.load_state_dict(torch.load(checkpoint)["codec"])
        self._codec.eval()
        self.folder = folder / f"codec-{zlib.crc32(checkpoint.read_bytes()):08x}"

    def __call__(self, name: str, renders: np.ndarray) -> np.ndarray:
        """Int16 `[clips, samples]` of what is left of `renders`, int16 as well."""
        folder = self.folder / name
        return in_pieces(folder, len(renders), lambda number: self.decoded(to_float(renders[number])))

    def decoded(self, audio: np.ndarray) -> np.ndarray:
        """Float32 `[samples]`, as `audio`, whose length is a multiple of the codec's frames."""
        import torch

        with torch.inference_mode():
            quantized = self._codec.quantizer(self._codec.encode(torch.tensor(audio)[None]).float())[0]
            return self._codec.decode(quantized)[0].numpy()
