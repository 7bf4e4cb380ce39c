"""Finds the files that others were joined from, in formats whose readers stop at the end of the first one."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from itertools import islice

from audiocraft_mlx.audio.segments import MAX_PARTS, ChunkCounter

# How files begin, with enough of them that it isn't found in audio by chance: AIFF, CAF, AU, W64 and WMA.
_STARTS = [
    re.compile(start, re.DOTALL)
    for start in (
        rb"FORM.{4}AIF[FC](?:COMM|FVER)",
        rb"caff\0[\1\2]\0\0desc",
        rb"\.snd\0\0.{6}\0\0\0[\x01-\x1b]\0",
        rb"dns\..{2}\0\0.{4}[\x01-\x1b]\0\0\0",
        rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
    )
]
_BOX_HEADER_BYTES = 8
# A stream that was saved has two for each of its fragments.
_MAX_BOXES = 10_000


def find_joined(data: mmap.mmap) -> list[range]:
    """Where the files are; none if `data` is one alone, or of another format.

    Raises `TooManyChunksError`.
    """
    if data[4:8] == b"ftyp":
        starts = _mp4_starts(data)
    else:
        pattern = next((pattern for pattern in _STARTS if pattern.match(data)), None)
        starts = [] if pattern is None else _first(pattern.finditer(data))
    if len(starts) < 2:
        return []
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _first(matches: Iterator[re.Match[bytes]]) -> list[int]:
    return [match.start() for match in islice(matches, MAX_PARTS + 1)]


def _mp4_starts(data: mmap.mmap) -> list[int]:
    """Where the files of the MP4 family (M4A, MOV, 3GP) begin. Pictures in their tags are of it, too."""
    starts, position = list[int](), 0
    boxes = ChunkCounter(_MAX_BOXES)
    while position + _BOX_HEADER_BYTES <= len(data):
        boxes.count()
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if name == b"ftyp":
            starts.append(position)
        if size == 1:  # it doesn't fit into 32 bits
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < _BOX_HEADER_BYTES:
            break
        position += size
    return starts
