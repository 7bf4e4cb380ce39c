"""Finds the frames of MPEG audio (MP3, MP2), so that a file is decoded to its end.

libsndfile believes the length in the header, or guesses it from the first frame: of a stream with a variable
bit rate, or of files joined into one, it decodes a part. So the frames are counted here, and libsndfile gets
each part with a header that says how many there are (http://gabriel.mp3-tech.org/mp3infotag.html).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from audiocraft_mlx.audio.segments import ChunkCounter, Part

# kbit/s of the indices 1 to 14: MPEG-1 layers 1 to 3, then layer 1 and the others of MPEG-2 and 2.5.
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Hz, by the index of the rate, for MPEG-1. MPEG-2 has half of it, MPEG-2.5 a quarter.
_RATES = (44100, 48000, 32000)
_RATE_DIVISORS = {3: 1, 2: 2, 0: 4}
# The first three bytes of a frame's header, without reserved values and free bit rates.
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]", re.DOTALL)
# This many frames in a row aren't found in other data by chance.
_MIN_FRAMES = 4
# Tags and the like are skipped up to this length: pictures are in some.
_MAX_GAP = 1 << 24
_MAX_PADDING = 1 << 18
# A header's bits without those that differ between the frames of a stream: padding, bit rate, stereo mode, …
_STEREO_MODE, _MONO = 0xC0, 0xC0
# Long enough for a Xing header in all versions, with LAME's extension.
_INFO_BYTES = 4 + 32 + 12 + 36
_INFO_FRAME_BYTES = 200


@dataclass(frozen=True)
class _Header:
    """What a frame's header says."""

    version: int
    layer: int
    rate: int
    channels: int
    size: int
    """Bytes of the frame."""

    @property
    def stream(self) -> tuple[int, int, int, int]:
        """What all frames of a stream have in common."""
        return self.version, self.layer, self.rate, self.channels

    @property
    def samples(self) -> int:
        """Per channel."""
        if self.layer == 1:
            return 384
        return 576 if self.layer == 3 and self.version != 3 else 1152

    @property
    def info_offset(self) -> int:
        """Where a Xing header is in its frame: after the side information."""
        if self.version == 3:
            return 4 + (17 if self.channels == 1 else 32)
        return 4 + (9 if self.channels == 1 else 17)


@dataclass
class MpegPart:
    """What one encoder wrote: frames of the same kind, without the frame that only describes them.

    Attributes:
        ranges: where the frames are in the file.
        frames: how many there are.
        delay, padding: samples that the encoder has put in front and behind; None if they are unknown.
    """

    first: int
    """The first frame's header, 4 bytes."""
    header: _Header
    claimed_frames: int | None = None
    delay: int | None = None
    padding: int | None = None
    frames: int = 0
    ranges: list[range] = field(default_factory=list)

    @property
    def rate(self) -> int:
        return self.header.rate

    @property
    def channels(self) -> int:
        return self.header.channels

    def part(self) -> Part:
        """A file of this part alone, with its right length in front."""
        if self.header.layer == 3:
            return Part([self._info_frame(), *self.ranges])
        # Layers 1 and 2 have no such header.
        return Part(self.ranges, self.frames * self.header.samples)

    def add(self, position: int, size: int) -> None:
        self.frames += 1
        if self.ranges and self.ranges[-1].stop == position:
            self.ranges[-1] = range(self.ranges[-1].start, position + size)
        else:
            self.ranges.append(range(position, position + size))

    def _info_frame(self) -> bytes:
        """A frame with a Xing header: how many frames follow it, and LAME's delay and padding."""
        for index in range(1, 15):
            header = self.first & ~0xF200 | 0x1_0000 | index << 12  # without a checksum and a padding byte
            parsed = _parse(header)
            if parsed is not None and parsed.size >= _INFO_FRAME_BYTES:
                break
        assert parsed is not None
        frame = bytearray(parsed.size)
        struct.pack_into(">I", frame, 0, header)
        at = parsed.info_offset
        struct.pack_into(">4sII", frame, at, b"Xing", 1, self.frames)
        if self.delay is not None:
            # What is cut off at the end is right only if the end is there.
            whole = self.claimed_frames in (self.frames, self.frames + 1)
            padding = self.padding if whole and self.padding is not None else 0
            frame[at + 12 : at + 21] = b"LAME3.100"
            frame[at + 33 : at + 36] = (self.delay << 12 | padding).to_bytes(3, "big")
        return bytes(frame)


def find_mpeg_parts(data: mmap.mmap, search: bool = False, start: int = 0) -> list[MpegPart]:
    """The parts of an MPEG audio file; none if it is another kind of file.

    Args:
        data: the whole file.
        search: skip what is in front of the first frame, also if it is no ID3 tag.
        start: what is in front of it is skipped anyway.
    """
    begin = skip_id3(data, start)
    search = search or begin > start
    position = _find_frames(data, begin, _MAX_PADDING) if search else begin
    if position is None or not _is_run(data, position):
        return []
    parts: list[MpegPart] = []
    for at, bits, header in _frames(data, position):
        info = _read_info(data, at, header)
        if info is not None:
            parts.append(MpegPart(bits, header, *info))
            continue
        if not parts or parts[-1].header.stream != header.stream:
            parts.append(MpegPart(bits, header))
        parts[-1].add(at, header.size)
    return [part for part in parts if part.frames]


def _frames(data: mmap.mmap, position: int) -> Iterator[tuple[int, int, _Header]]:
    """The place, the header's bits and the header of each whole frame."""
    size = len(data)
    stream = None
    while position + 4 <= size:
        bits = int.from_bytes(data[position : position + 4], "big")
        header = _parse(bits)
        if header is None or (header.stream != stream and not _is_run(data, position)):
            found = _find_frames(data, skip_id3(data, position), _MAX_GAP)
            if found is None:
                return
            position = found
            continue
        if position + header.size > size:
            return
        yield position, bits, header
        stream = header.stream
        position += header.size


def _find_frames(data: mmap.mmap, start: int, limit: int) -> int | None:
    """Where frames begin, from `start` on."""
    for match in _SYNC.finditer(data, start, min(len(data), start + limit)):
        if _is_run(data, match.start()):
            return match.start()
    return None


def _is_run(data: mmap.mmap, position: int) -> bool:
    """Whether some frames of one stream follow each other here, or fewer to the end of the file."""
    stream = None
    for count in range(_MIN_FRAMES):
        if position == len(data) or data[position : position + 3] == b"TAG":  # an ID3v1 tag is the end
            return count > 0
        header = _parse(int.from_bytes(data[position : position + 4], "big"))
        if header is None or stream not in (None, header.stream):
            return False
        stream = header.stream
        position += header.size
    return True


def skip_id3(data: mmap.mmap, position: int) -> int:
    """The end of the ID3v2 tags at `position`. Raises `TooManyChunksError`."""
    tags = ChunkCounter()
    while (tag := data[position : position + 10])[:3] == b"ID3" and len(tag) == 10:
        tags.count()
        length = 0
        for byte in tag[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if tag[5] & 0x10 else 0)
    return min(position, len(data))


def _read_info(data: mmap.mmap, at: int, header: _Header) -> tuple[int | None, int | None, int | None] | None:
    """The count, delay and padding that a frame has in place of audio; None if it has audio."""
    if header.layer != 3:
        return None
    if data[at + 36 : at + 40] == b"VBRI":
        return None, None, None
    info = data[at + header.info_offset : at + header.size]
    if info[:4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(info[4:8], "big")
    claimed = int.from_bytes(info[8:12], "big") if flags & 1 else None
    lame = info[8 + sum(length for bit, length in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) :]
    if len(lame) < 24 or not lame[0]:
        return claimed, None, None
    both = int.from_bytes(lame[21:24], "big")
    return claimed, both >> 12, both & 0xFFF


@lru_cache(maxsize=4096)
def _parse(bits: int) -> _Header | None:
    """The header in 32 `bits`; None if they are none."""
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    bitrate, rate = bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] // _RATE_DIVISORS[version]
    bytes_per_second = _BITRATES[version == 3, layer][bitrate - 1] * 125
    padding = bits >> 9 & 1
    channels = 1 if bits & _STEREO_MODE == _MONO else 2
    if layer == 1:
        return _Header(version, layer, hertz, channels, (96 * bytes_per_second // (8 * hertz) + padding) * 4)
    samples = 576 if layer == 3 and version != 3 else 1152
    return _Header(version, layer, hertz, channels, samples * bytes_per_second // hertz + padding)
