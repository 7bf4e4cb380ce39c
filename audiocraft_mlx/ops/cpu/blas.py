"""A fast BLAS for MLX on Linux, whose CPU wheel comes with the slow reference one.

MLX's library calls three functions of a BLAS. It binds each on its first call, through a table in its memory;
here that table is pointed at a fast library's functions instead. So nothing needs a compiler, a preloaded
library or a certain order of imports.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.machine import cpu_quota, num_cpus
from audiocraft_mlx.ops.cpu.elf import function_slots

ENV_VAR = "MUSICGEN_MLX_BLAS"
FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
OPENBLAS_TIMEOUT = ("OPENBLAS_THREAD_TIMEOUT", "16")
"""How long OpenBLAS's threads wait awake for their next product: 2^16 cycles, some microseconds. By itself it
takes 2^26, in which they hold the processors that the other operations' threads want."""
OPENBLAS_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""How many threads it has: the first of these variables that is set. By itself it counts processors, even
where a container has a quota of less."""
PREFIXES = ("scipy_", "")
"""scipy-openblas32 puts its name in front of each symbol, so as not to meet another BLAS by accident."""


@cache
def patch_mlx_blas() -> str | None:
    """Have MLX multiply matrices with a fast BLAS; the path of the one in use, None for MLX's own.

    The environment variable `MUSICGEN_MLX_BLAS` chooses: unset or `auto` for OpenBLAS as it comes with the
    package, `none` for MLX's own, or the path of a library with the CBLAS interface (32-bit integers).
    Where MLX has no such table (macOS, a build with another BLAS), nothing is done.

    Raises:
        UsageError: the library that the variable names can't be used.
    """
    wanted = os.environ.get(ENV_VAR, "auto")
    if wanted == "none" or sys.platform != "linux":
        return None
    # It looks there when it is loaded.
    os.environ.setdefault(*OPENBLAS_TIMEOUT)
    if cpu_quota() and not any(name in os.environ for name in OPENBLAS_THREADS):
        os.environ[OPENBLAS_THREADS[0]] = str(num_cpus())
    mlx = _mlx_library()
    path = _openblas() if wanted == "auto" else wanted
    if mlx is None or path is None:
        return None
    slots = _table_slots(mlx)
    if not slots:
        return None
    try:
        library = ctypes.CDLL(path)
        functions = {name: _function(library, name) for name in slots}
    except (OSError, AttributeError) as error:
        if wanted == "auto":
            warnings.warn(f"the fast BLAS can't be used, MLX's own is slow: {error}", stacklevel=2)
            return None
        raise UsageError(
            f"{ENV_VAR}={wanted} can't be used ({error}); give a library with cblas_sgemm, or auto, or none"
        ) from None
    for name, slot in slots.items():
        slot.value = functions[name]
    return path


def _mlx_library() -> Path | None:
    spec = find_spec("mlx")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((path for folder in folders if (path := Path(folder, "lib", "libmlx.so")).exists()), None)


def _openblas() -> str | None:
    # Not imported: that would read the metadata of installed packages, and load the library for NumPy too.
    spec = find_spec("scipy_openblas32")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    libraries = (path for folder in folders for path in Path(folder, "lib").glob("libscipy_openblas*"))
    return next(map(str, libraries), None)


def _function(library: ctypes.CDLL, name: str) -> int:
    """The address of `name`, or of the same under a known prefix. Raises `AttributeError`."""
    for prefix in PREFIXES:
        if hasattr(library, prefix + name):
            address = ctypes.cast(getattr(library, prefix + name), ctypes.c_void_p).value
            if address:
                return address
    raise AttributeError(f"it has no {name}")


def _table_slots(library: Path) -> dict[str, ctypes.c_void_p]:
    """Where MLX, which this loads, keeps the addresses of the BLAS functions that it calls.

    Empty where they can't be changed: functions bound at load time lie in memory that is read-only.
    """
    import mlx.core  # noqa: F401  (so that the library is in memory)

    offsets = function_slots(library)
    base = _base_address(library)
    if base is None or any(name not in offsets for name in FUNCTIONS):
        return {}
    return {name: ctypes.c_void_p.from_address(base + offsets[name]) for name in FUNCTIONS}


def _base_address(library: Path) -> int | None:
    """Where the library was loaded to: its offsets count from there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        named_so = len(fields) == 6 and Path(fields[5]).name == library.name
        if named_so and int(fields[2], 16) == 0 and os.path.samefile(fields[5], library):
            return int(fields[0].partition("-")[0], 16)
    return None
