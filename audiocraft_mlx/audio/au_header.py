"""Gives AU files that say nothing right about their length one: it goes to the end of the file."""

from __future__ import annotations

import mmap
import struct

from audiocraft_mlx.audio.segments import Part

_ORDERS = {b".snd": ">", b"dns.": "<"}
_HEADER_BYTES = 24


def complete_au(data: mmap.mmap, file: range) -> Part:
    """The AU file at `file` with the size of its samples; as it is, if it is another kind of file."""
    head = data[file.start : file.start + _HEADER_BYTES]
    order = _ORDERS.get(head[:4])
    if order is None or len(head) < _HEADER_BYTES:
        return Part([file])
    offset, claimed = struct.unpack_from(order + "II", head, 4)
    size = len(file) - offset
    if offset < _HEADER_BYTES or size <= 0 or claimed == size:
        return Part([file])
    head = head[:8] + struct.pack(order + "I", min(size, 0xFFFFFFFF)) + head[12:]
    return Part([head, file[_HEADER_BYTES:]])
