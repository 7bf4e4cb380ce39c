"""Gives AU files that say nothing right about their length one: it goes to the end of the file."""

from __future__ import annotations

import mmap
import struct

from audiocraft_mlx.audio.segments import Part

_ORDERS = {b".snd": ">", b"dns.": "<"}
_HEADER_BYTES = 24


def complete_au(data: mmap.mmap) -> Part | None:
    """The file with the size of its samples; None if that is right already, or it is another kind of file."""
    order = _ORDERS.get(data[:4])
    if order is None or len(data) < _HEADER_BYTES:
        return None
    offset, size = struct.unpack_from(order + "II", data, 4)
    if not _HEADER_BYTES <= offset < len(data) or size == len(data) - offset:
        return None
    head = data[:8] + struct.pack(order + "I", min(len(data) - offset, 0xFFFFFFFF)) + data[12:offset]
    return Part([head, range(offset, len(data))])
