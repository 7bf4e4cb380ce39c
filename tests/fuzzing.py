"""What the fuzzers share: mutations, the rules, and processes with a limit of memory.

An input must be read or refused by one printable line, in seconds, in bounded memory, without the network
and without a variable of the environment in what is said or asked for. A crash, too, is found. The first one
that breaks a rule is saved as a file.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""Of processor time: an input that takes more is a violation, however busy the machine is."""
HANGING = 300.0
"""After so long without a result a process is ended."""
ADDRESS_SPACE = 6 * 2**30
MEMORY_GROWTH = 2**30
CANARY = "canary-in-the-environment"
MAX_MESSAGE = 2000
ROOT = Path(__file__).parent.parent

# Values that take the place of others.
SCALARS: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 64, 255, 4096, 65536, 2**20, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63)),
    *(10**400, 0.0, -0.0, 0.5, 1.5, 1e-9, 1e-45, 1e-300, 1e30, 1e300, float("inf"), -float("inf")),
    *(
        float("nan"),
        True,
        False,
        None,
        "",
        "x",
        "7",
        "\ud800",
        "\x1b[31m",
        "a\nb",
        "x" * 5000,
        "\0",
        "~",
        "/",
    ),
    *("${oc.env:HF_TOKEN}", "${a.b}", "$HF_TOKEN", "%(HF_TOKEN)s", "{HF_TOKEN}", "../../etc/passwd"),
    *("t5-base", "null", "inf", "🎹" * 99),
]


class Violation(Exception):
    """A rule that was broken with an input."""


# Mutations


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key or index) in a JSON value."""
    found = []
    todo = [value]
    while todo:
        item = todo.pop()
        keys = item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            todo.append(item[key])
    return found


def vary_json(value: Any, random_: random.Random) -> Any:
    """A copy with one to three values replaced, removed, repeated or exchanged."""
    value = deepcopy(value)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        options = places(value)
        if not options:
            return random_.choice(SCALARS)
        container, key = random_.choice(options)
        match random_.randrange(10):
            case 0 | 1 | 2 | 3:
                container[key] = random_.choice(SCALARS)
            case 4:
                old = container[key]
                if isinstance(old, (int, float)) and abs(old) < 2**1000:  # what a float can hold
                    container[key] = random_.choice(
                        (old + 1, old - 1, old * 2, -old, old // 2, float(old), str(old))
                    )
            case 5:
                del container[key]
            case 6:
                other, name = random_.choice(options)
                if name in other if isinstance(other, dict) else name < len(other):
                    container[key] = deepcopy(other[name])
            case 7:
                container[key] = [container[key]] * random_.choice((0, 1, 2, 4, 300))
            case 8:
                container[key] = {random_.choice(("a", "", "type", "\x1b", "x" * 2000)): container[key]}
            case 9 if isinstance(container, dict):
                container[random_.choice(("x", "", "\n", "__metadata__", "${a}", "num_layers"))] = (
                    random_.choice(SCALARS)
                )
    return value


def vary_bytes(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(changed) + 1)
        length = random_.choice((1, 1, 2, 8, 32))
        match random_.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random_.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length] * random_.choice((1, 2, 50))
            case 3:
                changed[at:at] = random_.randbytes(length)
            case 4:
                other = random_.randrange(len(changed) + 1)
                changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def vary_json_text(value: Any, random_: random.Random) -> bytes:
    text = json.dumps(vary_json(value, random_)).encode("utf-8", "surrogatepass")
    return vary_bytes(text, random_) if random_.random() < 0.1 else text


# Workers


@dataclass(frozen=True)
class Kind:
    """Of inputs: how often it is chosen, how one is made, and what reads it."""

    name: str
    weight: int
    vary: Callable[[], bytes]
    read: Callable[[Path], object]


class Worker:
    """Runs inputs one after the other, in a process of its own with a limit of memory."""

    kinds: Sequence[Kind]

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.network: list[str] = []
        self.asked: list[str] = []
        """Models that were asked for on the Hub."""
        self._forbid_network()

    def run(self, runs: int, current: Path) -> None:
        """Run inputs, from files whose names begin with `current`, so that they are known after a crash."""
        weights = [kind.weight for kind in self.kinds]
        for kind in self.kinds:  # so that all imports are done, and MLX has its buffers
            for _ in range(3):
                self.trial(kind, current)
        peak, parent = peak_memory(), os.getppid()
        self.outcomes.clear()
        for number in range(runs):
            if number % 100 == 0:  # ends the process even if it hangs outside of Python
                faulthandler.dump_traceback_later(HANGING, exit=True)
                if os.getppid() != parent:  # which was ended
                    return
            self.trial(self.random.choices(self.kinds, weights)[0], current)
            if peak_memory() - peak > MEMORY_GROWTH:
                raise Violation("took too much memory")

    def trial(self, kind: Kind, current: Path) -> None:
        from audiocraft_mlx.errors import MusicGenError

        name, data = kind.name, kind.vary()
        path = current.with_name(f"{current.name}-{re.sub('[^A-Za-z]', '-', name)}")
        path.write_bytes(data)
        self.asked.clear()
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        message = ""
        try:
            kind.read(path)
            outcome = "read"
        except MusicGenError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:
            import traceback

            where = "".join(traceback.format_exception(error)[-6:])
            raise Violation(f"{name}: {type(error).__name__}: {error}\n{where}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() - start > SECONDS:
            raise Violation(f"{name}: took {time.process_time() - start:.1f} s")
        if not message.isprintable() or len(message) > MAX_MESSAGE:
            raise Violation(f"{name}: not a printable line: {message[:3000]!r}")
        if any(CANARY in text for text in (message, *self.asked)):
            raise Violation(f"{name}: a variable of the environment is in {message!r} or {self.asked}")
        if self.network:
            raise Violation(f"{name}: connects to {self.network}")
        self.outcomes[f"{name} {outcome}"] += 1

    def _forbid_network(self) -> None:
        def forbidden(*arguments: Any, **_: Any) -> Any:
            self.network.append(repr(arguments[-1]))
            raise OSError("no network here")

        socket.socket.connect = forbidden  # type: ignore[method-assign,assignment]
        socket.getaddrinfo = forbidden  # type: ignore[assignment]


def peak_memory() -> int:
    """The peak of this process's memory in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _work(make: Callable[[Path, int], Worker], runs: int, seed: int, current: Path) -> int:
    """What a worker's process does: prints the outcomes as JSON, or a violation."""
    if sys.platform == "linux":  # MLX reserves address space generously elsewhere
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def ring(*_: object) -> None:
        raise TimeoutError("timed out")

    signal.signal(signal.SIGPROF, ring)
    with tempfile.TemporaryDirectory(dir=current.parent) as folder:
        worker = make(Path(folder), seed)
        try:
            worker.run(runs, current)
        except Violation as violation:
            sys.stdout.write(f"{violation}\n")
            return 1
    sys.stdout.write(json.dumps(worker.outcomes))
    return 0


def fuzz(script: str, runs: int, seed: int, jobs: int) -> Counter[str]:
    """Run `runs` inputs in `jobs` processes of a fuzzer's `script` and count the outcomes.

    Raises `Violation` for the first that breaks a rule.
    """
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        environment = {
            **os.environ,
            "HF_HOME": str(Path(name) / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": CANARY,
            "MUSICGEN_MLX_NATIVE": "none",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "RUST_BACKTRACE": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }
        workers = []
        for job in range(jobs):
            current = Path(name) / f"current-{job}"
            command = [sys.executable, script, "--worker", str(current), "--seed", str(seed * 1000 + job)]
            command += ["--runs", str(runs // jobs + (job < runs % jobs))]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
            workers.append((process, current))
        outcomes: Counter[str] = Counter()
        failures = []
        for process, current in workers:
            output, errors = process.communicate()
            if process.returncode == 0 and CANARY not in output + errors:
                outcomes.update(json.loads(output))
                continue
            inputs = sorted(
                current.parent.glob(f"{current.name}-*"), key=lambda path: path.stat().st_mtime_ns
            )
            saved = [Path(shutil.copy(path, f"fuzz-{path.name}")) for path in inputs[-1:]]
            failures.append(f"{saved}: status {process.returncode}\n{output[-3000:]}{errors[-3000:]}")
        if failures:
            raise Violation("\n".join(failures))
        return outcomes


def main(script: str, description: str, make: Callable[[Path, int], Worker]) -> int:
    """A fuzzer's command: `make` makes its worker in a folder, with a seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        return _work(make, arguments.runs, arguments.seed, arguments.worker)
    start = time.perf_counter()
    try:
        outcomes = fuzz(script, arguments.runs, arguments.seed, arguments.jobs)
    except Violation as violation:
        sys.stdout.write(f"{violation}\n")
        return 1
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{sum(outcomes.values())} inputs of seed {arguments.seed}: {counts}; {seconds:.0f} s\n")
    return 0
