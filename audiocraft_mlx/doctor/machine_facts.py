"""The machine and its Python."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from audiocraft_mlx.doctor.finding import Finding, Value, ok, warning
from audiocraft_mlx.machine import memory_below_rlimits, memory_size, num_cpus

SMALL_MEMORY = 4 * 10**9
"""Bytes. musicgen-small takes up to 2.4 GB while it is loaded, in float32."""
_GB = 10**9
_ROOT = Path("/")


def system() -> Finding:
    """The operating system and its architecture."""
    architecture = platform.machine()
    if sys.platform == "darwin":
        text = f"macOS {platform.mac_ver()[0]}, {architecture}"
        if architecture != "arm64":
            return warning(
                text,
                "MLX has no GPU here: use a Python for Apple silicon, not one that Rosetta translates",
                system="macOS",
                architecture=architecture,
            )
    else:
        text = f"{platform.system()} {platform.release()}, {architecture}"
        name, version = platform.libc_ver()
        text += f", {name} {version}" if name else ""
    return ok(text, system=platform.system(), release=platform.release(), architecture=architecture)


def processor(root: Path = _ROOT) -> Finding:
    """The processor's name, and how much of it this process may use."""
    name, cores, usable = _processor_name(root), os.cpu_count() or 1, num_cpus(root)
    text = f"{name}, {_counted(usable, 'core')}" + ("" if usable == cores else f" of {cores}")
    load = _load()
    values: dict[str, Value] = {"name": name, "cores": cores, "usable_cores": usable, "load": load}
    # This program itself is one process; what counts is what ran before.
    if load is not None and load > 0.5 + usable / 2:
        return warning(
            f"{text}; busy (load {load:.1f})", "other programs take time: speed below is less", **values
        )
    return ok(text, **values)


def memory(root: Path = _ROOT) -> Finding:
    """Memory, and the limits that this process was given."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size, below_rlimits, available = memory_size(root), memory_below_rlimits(), _available(root)
    limits = []
    if size < machine:
        limits.append(f"{_gb(size)} of it for this container (cgroup)")
    if below_rlimits is not None:
        limits.append(f"{_gb(below_rlimits)} left below ulimit")
    text = ", ".join([_gb(machine), *([f"{_gb(available)} free"] if available else []), *limits])
    usable = min(value for value in (size, below_rlimits, available) if value is not None)
    values: dict[str, Value] = {
        "bytes": machine,
        "usable_bytes": size,
        "below_ulimit_bytes": below_rlimits,
        "available_bytes": available,
    }
    if usable < SMALL_MEMORY:
        return warning(text, "musicgen-small needs some 2 GB: use -q 4 or -m demo", **values)
    return ok(text, **values)


def python() -> Finding:
    """The interpreter, and whether it has an environment of its own."""
    name, version = platform.python_implementation(), platform.python_version()
    own = sys.prefix != sys.base_prefix
    return ok(
        f"{name} {version}, {'a virtual environment: ' if own else ''}{sys.prefix}",
        version=version,
        implementation=name,
        virtual_environment=own,
        prefix=sys.prefix,
    )


def _processor_name(root: Path) -> str:
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return platform.machine()
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # On ARM the kernel has no name, only numbers.
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _available(root: Path) -> int | None:
    """Bytes that Linux would give without swapping."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    fields = text.partition("MemAvailable:")[2].split()
    return 1024 * int(fields[0]) if fields else None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _gb(size: int) -> str:
    return f"{size / _GB:.1f} GB"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")
