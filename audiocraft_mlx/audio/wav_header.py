"""Finds the samples of a WAV file whose header was never completed, because its recorder died."""

from __future__ import annotations

import mmap
import struct

from audiocraft_mlx.audio.segments import Segment

_UNKNOWN_SIZE = 0xFFFFFFFF


def complete_wav(data: mmap.mmap) -> list[Segment] | None:
    """The file with a size that makes readers read to its end; None if its header has a size."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"data":
            if size or position + 8 == len(data) or _is_chunk(data, position + 8):
                return None
            sizes = struct.pack("<I", _UNKNOWN_SIZE)
            head = b"RIFF" + sizes + data[8 : position + 4] + sizes
            return [head, range(position + 8, len(data))]
        position += 8 + size + size % 2
    return None


def _is_chunk(data: mmap.mmap, position: int) -> bool:
    """Whether a chunk is here that fits into the file: no samples, then, but what follows them."""
    name, size = data[position : position + 4], data[position + 4 : position + 8]
    fits = position + 8 + int.from_bytes(size, "little") <= len(data)
    return len(size) == 4 and name.isascii() and name.decode().isprintable() and fits
