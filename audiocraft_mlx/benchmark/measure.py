"""Taking a measure: of time, of memory, of the memory's bandwidth."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

_BANDWIDTH_BYTES = 2**29
"""Read for a measurement of the bandwidth: far more than any cache holds."""
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Sample:
    """What came of measuring the same thing one or more times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def peak_memory() -> float:
    """The most memory in bytes that this process has had, on a GPU the most that its arrays have had."""
    if mx.default_device() == mx.gpu:
        return float(mx.get_peak_memory())
    if sys.platform == "linux":
        # Not ru_maxrss: a process begins with that of the one that started it.
        status = (_PROCESS / "status").read_text()
        return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def forget_peak_memory() -> None:
    """Have `peak_memory` count from now on, where the system can do that."""
    mx.clear_cache()
    mx.reset_peak_memory()
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def read_bandwidth(size: int = _BANDWIDTH_BYTES, tries: int = 5) -> float:
    """Bytes per second that can be read from memory: the best of some sums over `size` bytes."""
    # One stream is one thread on a CPU, and one processor alone doesn't reach what the memory can give.
    on_gpu = mx.default_device() == mx.gpu
    streams = [mx.default_stream(mx.gpu)] if on_gpu else [mx.new_stream(mx.cpu) for _ in range(cores())]
    # Whole numbers: on a CPU MLX's sums of floats are slower than the memory.
    parts = [mx.ones(size // 8 // len(streams), mx.uint64) for _ in streams]
    mx.eval(parts)

    def read() -> None:
        mx.eval([mx.sum(part, stream=stream) for part, stream in zip(parts, streams, strict=True)])

    return sum(part.nbytes for part in parts) / min(seconds(read) for _ in range(tries))
