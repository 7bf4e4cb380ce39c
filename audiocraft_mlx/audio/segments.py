"""A file that is put together from parts of another one and from bytes in memory, for libsndfile to read."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

MAX_PARTS = 1000
"""More files that one was joined from are refused. Nobody goes on looking for them after one more."""
MAX_CHUNKS = 1000
"""That the header of a file may have."""
Segment = bytes | range
"""Bytes, or the positions of bytes in the file."""


class TooManyChunksError(Exception):
    """A file has more chunks than any that wasn't made to keep its readers busy."""


class ChunkCounter:
    """Counts the chunks that a reader goes through, and raises `TooManyChunksError` beyond `most`."""

    def __init__(self, most: int = MAX_CHUNKS) -> None:
        self._left = most

    def count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyChunksError


@dataclass(frozen=True)
class Part:
    """What libsndfile reads as one file."""

    segments: Sequence[Segment]
    frames: int | None = None
    """Samples per channel, where libsndfile only guesses them."""


class SegmentFile(io.RawIOBase):
    """The `segments` one behind the other, with those that are ranges read from `file`."""

    def __init__(self, file: BinaryIO, segments: Sequence[Segment]) -> None:
        self._file, self._segments = file, segments
        self._starts = [0, *accumulate(map(len, segments))]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # there is no type of buffers before Python 3.12
        done = 0
        while done < len(view) and self._position < self._starts[-1]:
            index = bisect_right(self._starts, self._position) - 1
            segment, begin = self._segments[index], self._position - self._starts[index]
            piece = segment[begin : begin + len(view) - done]
            if isinstance(piece, range):
                self._file.seek(piece.start)
                data = self._file.read(len(piece))
            else:
                data = piece
            if not data:  # the file has become shorter
                break
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done
