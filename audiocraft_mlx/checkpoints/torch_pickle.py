"""PyTorch's saved files, read without PyTorch and without executing the pickle inside.

`torch.save` writes a pickle of nested dicts, lists and numbers, in which each tensor is a reference, and
beside it the raw bytes of the tensors: since PyTorch 1.6 as the records of an uncompressed zip archive,
before that one after the other behind the pickle ("legacy").

A pickle is a program that may call anything. The interpreter here supports only the opcodes that such files
need; nothing is imported or called. The few functions that rebuild tensors are known by name, a call of
any other is refused, and a class that is only referenced becomes a `GlobalRef`, an inert name.

Files of a training have more: the configuration as objects of OmegaConf, which are read as the dicts and
lists that they stand for (`inert_objects.ConfigRecord`), and objects of other classes, which are refused or,
where the reader doesn't need them, left out.
"""

import io
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from audiocraft_mlx.checkpoints.inert_objects import (
    INERT_CALLS,
    SHARD,
    SHARDED_TENSOR,
    ConfigRecord,
    GlobalRef,
    InertObject,
    is_config_class,
)
from audiocraft_mlx.checkpoints.model_files import read_error
from audiocraft_mlx.errors import CheckpointError

# Far above what any model needs (the largest pickle of a release has 60 kB and 15,000 opcodes), low enough
# that a hostile file costs a fraction of a second and little memory.
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_OPCODES = 100_000
# A training's file holds each tensor up to five times, and the figures of each epoch: an opcode more for each
# of these bytes, up to a limit.
_BYTES_PER_OPCODE = 1024
_MAX_OPCODES_OF_LARGE_FILES = 600_000
_MAX_ZIP_DIRECTORY_BYTES = 2 * 2**20
_MAX_DEPTH = 64
_MAX_DIMENSIONS = 8
_MAX_KEY_LENGTH = 1024

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# Each storage class: its elements in the file, and in MLX. NumPy has no bfloat16, and GPUs no float64.
_STORAGES = {
    "torch.DoubleStorage": ("<f8", mx.float32),
    "torch.FloatStorage": ("<f4", mx.float32),
    "torch.HalfStorage": ("<f2", mx.float16),
    "torch.BFloat16Storage": ("<u2", mx.bfloat16),
    "torch.LongStorage": ("<i8", mx.int64),
    "torch.IntStorage": ("<i4", mx.int32),
    "torch.ShortStorage": ("<i2", mx.int16),
    "torch.CharStorage": ("|i1", mx.int8),
    "torch.ByteStorage": ("|u1", mx.uint8),
    "torch.BoolStorage": ("|u1", mx.bool_),
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's place in its file. Its data is not read before `load`."""

    path: Path
    offset: int  # in bytes, of the tensor's first element in the file
    stored: np.dtype  # the file's elements; bfloat16 as uint16, bool as uint8
    dtype: mx.Dtype  # of the loaded array; float64 becomes float32
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, never negative

    def load(self) -> mx.array:
        """Read the tensor's bytes, and only those, into an array of `shape` and `dtype`.

        Raises CheckpointError if the file can't be read or has become shorter.
        """
        if 0 in self.shape:
            return mx.zeros(self.shape, self.dtype)
        span = _span(self.shape, self.strides)
        try:
            elements = np.fromfile(self.path, self.stored, span, offset=self.offset)
        except OSError as error:
            raise read_error(self.path, error) from None
        if elements.size < span:
            raise CheckpointError(f"{self.path} has become shorter since it was opened; load it again")
        byte_strides = [stride * self.stored.itemsize for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(elements, self.shape, byte_strides)
        if self.dtype == mx.bfloat16:
            return mx.array(array).view(mx.bfloat16)
        return mx.array(array, self.dtype)


def read_torch_file(path: Path, needed: Collection[str] | None = None) -> object:
    """Read a file that `torch.save` wrote, in the zip or in the legacy form.

    Args:
        needed: of a saved dict, the keys whose values may hold no objects of unknown classes. Under other
            keys a `GlobalRef` of the class takes the place of such a value, as a whole. None: all of them.

    Returns the saved object: dicts (also for OrderedDicts, defaultdicts and OmegaConf's DictConfigs), lists
    (also for ListConfigs), tuples, strings, numbers and None, with a `LazyTensor` for each tensor and a
    `GlobalRef` for each class that is referenced. References in a configuration (`${...}`) stay as they are.
    Raises CheckpointError if the file can't be read, is damaged, is of another type, or would run code.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            if head.startswith(b"PK"):
                return _read_zip(path, file, needed)
            if head.startswith(b"\x80"):
                return _read_legacy(path, file, needed)
    except _Fault as fault:
        raise CheckpointError(f"{path} {fault}") from None
    except OSError as error:
        raise read_error(path, error) from None
    raise CheckpointError(f"{path} {_guess_file_type(head)}")


class _Fault(Exception):
    """A problem with the file, as the end of a sentence that begins with its path."""


class _UnknownObject(_Fault):
    """An object of a class that isn't known, where none may be."""

    def __init__(self, name: str) -> None:
        super().__init__(_refusal(f"asks to run {_shown(name)}"))
        self.name = name


def _damaged(detail: str) -> _Fault:
    return _Fault(f"is damaged ({detail}); delete it and download it again")


def _refused(action: str) -> _Fault:
    return _Fault(_refusal(action))


def _refusal(action: str) -> str:
    return f"{action}; a model file never needs that, refusing it"


def _shown(text: str) -> str:
    """A string from an untrusted file, safe for a one-line message."""
    return repr(text[:100])[1:-1]


def _guess_file_type(head: bytes) -> str:
    """The likely type of a file that is not PyTorch's, by its first bytes, and what to do about it."""
    text = head.lstrip().lower()
    if not head:
        return "is empty; delete it and download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; run `git lfs pull` or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, probably a saved error message; delete it and download it again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "is a safetensors file; rename it to end in .safetensors"
    return "is not a file saved by PyTorch; delete it and download it again"


# The two forms of file


@dataclass(frozen=True)
class _Storage:
    """A run of elements in the file, which one or more tensors view."""

    path: Path
    kind: str  # a key of _STORAGES
    offset: int  # bytes
    count: int  # elements


# Finds the storage of a kind, key and element count that the pickle refers to.
_FindStorage = Callable[[str, str, int], _Storage]


def _read_zip(path: Path, file: BinaryIO, needed: Collection[str] | None) -> object:
    size = os.fstat(file.fileno()).st_size
    records = _zip_records(path, size)
    prefixes = [name.removesuffix("data.pkl") for name in records if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(prefixes) != 1:
        raise _Fault("is a zip archive, but not one of PyTorch's; delete it and download it again")
    prefix = prefixes[0]

    def locate(name: str) -> tuple[int, int]:
        """Offset and length in bytes of a record."""
        if name not in records:
            raise _damaged(f"it lacks the record {_shown(name)}")
        record = records[name]
        # The directory doesn't tell how long a local header is, and PyTorch pads it to align the data.
        file.seek(record.header_offset)
        header = file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise _damaged(f"the record {_shown(name)} has no header")
        start = record.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + record.file_size > size:
            raise _damaged(f"the record {_shown(name)} reaches past the end")
        return start, record.file_size

    def content(name: str, limit: int) -> bytes:
        start, length = locate(name)
        if length > limit:
            raise _damaged(f"the record {_shown(name)} is too long")
        file.seek(start)
        data = file.read(length)
        if zlib.crc32(data) != records[name].CRC:
            raise _damaged(f"the record {_shown(name)} has a wrong checksum")
        return data

    def find_storage(kind: str, key: str, count: int) -> _Storage:
        start, length = locate(f"{prefix}data/{key}")
        if count * _item_size(kind) > length:
            raise _damaged(f"the record of the storage {_shown(key)} is too short")
        return _Storage(path, kind, start, count)

    if f"{prefix}byteorder" in records and content(f"{prefix}byteorder", 16) != b"little":
        raise _Fault("was saved on a big-endian machine; save it again on a little-endian one")
    stream = io.BytesIO(content(f"{prefix}data.pkl", _MAX_PICKLE_BYTES))
    most = _max_opcodes(size)
    return _finished(_interpret(_opcodes(stream, most), find_storage), needed, most)


class _BoundedFile(io.FileIO):
    """A file that refuses large reads: `zipfile` reads the whole directory at once, however long it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        size = rest if size is None or size < 0 else min(size, rest)
        if size > _MAX_ZIP_DIRECTORY_BYTES:
            raise _damaged("its zip directory is too long")
        return super().read(max(size, 0)) or b""


def _zip_records(path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory, checked: uncompressed records that fit into the file."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        raise _damaged("its zip directory is missing or wrong, perhaps the file was cut short") from None
    records = {info.filename: info for info in infos}
    if len(records) < len(infos):
        raise _damaged("two of its records have the same name")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise _refused("has compressed or encrypted records")
    if any(not 0 <= info.header_offset <= size for info in infos):
        raise _damaged("a record lies outside the file")
    # Records that overlap would let a small file grow without limit when loaded.
    if sum(info.file_size for info in infos) > size:
        raise _damaged("its records are longer than the file")
    return records


def _read_legacy(path: Path, file: BinaryIO, needed: Collection[str] | None) -> object:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    most = _max_opcodes(size)
    opcodes = _opcodes(stream, most)

    def no_storage(kind: str, key: str, count: int) -> _Storage:
        raise _damaged("a tensor in its header")

    if _interpret(opcodes, no_storage) != _LEGACY_MAGIC:
        raise _Fault("is a pickle, but not one of PyTorch's; delete it and download it again")
    if _interpret(opcodes, no_storage) != _LEGACY_PROTOCOL:
        raise _Fault("has an unknown version of PyTorch's old format; save it again with a new PyTorch")
    system = _interpret(opcodes, no_storage)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Fault("was saved on a big-endian machine; save it again on a little-endian one")

    # The storages' offsets are known only after the pickle that refers to them. So the pickle is read twice:
    # first for the storages' kinds and lengths, then again with their offsets.
    storages: dict[str, _Storage] = {}

    def record_storage(kind: str, key: str, count: int) -> _Storage:
        storage = storages.setdefault(key, _Storage(path, kind, 0, count))
        if (storage.kind, storage.count) != (kind, count):
            raise _damaged(f"the storage {_shown(key)} is described in two ways")
        return storage

    start = stream.tell()
    _interpret(opcodes, record_storage)
    keys = _interpret(opcodes, no_storage)
    if not isinstance(keys, list) or not all(_is_name(key) for key in keys):
        raise _damaged("its list of storages is wrong")
    if sorted(keys) != sorted(storages):
        raise _damaged("its list of storages doesn't fit its tensors")

    located: dict[str, _Storage] = {}
    position = stream.tell()
    for key in keys:
        recorded = storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little", signed=True) != recorded.count:
            raise _damaged(f"the storage {_shown(key)} has a wrong length")
        located[key] = _Storage(path, recorded.kind, position + 8, recorded.count)
        position += 8 + recorded.count * _item_size(recorded.kind)
        if position > size:
            raise _damaged(f"the storage {_shown(key)} reaches past the end")

    stream.seek(start)
    return _finished(_interpret(opcodes, lambda kind, key, count: located[key]), needed, most)


def _item_size(kind: str) -> int:
    return np.dtype(_STORAGES[kind][0]).itemsize


def _max_opcodes(size: int) -> int:
    """How many opcodes a file of this many bytes may have."""
    return min(_MAX_OPCODES + size // _BYTES_PER_OPCODE, _MAX_OPCODES_OF_LARGE_FILES)


def _finished(value: Any, needed: Collection[str] | None, most: int) -> object:
    """The object that `_interpret` returned, as `read_torch_file` does. `most` parts may be in it."""
    walk = _Walk(most)
    if needed is None or not isinstance(value, dict):
        return walk.plain(value)
    walk.count(value)
    for key, item in list(value.items()):
        try:
            value[key] = walk.plain(item, 1)
        except _UnknownObject as error:
            if key in needed:
                raise
            value[key] = GlobalRef(error.name)
    return value


class _Walk:
    """Goes through an object: puts what OmegaConf's records stand for into their places.

    Refuses objects that are circular, too deep, or small but huge when their shared parts are expanded, and
    those of unknown classes.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def count(self, items: Collection[object], depth: int = 0) -> None:
        # Each item of a plain tree took at least one opcode.
        self._left -= len(items)
        if depth >= _MAX_DEPTH or self._left < 0:
            raise _damaged("its object is circular or nested too deeply")

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The value without records; dicts and lists are changed in place."""
        if isinstance(value, ConfigRecord):
            self.count((value,), depth)
            try:
                return self.plain(value.content(), depth + 1)
            except ValueError as error:
                raise _damaged(str(error)) from None
        if isinstance(value, InertObject):
            raise _UnknownObject(value.name)
        if isinstance(value, _Storage):
            raise _damaged("a storage that belongs to no tensor")
        if isinstance(value, dict):
            self.count(value, depth)
            for key, part in list(value.items()):
                if isinstance(part, _PARTS):
                    value[key] = self.plain(part, depth + 1)
        elif isinstance(value, list):
            self.count(value, depth)
            for index, part in enumerate(value):
                if isinstance(part, _PARTS):
                    value[index] = self.plain(part, depth + 1)
        elif isinstance(value, tuple):
            self.count(value, depth)
            parts = [self.plain(part, depth + 1) if isinstance(part, _PARTS) else part for part in value]
            if any(new is not old for new, old in zip(parts, value, strict=True)):
                return tuple(parts)
        return value


# What `_Walk` has to look into, or at.
_PARTS = (dict, list, tuple, ConfigRecord, InertObject, _Storage)


# The interpreter


def _read_global(stream: BinaryIO) -> str:
    """GLOBAL's argument as one dotted name. (pickletools' own reader warns about backslashes.)"""
    module, name = stream.readline(), stream.readline()
    if not (module.endswith(b"\n") and name.endswith(b"\n")):
        raise ValueError("unfinished line")
    return f"{module[:-1].decode()}.{name[:-1].decode()}"


_NUMBERS_AND_STRINGS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "EMPTY_LIST", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_OPCODE_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_READERS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    opcode.code.encode("latin-1"): (opcode.name, opcode.arg.reader if opcode.arg else lambda stream: None)
    for opcode in pickletools.opcodes
    if opcode.name in {*_NUMBERS_AND_STRINGS, *_CONSTANTS, *_TUPLES, *_ACTIONS}
} | {b"c": ("GLOBAL", _read_global)}


def _opcodes(stream: io.BytesIO, most: int) -> Iterator[tuple[str, Any]]:
    """The names and arguments of all opcodes of all pickles in the stream; one budget for them all.

    (Not pickletools.genops, because that parses the arguments of the refused opcodes too.)
    """
    for _ in range(most):
        code = stream.read(1)
        if not code:
            raise _damaged("its pickle ends early")
        if code not in _READERS:
            if code in _OPCODE_NAMES:
                raise _refused(f"uses the pickle opcode {_OPCODE_NAMES[code]}")
            raise _damaged(f"its pickle has an unknown opcode {code!r}")
        name, read_argument = _READERS[code]
        try:
            argument = read_argument(stream)
        except ValueError:
            raise _damaged(f"the argument of the opcode {name}") from None
        yield name, argument
    raise _damaged("its pickle is too long")


def _interpret(opcodes: Iterator[tuple[str, Any]], find_storage: _FindStorage) -> object:
    """Follow one pickle to its STOP and return the object it describes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for name, argument in opcodes:
        if name in _NUMBERS_AND_STRINGS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple([_pop(stack) for _ in range(_TUPLES[name])][::-1]))
        else:
            match name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = _top(stack)
                case "MEMOIZE":
                    memo[len(memo)] = _top(stack)
                case "BINGET" | "LONG_BINGET":
                    if argument not in memo:
                        raise _damaged("its pickle refers to an object that it never created")
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(_pop_to_mark(stack, marks)))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    item = _pop(stack)
                    _top_container(stack, list).append(item)
                case "APPENDS":
                    items = _pop_to_mark(stack, marks)
                    _top_container(stack, list).extend(items)
                case "SETITEM":
                    value, key = _pop(stack), _pop(stack)
                    _set_items(_top_container(stack, dict), [key, value])
                case "SETITEMS":
                    items = _pop_to_mark(stack, marks)
                    _set_items(_top_container(stack, dict), items)
                case "GLOBAL":
                    stack.append(GlobalRef(argument))
                case "STACK_GLOBAL":
                    member, module = _pop(stack, str), _pop(stack, str)
                    stack.append(GlobalRef(f"{module}.{member}"))
                case "REDUCE":
                    arguments = _pop(stack, tuple)
                    stack.append(_rebuild(_pop(stack, GlobalRef).name, arguments))
                case "NEWOBJ":
                    _pop(stack)
                    stack.append(_new_object(_pop(stack, GlobalRef).name))
                case "BUILD":
                    state = _pop(stack)
                    _set_state(_top(stack), state)
                case "BINPERSID":
                    stack.append(_storage(_pop(stack, tuple), find_storage))
                case "STOP":
                    return _pop(stack)
                case "PROTO" | "FRAME":
                    pass  # any protocol may use these opcodes, and a frame only says how much to read at once
    raise _damaged("its pickle ends early")  # pragma: no cover, because `_opcodes` raises first


def _top(stack: list[Any], kind: type = object) -> Any:
    if not stack or not isinstance(stack[-1], kind):
        raise _damaged("its pickle uses an object that isn't there")
    return stack[-1]


def _top_container(stack: list[Any], kind: type) -> Any:
    """The dict or list on top; for an inert object, whose class may be one, a new one that is dropped."""
    return kind() if isinstance(_top(stack), InertObject) else _top(stack, kind)


def _pop(stack: list[Any], kind: type = object) -> Any:
    _top(stack, kind)
    return stack.pop()


def _pop_to_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    if not marks:
        raise _damaged("its pickle lacks a mark")
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise _damaged("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not _is_name(key) and not (isinstance(key, int) and 0 <= key < 2**31):
            raise _damaged("a key that is neither a short name nor a small integer")
        target[key] = value


def _is_name(key: object) -> bool:
    """Whether a string may be a key: cheap to hash and to compare, and safe for a one-line message."""
    return isinstance(key, str) and len(key) <= _MAX_KEY_LENGTH and key.isprintable()


# Objects that a pickle may build


def _new_object(name: str) -> ConfigRecord | InertObject:
    return ConfigRecord(name) if is_config_class(name) else InertObject(name)


def _set_state(target: object, state: object) -> None:
    """What BUILD does: calls `__setstate__`, or sets attributes."""
    match target:
        case ConfigRecord():
            if not isinstance(state, dict):
                raise _damaged("an OmegaConf object whose attributes are no dict")
            target.attributes = state
        case GlobalRef():
            raise _refused(f"asks to change {_shown(target.name)}")
        case InertObject():
            pass
        case dict():
            pass  # an OrderedDict that is a module's state carries attributes (`_metadata`): not needed
        case _:
            raise _damaged("its pickle uses an object that isn't there")


def _storage(reference: tuple[Any, ...], find_storage: _FindStorage) -> _Storage:
    # The legacy form has a sixth part, no longer used.
    if len(reference) == 6 and reference[5] is None:
        reference = reference[:5]
    match reference:
        # The fourth part, the device, is ignored.
        case ("storage", GlobalRef(kind), str(key), _, int(count)) if _is_name(key) and count >= 0:
            if kind not in _STORAGES:
                raise _refused(f"asks for storage of the type {_shown(kind)}")
            return find_storage(kind, key, count)
    raise _damaged("its pickle has a reference that is not a storage")


def _rebuild(function: str, arguments: tuple[Any, ...]) -> Any:
    """The result of one of the few functions that PyTorch's files call, by its name."""
    match function:
        case "collections.OrderedDict":
            if not arguments:
                return {}
        case "collections.defaultdict":
            if not arguments or (len(arguments) == 1 and isinstance(arguments[0], (GlobalRef, type(None)))):
                return {}
        case "torch._utils._rebuild_tensor_v2":
            match arguments:
                case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _):
                    return _tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            if arguments and isinstance(arguments[0], LazyTensor):
                return arguments[0]
        case "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes, such as transformers' buffers
            match arguments:
                case (
                    GlobalRef("torch._utils._rebuild_tensor_v2" as inner),
                    GlobalRef(),
                    tuple(inner_arguments),
                    _,
                ):
                    return _rebuild(inner, inner_arguments)
                case (GlobalRef(inner), GlobalRef(), tuple(), _) if inner == SHARD:
                    return InertObject(inner)
        case "torch.Size":
            if len(arguments) == 1 and isinstance(arguments[0], tuple):
                return arguments[0]
        case "torch.device":
            if arguments and isinstance(arguments[0], str):
                return arguments[0]
        case "fractions.Fraction":
            match arguments:
                case (int(top), int(bottom)) if abs(top) < 2**63 and 0 < bottom < 2**63:
                    return Fraction(top, bottom)
                case (str(text),) if re.fullmatch("-?[0-9]{1,18}(/[1-9][0-9]{0,17})?", text):
                    return Fraction(text)  # as Python 3.10 and older save it
        case "builtins.getattr" | "__builtin__.getattr" if arguments == (
            GlobalRef(SHARDED_TENSOR),
            "ProcessGroupState",
        ):
            return GlobalRef(f"{SHARDED_TENSOR}.ProcessGroupState")
        case _ if function in INERT_CALLS:
            return InertObject(function)
        case _:
            raise _refused(f"asks to run {_shown(function)}")
    raise _damaged(f"wrong arguments for {function}")


def _tensor(storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> LazyTensor:
    if not len(shape) == len(strides) <= _MAX_DIMENSIONS:
        raise _damaged("a tensor with a wrong number of dimensions")
    if not all(type(number) is int and 0 <= number < 2**31 for number in (*shape, *strides)):
        raise _damaged("a tensor with a negative or absurd shape")
    # The last bound keeps a few bytes from being repeated into an array that fills the memory.
    past_end = offset < 0 or offset + _span(shape, strides) > storage.count
    if past_end or math.prod(shape) > storage.count:
        raise _damaged("a tensor larger than its storage")
    stored, dtype = _STORAGES[storage.kind]
    item = np.dtype(stored)
    return LazyTensor(storage.path, storage.offset + offset * item.itemsize, item, dtype, shape, strides)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from a tensor's first to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
