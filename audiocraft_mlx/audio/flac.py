"""Finds the streams in a FLAC file and how long they are, so that it is decoded to its end.

libsndfile believes the length in the header, stops at the first of joined files, and fails where a file was
cut off. So the last frame is looked for here: frames are numbered (RFC 9639, section 9).
"""

from __future__ import annotations

import mmap
import re
from functools import cache
from itertools import islice

from audiocraft_mlx.audio.mpeg import skip_id3
from audiocraft_mlx.audio.segments import MAX_PARTS, ChunkCounter, Part

# The first metadata block has the properties of the stream, and a fixed length.
_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
_MARKER_BYTES, _BLOCK_HEADER_BYTES, _INFO_BYTES = 4, 4, 34
# In the marker, the block's header and STREAMINFO: the sample rate (20 bits), channels (3), bits per sample
# (5) and the number of samples (36).
_TOTAL = slice(18, 26)
_TOTAL_MASK = (1 << 36) - 1
# The longest frame header, and frame; and the frames before the end among which the last one is looked for.
_HEADER_BYTES, _MAX_FRAME_BYTES = 16, 1 << 20
_MAX_CANDIDATES = 64
_TRAILERS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", bytes(8))


def find_flac_parts(data: mmap.mmap) -> list[Part]:
    """The streams of a FLAC file that must be given to libsndfile one by one; none: the file as it is.

    Raises `TooManyChunksError`.
    """
    start = skip_id3(data, 0)
    if not _STREAM.match(data, start):
        return []
    starts = [match.start() for match in _STREAM.finditer(data, start)]
    if len(starts) > 1:
        # Not what is in a picture or another block of the metadata.
        starts = [at for at in starts if at == start or at >= _first_frame(data, start)]
    ends = [*starts[1:], len(data)]
    parts = [_part(data, at, end) for at, end in islice(zip(starts, ends, strict=True), MAX_PARTS + 1)]
    is_right = len(parts) == 1 and parts[0].segments == [range(start, len(data))]
    return [] if is_right else parts


def _part(data: mmap.mmap, start: int, end: int) -> Part:
    """The stream at `start`, with its right length if that can be told."""
    stop = end
    last = _last_frame(data, _first_frame(data, start), stop)
    if last is None:
        return Part([range(start, end)])
    position, first, size = last
    head = bytearray(data[start : start + _MARKER_BYTES + _BLOCK_HEADER_BYTES + _INFO_BYTES])
    info = int.from_bytes(head[_TOTAL], "big")
    is_claimed = info & _TOTAL_MASK == first + size
    if _is_whole(data[position : min(stop, position + _MAX_FRAME_BYTES)], is_claimed):
        if is_claimed:
            return Part([range(start, end)])
        total = first + size
    else:
        total, stop = first, position
    if total == 0:
        return Part([range(start, end)])
    head[_TOTAL] = (info & ~_TOTAL_MASK | total & _TOTAL_MASK).to_bytes(8, "big")
    return Part([bytes(head), range(start + len(head), stop)])


def _first_frame(data: mmap.mmap, start: int) -> int:
    """Where the frames of the stream at `start` begin: behind its metadata."""
    position, is_last, blocks = start + _MARKER_BYTES, False, ChunkCounter()
    while not is_last and position + _BLOCK_HEADER_BYTES <= len(data):
        blocks.count()
        is_last = data[position] >= 0x80
        size = int.from_bytes(data[position + 1 : position + _BLOCK_HEADER_BYTES], "big")
        position += _BLOCK_HEADER_BYTES + size
    return position


def _last_frame(data: mmap.mmap, begin: int, end: int) -> tuple[int, int, int] | None:
    """The position, the first sample and the samples per channel of the last frame that begins before `end`.

    What looks like a frame by chance doesn't continue the one before it.
    """
    first_header = data[begin : begin + _HEADER_BYTES]
    first = _parse_frame(first_header, first_header)
    if first is None:
        return None
    later: list[tuple[int, int, int]] = []
    position = end
    while (position := data.rfind(first_header[:2], begin, position)) >= 0:
        frame = _parse_frame(data[position : position + _HEADER_BYTES], first_header)
        if frame is not None:
            number, size = frame
            for at, following, length in later:
                if following == number + size:
                    return at, following, length
            if position == begin:
                return position, number, size
            later.append((position, number, size))
        if len(later) > _MAX_CANDIDATES:
            return None
    return None


def _parse_frame(header: bytes, first: bytes) -> tuple[int, int] | None:
    """The first sample and the samples per channel by a frame's header; None if it is none.

    `first` is the header of the stream's first frame, which has the nominal number of samples.
    """
    if len(header) < 6 or header[:2] not in (b"\xff\xf8", b"\xff\xf9") or header[3] & 1:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()  # the number is coded as in UTF-8, in up to 7 bytes
    length = 4 + max(1, ones)
    number = header[4] & (0x7F >> ones)
    for byte in header[5:length]:
        number = number << 6 | byte & 0x3F
    code, rate = header[2] >> 4, header[2] & 15
    extra = {6: 1, 7: 2}.get(code, 0)
    end = length + extra + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if ones in (1, 8) or code == 0 or rate == 15 or end >= len(header) or _crc8(header[:end]) != header[end]:
        return None
    if extra:
        size = int.from_bytes(header[length : length + extra], "big") + 1
    else:
        size = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    if header[1] & 1:  # the number is that of a sample
        return number, size
    if header is first:
        return 0, size
    nominal = _parse_frame(first, first)
    return None if nominal is None else (number * nominal[1], size)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value


def _is_whole(frame: bytes, expected: bool) -> bool:
    """Whether the frame at the start of `frame` goes to its end, or to what is known to follow frames.

    Anything may follow if the frame is `expected` to be there by the file's header.
    """
    table, value = _crc16_table(), 0
    for index, byte in enumerate(frame, 1):
        value = (value << 8 & 0xFFFF) ^ table[value >> 8 ^ byte]
        # The last two bytes are the checksum.
        if value == 0 and (expected or index == len(frame) or frame.startswith(_TRAILERS, index)):
            return True
    return False


@cache
def _crc16_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 8
        for _ in range(8):
            value = (value << 1 ^ (0x8005 if value & 0x8000 else 0)) & 0xFFFF
        table.append(value)
    return table
