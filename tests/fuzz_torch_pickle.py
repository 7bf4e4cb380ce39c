"""Fuzzes the reader of PyTorch's files with damaged and hostile files.

    python tests/fuzz_torch_pickle.py [--runs 100000] [--seed 0]

Each input must be read or refused with a one-line CheckpointError, within a second, in bounded memory and
without importing anything. The first input that breaks a rule is saved as a file, and the exit status is
not 0.

With Atheris it is guided by coverage: an input that reaches new branches of the reader is mutated further,
by the mutations below, which know the syntax of pickles and archives. Without Atheris each input is a
mutation of a seed.
"""

import argparse
import contextlib
import io
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from omegaconf import OmegaConf

atheris: Any = None
if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import atheris

# Modules imported here are instrumented: their branches are counted.
with atheris.instrument_imports(["audiocraft_mlx", "zipfile"]) if atheris else contextlib.nullcontext():
    import zipfile

    from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
    from audiocraft_mlx.errors import CheckpointError

if __package__:
    from .torch_files import Opcodes, Parameter, pickled, write_torch_file
else:  # run as a script
    from torch_files import Opcodes, Parameter, pickled, write_torch_file

SECONDS = 1.0
MEMORY_GROWTH = 64 * 2**20
LOADED_ELEMENTS = 2**16  # tensors that claim more are not loaded here

# Fragments that mutations insert into a pickle: boundary numbers, every opcode family, code that would run.
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
    *(b"comegaconf.dictconfig\nDictConfig\n)\x81", b"comegaconf.listconfig\nListConfig\n)\x81"),
    *(b"comegaconf.nodes\nAnyNode\n)\x81", b"comegaconf.base\nUnionNode\n)\x81", b"cx\ny\n)\x81"),
    *(b"}X\x08\x00\x00\x00_contenth\x01sb", b"}X\x04\x00\x00\x00_valh\x01sb", b"]b", b"}b"),
    *(b"ccollections\ndefaultdict\n", b"cnumpy\ndtype\n)R", b"\x8c\x08_content", b"\x8c\x07history"),
]

NEEDED = ("best_state", "xp.cfg")
"""Half of the inputs are read as files of a training, of which only these are needed."""


def seed_files(folder: Path) -> list[bytes]:
    """Valid files, in both forms, of everything that the reader supports and some that it refuses."""
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
    files = training_files()
    for nest in nests:
        for legacy in (False, True):
            write_torch_file(path, nest, legacy)
            files.append(path.read_bytes())
    files.append(pickled([1, 2]))
    return files


def training_files() -> list[bytes]:
    """Files of a training: its configuration as OmegaConf pickles it, and objects of classes of its own."""
    config = OmegaConf.create(
        {"dim": 64, "list": [1, {"a": [None, "x"]}], "reference": "${dim}", "unset": "???", "empty": {}}
    )
    history = [{"train": defaultdict(dict, {"loss": 0.5})}, Namespace(epoch=3)]
    saved = {"xp.cfg": config, "xp.sig": "0123abcd", "history": history, "best_state": {}}
    return [
        pack({"a/data.pkl": pickle.dumps(saved, protocol), "a/data/0": b"0" * 16}, random.Random(0))
        for protocol in (2, 4)
    ]


def pack(records: dict[str, bytes], random_: random.Random) -> bytes:
    """A zip archive of the records; sometimes compressed, which PyTorch's never are."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random_.random() < 0.02 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The records of a zip archive; none if it is invalid."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            plain = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
            return {info.filename: archive.read(info) for info in plain}
    except Exception:  # zipfile has many ways to fail
        return {}


def pickle_name(records: dict[str, bytes]) -> str:
    return next((name for name in records if name.endswith("data.pkl")), next(iter(records)))


@lru_cache(1000)
def opcodes(data: bytes) -> tuple[bytes, ...]:
    """The bytes of each opcode of the pickles at the start of the data, and last the rest of the data."""
    stream = io.BytesIO(data)
    ends = [0]
    # The first byte that is no opcode ends it; a backslash in a text is warned about.
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            for _ in pickletools.genops(stream):
                ends.append(stream.tell())
    return tuple(data[start:end] for start, end in pairwise([*ends, len(data)]))


def splice(data: bytes, donor: bytes, random_: random.Random) -> bytes:
    """A few opcodes replaced by others of their kind, swapped, repeated, deleted or inserted."""
    codes = list(opcodes(data))
    for _ in range(random_.choice((1, 1, 2, 3))):
        at = random_.randrange(len(codes))
        match random_.randrange(6):
            case 0 | 1:
                alike = [code for code in (*codes, *opcodes(donor), *FRAGMENTS) if code[:1] == codes[at][:1]]
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


def variant(data: bytes, donor: bytes, random_: random.Random) -> bytes:
    """`data` with a few changes of opcodes or bytes; of an archive mostly a valid one again.

    Sometimes a file that is unrelated to `data`.
    """
    change = random_.choice((splice, splice, splice, mutate, mutate))
    kind = random_.randrange(10)
    if kind == 0:
        return sketch(random_)
    if kind < 3:
        changed = mutate(data, donor, random_)
        return changed[: random_.randrange(len(changed) + 1)] if random_.random() < 0.1 else changed
    if not (records := unpack(data)):
        return change(data, donor, random_)
    if donated := unpack(donor):
        donor = donated[pickle_name(donated)]
    name = pickle_name(records) if random_.random() < 0.95 else random_.choice(list(records))
    records[name] = change(records[name], donor, random_)
    if random_.random() < 0.02:
        del records[random_.choice(list(records))]
    return pack(records, random_)


def sketch(random_: random.Random) -> bytes:
    """The first bytes of some file type, followed by random ones."""
    start = random_.choice((b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"<html>", b"version "))
    body = random_.choice((random_.randbytes(64), b"".join(random_.choices(FRAGMENTS, k=40)) + b"."))
    packed = {"a/data.pkl": b"\x80\x02" + body, "a/data/0": b"0" * 16}
    return pack(packed, random_) if random_.random() < 0.5 else start + body


def tensors(value: object) -> Iterator[LazyTensor]:
    if isinstance(value, LazyTensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def try_file(path: Path) -> str:
    """Read a file and its tensors: "read" or "refused". Any other outcome is raised."""
    try:
        # (The length of the file decides, so that an input does the same each time.)
        needed = NEEDED if path.stat().st_size % 2 else None
        for tensor in tensors(read_torch_file(path, needed)):
            if np.prod(tensor.shape, dtype=object) <= LOADED_ELEMENTS:
                array = tensor.load()
                mx.eval(array)
                if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                    raise AssertionError(f"{tensor} was loaded as {array.shape}, {array.dtype}")
    except CheckpointError as error:
        if not (str(error).startswith(str(path)) and str(error).isprintable()):
            raise AssertionError(f"not a printable line: {error!r}") from None
        return "refused"
    return "read"


class Violation(Exception):
    """A rule that the reader broke with an input."""


class Trial:
    """Runs the reader on inputs, in the file `path`, and counts the `outcomes`."""

    def __init__(self, path: Path, seeds: list[bytes]) -> None:
        self.path = path
        self.outcomes: Counter[str] = Counter(read=0, refused=0)
        for data in seeds:  # so that all imports are done, and MLX has its buffers
            path.write_bytes(data)
            try_file(path)
        self.peak = peak_memory()

    def __call__(self, data: bytes) -> None:
        """Run one input. Raises `Violation` if the reader breaks a rule."""
        self.path.write_bytes(data)
        modules = list(sys.modules)
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        try:
            self.outcomes[try_file(self.path)] += 1
        except BaseException as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if time.perf_counter() - start > SECONDS:
            raise Violation(f"took more than {SECONDS} s")
        if list(sys.modules) != modules:
            raise Violation(f"imported {set(sys.modules) - set(modules)}")
        if peak_memory() - self.peak > MEMORY_GROWTH:
            raise Violation("took too much memory")


def fuzz(runs: int, seed: int, guided: bool = False) -> Counter[str]:
    """Run `runs` inputs and count the outcomes. Raises `Violation` at the first that breaks a rule."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name, alarm():
        folder = Path(name)
        seeds = seed_files(folder)
        trial = Trial(folder / "input", seeds)
        if guided:
            run_guided(trial, seeds, runs, seed, folder / "corpus")
        else:
            run_unguided(trial, seeds, runs, seed)
    return trial.outcomes


def run_unguided(trial: Trial, seeds: list[bytes], runs: int, seed: int) -> None:
    """Run variants of the seeds, the same for the same `seed`."""
    random_ = random.Random(seed)
    for _ in range(runs):
        data = variant(random_.choice(seeds), random_.choice(seeds), random_)
        try:
            trial(data)
        except Violation as violation:
            path = Path(f"fuzz-{zlib.crc32(data):08x}.bin")
            path.write_bytes(data)
            raise Violation(f"{path}: {violation}") from violation


def run_guided(trial: Trial, seeds: list[bytes], runs: int, seed: int, corpus: Path) -> None:
    """Run the seeds, and variants of inputs that reached new branches. Saves a violating one as `fuzz-…`."""

    def vary(data: bytes, max_size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        # Most inputs that reach new branches are refused there; more of those made from a seed are read.
        base = data if random_.random() < 0.6 else random_.choice(seeds)
        changed = variant(base, random_.choice(seeds), random_)
        if len(changed) > max_size or random_.random() < 0.1:
            return atheris.Mutate(data, max_size)
        return changed

    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / f"{number}").write_bytes(data)
    options = {
        "atheris_runs": runs,  # unlike libFuzzer's own `runs`, this lets Python finish
        "seed": seed + 1,  # 0 would be a random one
        "mutate_depth": 1,  # a variant has several changes already, and few stay readable with more
        "artifact_prefix": "fuzz-",
        "verbosity": 0,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], trial, custom_mutator=vary)
    try:
        atheris.Fuzz()
    except SystemExit as end:  # it always raises this
        if end.code != 0:
            raise
    trial.outcomes["reached new branches"] = len(list(corpus.iterdir())) - len(seeds)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Turn the timer's signal into an exception, so that an infinite loop is found too."""

    def ring(*_: object) -> None:
        raise RuntimeError("timed out")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """The peak of this process's memory in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the reader of PyTorch's files.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        outcomes = fuzz(arguments.runs, arguments.seed, guided=atheris is not None)
    except Violation as violation:
        sys.stdout.write(f"{violation}\n")
        return 1
    mode = "guided by coverage" if atheris else "unguided, as Atheris is not installed"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{arguments.runs} inputs of seed {arguments.seed}, {mode}: {counts}; {seconds:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
