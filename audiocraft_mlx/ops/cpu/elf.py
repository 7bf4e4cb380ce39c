"""Where a Linux library keeps the addresses of the functions that it binds on their first call.

The few structures of an ELF file that say so (System V ABI, chapters 4 and 5; 64 bits, little-endian). The
libraries that read all of ELF take a tenth of a second to import, at every start.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_IDENT = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<QQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_PLTREL, _DT_JMPREL = 2, 5, 6, 20, 23
_DT_RELA = 7
_DT_BIND_NOW, _DT_FLAGS, _DT_FLAGS_1 = 24, 30, 0x6FFFFFFB


def function_slots(library: Path) -> dict[str, int]:
    """Each function's offset from the library's base of where its address is kept.

    Empty for a file of another kind, and for a library that binds all functions when it is loaded: its table
    is read-only then.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return dict(_read(data)) if data[: len(_IDENT)] == _IDENT else {}
    except (struct.error, ValueError, KeyError, IndexError):  # empty, cut off, or damaged
        return {}


def _read(data: mmap.mmap) -> Iterator[tuple[str, int]]:
    header = _HEADER.unpack_from(data)
    start, size, count = header[5], header[9], header[10]
    segments = [_SEGMENT.unpack_from(data, start + size * index) for index in range(count)]

    def position(address: int) -> int:
        """Where in the file is what is loaded to `address`."""
        for kind, _, offset, begin, _, length, _, _ in segments:
            if kind == _PT_LOAD and begin <= address < begin + length:
                return int(offset + address - begin)
        raise ValueError(f"nothing is loaded to {address}")

    dynamic: dict[int, int] = {}
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _PT_DYNAMIC:
            dynamic.update(_DYNAMIC.iter_unpack(data[offset : offset + length]))
    at_once = _DT_BIND_NOW in dynamic or dynamic.get(_DT_FLAGS, 0) & 8 or dynamic.get(_DT_FLAGS_1, 0) & 1
    if at_once or dynamic.get(_DT_PLTREL) != _DT_RELA:
        return
    table, symbols, names = (position(dynamic[tag]) for tag in (_DT_JMPREL, _DT_SYMTAB, _DT_STRTAB))
    for slot, info, _ in _RELOCATION.iter_unpack(data[table : table + dynamic[_DT_PLTRELSZ]]):
        name = names + _SYMBOL.unpack_from(data, symbols + _SYMBOL.size * (info >> 32))[0]
        yield data[name : data.find(b"\0", name)].decode(), slot
