"""What this process may use of the machine: processors and memory, within the limits that it was given."""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

PROGRAM_BYTES = 512 << 20
"""Measured: address space that MLX, the BLAS and the tokenizer take, with any model."""
_ROOT = Path("/")
_M_ARENA_MAX = -8  # malloc.h
# What MLX says where an allocation fails: on a CPU, on a Mac's GPU and on a card.
_MLX_OUT_OF_MEMORY = re.compile(
    r"\[(metal::)?malloc(_or_wait)?\]|unable to allocate|maximum allowed buffer size|insufficient memory"
    r"|out ?of ?memory|cannot allocate memory",
    re.IGNORECASE,
)
# A limit in address space or data, and the line of /proc/self/status that says how much of it is taken.
_LIMITS = ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:"))


def num_cpus(root: Path = _ROOT) -> int:
    """Processors that this process may use, at least 1: a cgroup's quota of 1.5 counts as 2."""
    return max(1, min([_cpus(), *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def cpu_quota(root: Path = _ROOT) -> bool:
    """Whether a cgroup gives this process less time than all processors that it may run on."""
    return num_cpus(root) < _cpus()


def memory_size(root: Path = _ROOT) -> int:
    """The machine's memory in bytes, or a cgroup's limit if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        int(text)
        for text in _cgroup_values("memory", "memory.max", "memory.limit_in_bytes", root)
        if text.isdigit()
    ]
    return min([machine, *limits])


def memory_below_rlimits() -> int | None:
    """Bytes that this process may take before it reaches a limit of `ulimit -v` or `-d`; None: no limit."""
    left = []
    for kind, name in _LIMITS:
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(max(0, limit - _taken(name)))
    return min(left, default=None)


def require_memory(size: int) -> None:
    """Raise `MemoryError` if `size` more bytes would exceed a limit of `ulimit`; MLX would crash.

    It writes to what it allocates on a CPU without a look at whether there is anything.
    """
    if memory_below_rlimits() is None or size <= 0:
        return
    try:
        mmap.mmap(-1, size).close()
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size >> 20} MB can't be had") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, in Python, in MLX or while a library is loaded."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or os.strerror(errno.ENOMEM) in str(error)
    return isinstance(error, RuntimeError) and _MLX_OUT_OF_MEMORY.search(str(error)) is not None


def _cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _taken(name: str) -> int:
    """Bytes, from a line of /proc/self/status; 0 where there is no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition(name)[2].split()[0])


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each cgroup allows, of those that limit it."""
    v2 = (text.partition(" ")[::2] for text in _cgroup_values("cpu", "cpu.max", None, root))
    quotas = _cgroup_values("cpu", None, "cpu.cfs_quota_us", root)
    periods = _cgroup_values("cpu", None, "cpu.cfs_period_us", root)
    for quota, period in chain(v2, zip(quotas, periods, strict=False)):
        # Without a limit it is "max" in version 2, and -1 in version 1.
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _cgroup_values(controller: str, v2: str | None, v1: str | None, root: Path) -> Iterator[str]:
    """What the file of a controller says in this process's cgroup and all above it.

    `v2` and `v1` are the file's names in the two versions, None to leave that out. In a container the names
    of /proc/self/cgroup may be those of the host; the container's own limits are at the top then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            tops, name = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], v2
        elif controller in controllers.split(","):
            tops, name = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller], v1
        else:
            continue
        if name is None:
            continue
        inside = Path(path.lstrip("/"))
        for top in dict.fromkeys(tops):
            for folder in (inside, *inside.parents):
                try:
                    yield (top / folder / name).read_text().strip()
                except OSError:
                    continue


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) would keep it for later."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def limit_heaps(count: int) -> None:
    """Let threads share `count` heaps of the C library (glibc), which otherwise has up to 8 per processor.

    What is freed in one is no use to threads with another one. Call it before threads are started. The
    environment variables MALLOC_ARENA_MAX and GLIBC_TUNABLES are kept to.
    """
    chosen = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        import ctypes

        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count)
