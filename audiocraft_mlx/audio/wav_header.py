"""Finds the samples of WAV files whose header has a wrong size or none, or that were joined.

libsndfile believes the size of the samples, and reads the first of joined files.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass

from audiocraft_mlx.audio.mpeg import skip_id3
from audiocraft_mlx.audio.segments import MAX_PARTS, ChunkCounter, Part

# RIFX has its numbers in big endian.
_MAGICS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}
_UNKNOWN_SIZE = 0xFFFFFFFF
# What may follow samples. Chunks with other names are known by a size that fits into the file.
_CHUNKS = (
    *(b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"cue ", b"smpl", b"fact", b"PEAK", b"JUNK", b"junk"),
    *(b"PAD ", b"FLLR", b"_PMX", b"axml", b"aXML", b"chna", b"inst", b"plst", b"acid", b"cart", b"levl"),
    *(b"afsp", b"DISP", b"umid", b"MD5 ", b"APET"),
)
_ANY_CHUNK = re.compile(b"|".join(map(re.escape, _CHUNKS)))
# One by one: a literal is found much faster than one of several.
_FILES = [re.compile(re.escape(magic) + b".{4}WAVE", re.DOTALL) for magic in _MAGICS]
# The longest chunks, of tags with a picture, that are looked for behind samples of an unknown size.
_MAX_TRAILER = 1 << 22
_MAX_PADDING = 1 << 20
_ID3V1_BYTES = 128
_MPEG_CODECS = (0x50, 0x55)


@dataclass(frozen=True)
class WavFile:
    """A WAV file, or one of those that were joined.

    Attributes:
        order: `<` for little endian.
        format: the `fmt ` chunk's content.
        samples: where they are.
        end: of the file.
        is_right: whether libsndfile finds its samples itself.
    """

    order: str
    format: bytes
    samples: tuple[range, ...]
    end: int
    is_right: bool

    @property
    def is_mpeg(self) -> bool:
        """Whether the samples are frames of MPEG audio."""
        return struct.unpack_from(self.order + "H", self.format)[0] in _MPEG_CODECS

    def part(self) -> Part:
        """The samples alone, with their right size in front."""
        size = sum(map(len, self.samples))
        format_chunk = struct.pack(self.order + "4sI", b"fmt ", len(self.format)) + self.format
        format_chunk += bytes(len(self.format) % 2)
        total = 4 + len(format_chunk) + 8 + size
        if total < _UNKNOWN_SIZE:
            magic = b"RIFF" if self.order == "<" else b"RIFX"
            head = struct.pack(self.order + "4sI4s", magic, total, b"WAVE") + format_chunk
            return Part([head + struct.pack(self.order + "4sI", b"data", size), *self.samples])
        sizes = struct.pack("<4sIQQQI", b"ds64", 28, total + 36, size, 0, 0)
        head = struct.pack("<4sI4s", b"RF64", _UNKNOWN_SIZE, b"WAVE") + sizes + format_chunk
        return Part([head + struct.pack("<4sI", b"data", _UNKNOWN_SIZE), *self.samples])


def find_wav_files(data: mmap.mmap) -> list[WavFile]:
    """The WAV files that `data` was joined from; none if it is another kind of file.

    Raises `TooManyChunksError`.
    """
    files = list[WavFile]()
    position = skip_id3(data, 0)
    while len(files) <= MAX_PARTS and (file := _read(data, position)) is not None:
        files.append(file)
        position = file.end
    return files


def _read(data: mmap.mmap, start: int) -> WavFile | None:
    """The WAV file at `start`; None if there is none, or one without a format."""
    if not _is_file(data, start):
        return None
    magic = data[start : start + 4]
    order, is_right = _MAGICS[magic], magic != b"BW64"
    wave_format, size64 = b"", 0
    samples: list[range] = []
    position = start + 12
    chunks = ChunkCounter()
    while position + 8 <= len(data) and not _is_file(data, position):
        chunks.count()
        name, size = struct.unpack_from(order + "4sI", data, position)
        begin = position + 8
        if name == b"data":
            size = size64 if size == _UNKNOWN_SIZE and magic in (b"RF64", b"BW64") else size
            following = _following(data, begin, size)
            if following is None:
                is_right = False
                end = position = _search_end(data, begin)
            else:
                end, position = begin + size, following
            # Empty samples in front of others: libsndfile reads the first ones.
            is_right = is_right and not samples
            samples.append(range(begin, end))
            continue
        if begin + size > len(data):
            break
        if name == b"fmt " and size >= 16:
            wave_format = data[begin : begin + size]
        elif name == b"ds64" and size >= 16:
            size64 = struct.unpack_from("<Q", data, begin + 8)[0]
        position = _skip_padding(data, begin + size, size)
    if not wave_format or not samples:
        return None
    # Behind the last chunk may be what is none.
    end = position if _is_file(data, position) else len(data)
    return WavFile(order, wave_format, tuple(filter(len, samples)), end, is_right)


def _following(data: mmap.mmap, begin: int, size: int) -> int | None:
    """Where the file goes on behind `size` bytes of samples; None if that can't be their size."""
    end = begin + size
    position = _skip_padding(data, end, size)
    rest = len(data) - position
    if rest < 0 or end > len(data):
        return position if end == len(data) else None
    if rest == 0 or _is_file(data, position) or _is_chunk(data, position):
        return position
    if size and rest <= _MAX_PADDING and not any(data[position:]):
        return len(data)
    tag = data[position : position + 4]
    is_tag = (tag[:3] == b"TAG" and rest == _ID3V1_BYTES) or (tag[:3] == b"ID3" and tag[3:] < b"\5")
    return len(data) if is_tag else None


def _search_end(data: mmap.mmap, begin: int) -> int:
    """The end of samples of an unknown size: chunks that go to the end of the file, or to another one."""
    files = (match.start() for pattern in _FILES if (match := pattern.search(data, begin)))
    end = min(files, default=len(data))
    seen = set[int]()  # from there one doesn't get to the end
    for match in _ANY_CHUNK.finditer(data, max(begin, end - _MAX_TRAILER), end):
        position = match.start()
        while position < end and position not in seen and _is_chunk(data, position):
            seen.add(position)
            size = int.from_bytes(data[position + 4 : position + 8], "little")
            position = _skip_padding(data, position + 8 + size, size)
        if position >= end:
            return match.start()
    return end


def _skip_padding(data: mmap.mmap, end: int, size: int) -> int:
    """The next chunk, at an even place; some writers leave out the byte that makes it one."""
    return end + (size % 2 == 1 and not _is_file(data, end) and data[end : end + 4] not in _CHUNKS)


def _is_file(data: mmap.mmap, position: int) -> bool:
    return data[position : position + 4] in _MAGICS and data[position + 8 : position + 12] == b"WAVE"


def _is_chunk(data: mmap.mmap, position: int) -> bool:
    """Whether a chunk is here, of which the end may be missing."""
    name, size = data[position : position + 4], data[position + 4 : position + 8]
    if len(size) < 4 or not name.isascii() or not name.decode().isprintable():
        return False
    # For RIFX in big endian, too: either fits by chance only into files of gigabytes.
    fits = position + 8 + int.from_bytes(size, "little") <= len(data)
    return fits or position + 8 + int.from_bytes(size, "big") <= len(data) or name in _CHUNKS
