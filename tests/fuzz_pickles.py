"""Throws damaged and hostile files at the reader of PyTorch's files.

    python tests/fuzz_pickles.py --runs 100000 [--seed N]

Each input must be read or refused with a one-line CheckpointError, within a second, in bounded memory and
without importing anything. At the first that isn't, the input is kept as a file and the exit status is 1.
The same seed makes the same inputs.
"""

import argparse
import contextlib
import io
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.checkpoints.pickles import StoredTensor, read_torch_file
from audiocraft_mlx.errors import CheckpointError

if __package__:
    from .torch_files import Opcodes, Parameter, pickled, write_torch_file
else:  # run as a script
    from torch_files import Opcodes, Parameter, pickled, write_torch_file

SECONDS = 1.0
MEMORY_GROWTH = 64 * 2**20
LEGACY_START = b"\x80\x02\x8a\x0a"
LOADED_ELEMENTS = 2**16  # tensors that claim more are not loaded here

# What the mutations splice into a pickle: numbers at the edges, every opcode family, things that would run.
FRAGMENTS = [
    *(bytes([code]) for code in b"N(012taesu}])Rob.Q\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94"),
    *(b"K\x00", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6)),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"\x8a\xff" + b"\x7f" * 255),
    *(b"\x8b\xff\xff\xff\x7f", b"I9999999999\n", b"L99999999999999999999L\n", b"\x95" + b"\xff" * 8),
    *(b"X\x03\x00\x00\x00a\nb", b"X\xff\xff\xff\xff", b"X\x03\x00\x00\x00\xed\xa0\x80"),
    *(b"S'a'\n", b"U\x01a", b"B\x01\x00\x00\x00a", b"\x82\x01", b"\x84\x01\x00\x00\x00"),
    *(
        b"h\x00",
        b"h\x05",
        b"q\x00",
        b"q\x05",
        b"r\xff\xff\xff\xff",
        b"j\xff\xff\xff\xff",
        b"p0\n",
        b"g0\n",
        b"P0\n",
    ),
    *(b"cposix\nsystem\n", b"cbuiltins\neval\n", b"iposix\nsystem\n", b"ca\\n\\q\nb\r\n", b"ctorch\nSize\n"),
    *(b"ctorch\nFloatStorage\n", b"cfractions\nFraction\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"X\x02\x00\x00\x00id\x85R", b"(X\x04\x00\x00\x00trueoposix\nsystem\n"),
]


def seed_files(folder: Path) -> list[bytes]:
    """Whole files, in both forms, with everything that the reader understands and some that it refuses."""
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    kinds = ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    nests: list[dict[str, Any]] = [
        {"best_state": {"weight": grid, "turned": grid.T, "part": grid[1:, ::2]}, "xp.cfg": "dim: 64\n"},
        OrderedDict({kind: np.ones((2, 1), kind) for kind in kinds}),
        {
            "half": mx.ones((3,), dtype=mx.bfloat16),
            "empty": np.zeros((3, 0), np.float32),
            "none": np.array(1.5),
        },
        {"klass": Opcodes(b"cdemucs.htdemucs\nHTDemucs\n"), "segment": Fraction(39, 5), "args": ()},
        {"parameter": Parameter(grid), "list": [1, -2, 300, 70000, 2**70, 0.5, None, True, ("a", ("b",))]},
        {"size": Opcodes(b"ctorch\nSize\nK\x02K\x03\x86\x85R"), 1: [[[[1]]]]},
        {"state": Opcodes(b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata}sb")},
        {"age": Opcodes(b"cfractions\nFraction\nX\x04\x00\x00\x0039/5\x85R")},
        {"evil": Opcodes(b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R")},
    ]
    path = folder / "seed"
    files = []
    for nest in nests:
        for legacy in (False, True):
            write_torch_file(path, nest, legacy)
            files.append(path.read_bytes())
    files.append(pickled([1, 2]))
    return files


def pack(records: dict[str, bytes], random_: random.Random) -> bytes:
    """A zip archive of the records; now and then one of another kind than PyTorch's."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random_.random() < 0.02 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def opcodes(data: bytes, pickles: int) -> list[bytes]:
    """The code of each opcode of the pickles that the data begins with, and at last the rest of the data."""
    stream = io.BytesIO(data)
    starts = [at for _ in range(pickles) for _, _, at in pickletools.genops(stream)] + [stream.tell()]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def splice(codes: list[bytes], donor: list[bytes], random_: random.Random) -> bytes:
    """A few opcodes exchanged for others of their kind, or moved, repeated, left out, put in."""
    codes = list(codes)
    for _ in range(random_.choice((1, 1, 2, 3))):
        at = random_.randrange(len(codes))
        match random_.randrange(6):
            case 0 | 1:
                alike = [code for code in (*codes, *donor, *FRAGMENTS) if code[:1] == codes[at][:1]]
                codes[at] = random_.choice(alike)
            case 2:
                other = random_.randrange(len(codes))
                codes[at], codes[other] = codes[other], codes[at]
            case 3:
                codes[at:at] = codes[at : at + random_.choice((1, 3, 10))]
            case 4:
                codes[at] = b""
            case 5:
                codes.insert(at, random_.choice(FRAGMENTS))
    return b"".join(codes)


def mutate(data: bytes, donor: bytes, random_: random.Random) -> bytes:
    """A few small changes, of bytes or of opcodes."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        at = random_.randrange(len(changed) + 1)
        length = random_.choice((1, 1, 2, 4, 8, 32))
        match random_.randrange(9):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random_.randrange(8)
            case 1 if at < len(changed):
                changed[at] = random_.randrange(256)
            case 2:
                del changed[at : at + length]
            case 3 | 4:
                changed[at:at] = random_.choice(FRAGMENTS)
            case 5:
                fragment = random_.choice(FRAGMENTS)
                changed[at : at + len(fragment)] = fragment
            case 6:
                start = random_.randrange(len(donor) + 1)
                changed[at:at] = donor[start : start + length]
            case 7:
                changed[at:at] = changed[at : at + length] * random_.choice((1, 2, 50))
            case 8:
                number = random_.choice(
                    (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, random_.getrandbits(64))
                )
                width = random_.choice("BHIQ")
                code = struct.pack("<" + width, number % 2 ** (8 * struct.calcsize(width)))
                changed[at : at + len(code)] = code
    return bytes(changed)


def inputs(seeds: list[bytes], random_: random.Random) -> Iterator[bytes]:
    """Mutated files without end: opcodes of either form, within a sound archive, or just bytes."""
    archives = []
    for seed in seeds:
        if seed.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(seed)) as archive:
                archives.append({name: archive.read(name) for name in archive.namelist()})
    pickles = [opcodes(archive["seed/data.pkl"], 1) for archive in archives]
    legacies = [opcodes(seed, 5) for seed in seeds if seed.startswith(LEGACY_START)]
    while True:
        match random_.randrange(10):
            case 0 | 1 | 2:
                which = random_.randrange(len(archives))
                data = splice(pickles[which], random_.choice(pickles), random_)
                yield pack(archives[which] | {"seed/data.pkl": data}, random_)
            case 3 | 4:
                yield splice(random_.choice(legacies), random_.choice(legacies), random_)
            case 5 | 6:
                records = dict(random_.choice(archives))
                name = "seed/data.pkl" if random_.random() < 0.9 else random_.choice(list(records))
                records[name] = mutate(records[name], b"".join(random_.choice(pickles)), random_)
                if random_.random() < 0.05:
                    del records[random_.choice(list(records))]
                yield pack(records, random_)
            case 7 | 8:
                data = mutate(random_.choice(seeds), random_.choice(seeds), random_)
                yield data[: random_.randrange(len(data) + 1)] if random_.random() < 0.1 else data
            case _:
                start = random_.choice(
                    (b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"<html>", b"version ")
                )
                body = random_.choice(
                    (random_.randbytes(64), b"".join(random_.choices(FRAGMENTS, k=40)) + b".")
                )
                packed = {"a/data.pkl": b"\x80\x02" + body, "a/data/0": b"0" * 16}
                yield pack(packed, random_) if random_.random() < 0.5 else start + body


def tensors(value: object) -> Iterator[StoredTensor]:
    if isinstance(value, StoredTensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def try_file(path: Path) -> str:
    """Read a file and its tensors; "read" or "refused", and anything else is raised."""
    try:
        for tensor in tensors(read_torch_file(path)):
            if np.prod(tensor.shape, dtype=object) <= LOADED_ELEMENTS:
                array = tensor.load()
                mx.eval(array)
                if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                    raise AssertionError(f"{tensor} was loaded as {array.shape}, {array.dtype}")
    except CheckpointError as error:
        if not (str(error).startswith(str(path)) and str(error).isprintable()):
            raise AssertionError(f"not a plain line: {error!r}") from None
        return "refused"
    return "read"


class Violation(Exception):
    """An input that the reader dealt with wrongly; kept in the file `path`."""

    def __init__(self, why: str, data: bytes) -> None:
        self.path = Path(f"fuzz-{zlib.crc32(data):08x}.bin")
        self.path.write_bytes(data)
        super().__init__(f"{self.path}: {why}")


def fuzz(runs: int, seed: int) -> Counter[str]:
    """Try `runs` inputs and count the outcomes. Raises Violation at the first that breaks a rule."""
    random_ = random.Random(seed)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name, alarm():
        path = Path(name) / "input"
        seeds = seed_files(Path(name))
        for data in seeds:  # so that all that is ever imported is imported, and MLX has its buffers
            path.write_bytes(data)
            try_file(path)
        modules = set(sys.modules)
        peak = peak_memory()
        outcomes: Counter[str] = Counter(read=0, refused=0)
        for _, data in zip(range(runs), inputs(seeds, random_), strict=False):
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
            start = time.perf_counter()
            try:
                outcomes[try_file(path)] += 1
            except BaseException as error:
                raise Violation(f"{type(error).__name__}: {error}", data) from error
            if time.perf_counter() - start > SECONDS:
                raise Violation(f"took more than {SECONDS} s", data)
            if set(sys.modules) != modules:
                raise Violation(f"imported {set(sys.modules) - modules}", data)
            if peak_memory() - peak > MEMORY_GROWTH:
                raise Violation("took too much memory", data)
    return outcomes


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Turn the timer's signal into an exception, so that an endless loop is found too."""

    def ring(*_: object) -> None:
        raise RuntimeError("no end in sight")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """The most bytes that this process ever had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the reader of PyTorch's files.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        outcomes = fuzz(arguments.runs, arguments.seed)
    except Violation as violation:
        sys.stdout.write(f"{violation}\n")
        return 1
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{arguments.runs} inputs of seed {arguments.seed}: {counts}; {seconds:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
