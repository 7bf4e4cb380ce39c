"""The chunks of a WAV file that tell samplers about a loop: `smpl` and `acid`.

`smpl` (Multimedia Data Standards Update, 1994) has the points of a loop that goes on forever. `acid`, which
has no public specification, has its beats; its layout is the one that libsndfile and other programs read.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

_MIDDLE_C = 60
_STRETCHES = 4  # with the tempo of the project, and not a one-shot


@dataclass(frozen=True)
class LoopChunks:
    """All of a file's `samples` are a loop of so many `beats`; None: without a beat."""

    samples: int
    rate: int
    beats: int | None
    beats_per_bar: int

    def to_bytes(self) -> bytes:
        sampler = struct.pack("<9I", 0, 0, round(1e9 / self.rate), _MIDDLE_C, 0, 0, 0, 1, 0)
        # Forward, to its last sample, without end.
        sampler += struct.pack("<6I", 0, 0, 0, self.samples - 1, 0, 0)
        chunks = struct.pack("<4sI", b"smpl", len(sampler)) + sampler
        if self.beats is not None:
            bpm = self.beats * 60 * self.rate / self.samples
            beats = struct.pack(
                "<IHHfIHHf", _STRETCHES, _MIDDLE_C, 0x8000, 0.0, self.beats, 4, self.beats_per_bar, bpm
            )
            chunks += struct.pack("<4sI", b"acid", len(beats)) + beats
        return chunks

    def append_to(self, file: BinaryIO) -> None:
        """Add them to the end of the WAV file in `file`."""
        file.seek(0, io.SEEK_END)
        size = file.tell()
        file.write(bytes(size % 2) + self.to_bytes())
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))
