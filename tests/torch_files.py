"""Writes files as `torch.save` does, zip and legacy, without PyTorch."""

import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from pickle import encode_long
from typing import Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass(frozen=True)
class Opcodes:
    """Pickle opcodes that are written unchanged, in place of a value."""

    code: bytes


@dataclass(frozen=True)
class Pickled:
    """An object without arrays that Python's own pickler writes, in this protocol."""

    value: Any
    protocol: int = 2

    def opcodes(self, first: int) -> bytes:
        """Its opcodes, to be put into another pickle; they use its memo from the index `first` on."""
        data = pickle.dumps(self.value, self.protocol)
        ops = list(pickletools.genops(data))
        ends = [*(position for _, _, position in ops[1:]), len(data)]
        code, stored = bytearray(), 0
        for (op, argument, start), end in zip(ops, ends, strict=True):
            match op.name:
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case "BINPUT" | "LONG_BINPUT":
                    code += b"r" + struct.pack("<I", first + argument)
                case "MEMOIZE":
                    code += b"r" + struct.pack("<I", first + stored)
                    stored += 1
                case "BINGET" | "LONG_BINGET":
                    code += b"j" + struct.pack("<I", first + argument)
                case _:
                    code += data[start:end]
        return bytes(code)


@dataclass(frozen=True)
class Parameter:
    """An array that is saved as a torch.nn.Parameter."""

    data: np.ndarray


def write_torch_file(path: Path, obj: Any, legacy: bool = False) -> None:
    """Save nested dicts, lists, tuples, scalars and arrays (NumPy's; MLX's for bfloat16) as PyTorch would.

    Views share the storage of their base array, which is saved in full.
    """
    pickler = _Pickler(legacy)
    pickler.emit(obj)
    if legacy:
        _write_legacy(path, pickler)
    else:
        _write_zip(path, pickler)


def write_torch_zip(path: Path, data_pkl: bytes, storages: dict[str, bytes], prefix: str = "archive") -> None:
    """Pack a pickle and its storages into a zip archive like PyTorch's."""
    records = {"data.pkl": data_pkl, "byteorder": b"little"}
    records |= {f"data/{key}": data for key, data in storages.items()} | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(f"{prefix}/{name}")
            # PyTorch aligns the data by padding in the local header, which is not in the directory.
            padding = -(archive.fp.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(info, data)
            info.extra = b""


def pickled(obj: Any) -> bytes:
    """A pickle of protocol 2 of an object without arrays."""
    pickler = _Pickler(legacy=False)
    pickler.emit(obj)
    return pickler.finished()


def _write_zip(path: Path, pickler: "_Pickler") -> None:
    storages = {key: root.tobytes() for key, (_, root) in pickler.storages.items()}
    write_torch_zip(path, pickler.finished(), storages, prefix=path.stem)


def _write_legacy(path: Path, pickler: "_Pickler") -> None:
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with open(path, "wb") as file:
        file.write(pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled(system))
        file.write(pickler.finished() + pickled(list(pickler.storages)))
        for _, root in pickler.storages.values():
            file.write(struct.pack("<q", root.size) + root.tobytes())


@dataclass
class _Pickler:
    """Emits the opcodes that Python's pickler would emit for PyTorch's objects."""

    legacy: bool
    code: bytearray = field(default_factory=lambda: bytearray(b"\x80\x02"))
    memo: dict[str, int] = field(default_factory=dict)
    foreign: int = 0  # pickles of Python's in this one
    storages: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)  # by key: class name, elements

    def finished(self) -> bytes:
        return bytes(self.code) + b"."

    def emit(self, value: Any) -> None:
        match value:
            case Opcodes():
                self.code += value.code
            case Pickled():
                self.foreign += 1
                self.code += value.opcodes(self.foreign * 2**24)
            case None:
                self.code += b"N"
            case bool():
                self.code += b"\x88" if value else b"\x89"
            case int():
                self._int(value)
            case float():
                self.code += b"G" + struct.pack(">d", value)
            case str():
                self._memoized(value, b"X" + struct.pack("<I", len(value.encode())) + value.encode())
            case Fraction():
                self._call("fractions", "Fraction", (value.numerator, value.denominator))
            case OrderedDict():
                self._call("collections", "OrderedDict", ())
                self._items(value)
            case dict():
                self.code += b"}"
                self._items(value)
            case list():
                self.code += b"]("
                self._each(value)
                self.code += b"e"
            case tuple():
                self.code += b"("
                self._each(value)
                self.code += b"t"
            case Parameter():
                self._call("torch._utils", "_rebuild_parameter", (value.data, True, OrderedDict()))
            case mx.array() if value.dtype == mx.bfloat16:
                self._tensor(np.array(value.view(mx.uint16)), "BFloat16Storage")
            case np.ndarray():
                self._tensor(value, STORAGES[value.dtype.name])
            case _:
                raise TypeError(f"can't save a {type(value).__name__}")

    def _int(self, value: int) -> None:
        if 0 <= value < 2**8:
            self.code += b"K" + struct.pack("<B", value)
        elif 0 <= value < 2**16:
            self.code += b"M" + struct.pack("<H", value)
        elif -(2**31) <= value < 2**31:
            self.code += b"J" + struct.pack("<i", value)
        else:
            long = encode_long(value)
            self.code += b"\x8a" + struct.pack("<B", len(long)) + long

    def _memoized(self, value: str, code: bytes) -> None:
        """Emit `code` and memoize its result; the second time, get it from the memo."""
        if value in self.memo:
            index = self.memo[value]
            self.code += struct.pack("<cB", b"h", index) if index < 256 else struct.pack("<cI", b"j", index)
        else:
            index = self.memo[value] = len(self.memo)
            self.code += code
            self.code += struct.pack("<cB", b"q", index) if index < 256 else struct.pack("<cI", b"r", index)

    def _global(self, module: str, name: str) -> None:
        line = f"{module}\n{name}\n"
        self._memoized(line, b"c" + line.encode())

    def _call(self, module: str, name: str, arguments: tuple[Any, ...]) -> None:
        self._global(module, name)
        self.emit(arguments)
        self.code += b"R"

    def _items(self, items: dict[Any, Any]) -> None:
        self.code += b"("
        for key, value in items.items():
            self.emit(key)
            self.emit(value)
        self.code += b"u"

    def _each(self, values: list[Any] | tuple[Any, ...]) -> None:
        for value in values:
            self.emit(value)

    def _tensor(self, array: np.ndarray, storage: str) -> None:
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not root.flags.c_contiguous or root.dtype != array.dtype or min(array.strides, default=0) < 0:
            root = array = array.copy()
        key = next(
            (key for key, (_, known) in self.storages.items() if known is root), str(len(self.storages))
        )
        self.storages[key] = (storage, root)
        offset = (array.ctypes.data - root.ctypes.data) // array.itemsize
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self._global("torch._utils", "_rebuild_tensor_v2")
        self.code += b"(("
        self.emit("storage")
        self._global("torch", storage)
        self._each([key, "cpu", root.size, *([None] if self.legacy else [])])
        self.code += b"tQ"
        self._each([offset, array.shape, strides, False, OrderedDict()])
        self.code += b"tR"


def arrays(value: Any) -> Any:
    """A saved object with NumPy arrays in place of its tensors."""
    if isinstance(value, dict):
        return {name: arrays(item) for name, item in value.items()}
    return np.array(value.load()) if isinstance(value, LazyTensor) else value
