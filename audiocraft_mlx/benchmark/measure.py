"""Measuring time, memory and memory bandwidth."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from audiocraft_mlx.machine import num_cpus

_BANDWIDTH_BYTES = 2**29
"""Read to measure the bandwidth: far more than any CPU cache holds."""
_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Measurement:
    """The values of one quantity, one for each run."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def max(self) -> float:
        return max(self.values)


def seconds(work: Callable[[], object]) -> float:
    """The time that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Peak memory of this process in bytes; on a GPU, of its arrays."""
    if mx.default_device() == mx.gpu:
        return float(mx.get_peak_memory())
    if sys.platform == "linux":
        # Not ru_maxrss: a child process starts with its parent's.
        status = (_PROC / "status").read_text()
        return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def reset_peak_memory() -> None:
    """Let `peak_memory` count from now on, where the system supports it."""
    mx.clear_cache()
    mx.reset_peak_memory()
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def read_bandwidth(size: int = _BANDWIDTH_BYTES, tries: int = 5) -> float:
    """Bytes per second that can be read from memory: the best of `tries` sums over `size` bytes."""
    # On a CPU one stream is one thread, and a single core doesn't reach the memory's bandwidth.
    on_gpu = mx.default_device() == mx.gpu
    streams = [mx.default_stream(mx.gpu)] if on_gpu else [mx.new_stream(mx.cpu) for _ in range(num_cpus())]
    # Integers: MLX's sums of floats on a CPU are slower than the memory.
    chunks = [mx.ones(size // 8 // len(streams), mx.uint64) for _ in streams]
    mx.eval(chunks)

    def read() -> None:
        mx.eval([mx.sum(chunk, stream=stream) for chunk, stream in zip(chunks, streams, strict=True)])

    return sum(chunk.nbytes for chunk in chunks) / min(seconds(read) for _ in range(tries))
