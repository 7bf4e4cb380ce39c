"""The first frame of an MP3 stream, which says how long it is.

LAME leaves room for it and writes it at the end, when a stream has already been sent. Without it a decoder
plays the empty frame and the encoder's delay: 0.1 s too much. All that it says is known beforehand if the bit
rate is constant and the length is given. At low bit rates LAME has no such frame: it would be too small. Here
it has a higher bit rate then, as LAME's own has in streams of a variable one.
Fields: http://gabriel.mp3-tech.org/mp3infotag.html
"""

from __future__ import annotations

import struct

# Samples that LAME puts in front, and behind at least.
_DELAY = 576
_TAG, _HEADER_BYTES = b"Info", 64
INFO_KBPS = 64
"""Bit rate that has room for the frame at all sample rates, in mono and stereo."""
_TOC_OFFSET, _TOC_BYTES = 16, 100
_LAME_OFFSET = 120
_PADDING_OFFSET, _MUSIC_LENGTH_OFFSET, _CRC_OFFSET = _LAME_OFFSET + 21, _LAME_OFFSET + 28, _LAME_OFFSET + 34


def has_info_frame(stream: bytes) -> bool:
    """Whether a stream begins with such a frame."""
    return _TAG in stream[:_HEADER_BYTES]


def info_frame(template: bytes, template_kbps: int, samples: int, sample_rate: int, kbps: int) -> bytes:
    """The first frame of a stream of `samples` per channel at `kbps`, made from that of another stream.

    `template` has a frame like it (`has_info_frame`), at `template_kbps`.
    """
    at = template.index(_TAG, 0, _HEADER_BYTES)
    frame_samples = 1152 if sample_rate >= 32_000 else 576  # MPEG 1, MPEG 2
    size = frame_samples * 125 * template_kbps // sample_rate
    behind = frame_samples - (samples + _DELAY) % frame_samples
    if behind < _DELAY:
        behind += frame_samples
    frames = (_DELAY + samples + behind) // frame_samples
    total = size + frames * frame_samples * 125 * kbps // sample_rate
    frame = bytearray(template[:size])
    frame[at + 8 : at + 16] = struct.pack(">II", frames, total)
    # Where in the file each hundredth of the time is, in 256ths.
    toc = bytes(percent * 256 // 100 for percent in range(_TOC_BYTES))
    frame[at + _TOC_OFFSET : at + _TOC_OFFSET + _TOC_BYTES] = toc
    padding = _DELAY << 12 | behind
    frame[at + _PADDING_OFFSET : at + _PADDING_OFFSET + 3] = padding.to_bytes(3, "big")
    # The checksum of the music isn't known yet: 0.
    frame[at + _MUSIC_LENGTH_OFFSET : at + _MUSIC_LENGTH_OFFSET + 6] = struct.pack(">IH", total, 0)
    checked = at + _CRC_OFFSET
    frame[checked : checked + 2] = _crc16(bytes(frame[:checked])).to_bytes(2, "big")
    return bytes(frame)


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc
