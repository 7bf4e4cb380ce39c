"""Finds the parts of a chained Ogg file, which was joined from several: libsndfile reads the first one."""

from __future__ import annotations

import mmap

# "OggS", version, flags, position, serial number, page number, checksum; then the number of segments.
_HEADER_BYTES = 27
_FLAGS, _FIRST_PAGE = 5, 2


def find_ogg_links(data: mmap.mmap) -> list[range]:
    """Where the parts of an Ogg file are; none if it is another kind of file."""
    starts: list[int] = []
    position, in_headers = 0, False
    while data[position : position + 4] == b"OggS" and position + _HEADER_BYTES < len(data):
        # The first pages of all streams of a part stand together, at its start.
        is_first = bool(data[position + _FLAGS] & _FIRST_PAGE)
        if is_first and not in_headers:
            starts.append(position)
        in_headers = is_first
        segments = data[position + _HEADER_BYTES - 1]
        table = data[position + _HEADER_BYTES : position + _HEADER_BYTES + segments]
        position += _HEADER_BYTES + segments + sum(table)
    # What is no page belongs to the part before: libsndfile looks for the next one itself.
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(data)], strict=False)]
