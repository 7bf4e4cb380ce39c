"""This program, its extras, and MLX with what makes it fast."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

import audiocraft_mlx
from audiocraft_mlx.doctor.finding import Finding, Value, ok, warning, wrong
from audiocraft_mlx.machine import num_cpus
from audiocraft_mlx.ops.cpu import blas, extension
from audiocraft_mlx.version import __version__

EXTRAS = {
    "plot": "matplotlib",
    "play": "sounddevice",
    "tags": "mutagen",
    "formats": "av",
    "serve": "fastapi",
}
"""The extras that a user may want, and the package that each brings."""
_DISTRIBUTION = "musicgen-mlx"
_BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")


def package_version(name: str) -> str | None:
    """Of an installed distribution; None for one that isn't."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def program() -> Finding:
    """This program's version, and where it is."""
    folder = Path(audiocraft_mlx.__file__).parent
    installed = package_version(_DISTRIBUTION)
    values = {"version": __version__, "installed": installed, "folder": str(folder)}
    text = f"{__version__}, in {folder}"
    if installed not in (None, __version__):
        return warning(
            f"{text}; but {installed} is installed",
            "Python finds another copy first: look at PYTHONPATH and the current folder",
            **values,
        )
    return ok(text, **values)


def extras() -> Finding:
    """Which optional packages are there; each that is there must work."""
    versions = {extra: package_version(package) for extra, package in EXTRAS.items()}
    text = ", ".join(
        f"{extra} ({EXTRAS[extra]} {found})" if found else f"no {extra}" for extra, found in versions.items()
    )
    if versions["play"]:
        try:
            import sounddevice  # noqa: F401
        except OSError as error:  # it loads the system's PortAudio
            return warning(
                f"{text}; --play: {error}", "install PortAudio: apt install libportaudio2", **versions
            )
    return ok(text, **versions)


def mlx() -> Finding:
    """MLX's version and back ends."""
    own = version("mlx")
    backends = {name: found for name in _BACKENDS if (found := package_version(name))}
    text = ", ".join([own, *(f"{name} {found}" for name, found in backends.items())])
    cuda = [name for name in backends if name.startswith("mlx-cuda")]
    values = {"version": own, "backends": ", ".join(backends)}
    if cuda and mx.default_device() != mx.gpu:
        return warning(
            f"{text}; but it computes on the CPU",
            # Two packages hold mlx/lib/libmlx.so, and the one that was installed last is used.
            f"run {sys.executable} -m pip install --force-reinstall --no-deps {cuda[0]}",
            **values,
        )
    return ok(text, **values)


def device() -> Finding:
    """MLX's default device, which has to add two numbers."""
    info = mx.device_info()
    on_gpu = mx.default_device() == mx.gpu
    name = str(info.get("device_name", "unnamed"))
    size = info.get("memory_size") or info.get("total_memory")
    working_set = info.get("max_recommended_working_set_size")
    values: dict[str, Value] = {
        "gpu": on_gpu,
        "name": name,
        "architecture": str(info.get("architecture", "")),
        "memory_bytes": None if size is None else int(size),
        "recommended_bytes": None if working_set is None else int(working_set),
    }
    text = f"{'GPU' if on_gpu else 'CPU'}: {name}"
    if on_gpu and size is not None:
        text += f", {int(size) / 1e9:.0f} GB"
    if working_set is not None:
        text += f", of which {int(working_set) / 1e9:.0f} GB are meant for it"
    if (mx.ones(2) + 1).sum().item() != 4:
        return wrong(f"{text}; 1 + 1 isn't 2 on it", "update MLX and the GPU's driver", **values)
    if sys.platform == "darwin" and not on_gpu:
        return warning(f"{text}; not the GPU", "MLX should use a Mac's GPU by itself: reinstall it", **values)
    return ok(text, **values)


def native_extension() -> Finding:
    """The C++ extension for Linux CPUs: which one, or why not."""
    if sys.platform != "linux" or mx.default_device() == mx.gpu:
        return ok("not needed here", loaded=False, reason="not needed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Not the cached result, which doesn't say why a second time.
        module = extension.load_extension.__wrapped__()
    if module is not None:
        found = package_version("audiocraft-mlx-native")
        instructions = module.instruction_set()
        threads = os.environ.get(extension.THREADS_ENV_VAR) or str(num_cpus())
        return ok(
            f"{found or 'loaded'}, {instructions}, {threads} thread{'' if threads == '1' else 's'}",
            loaded=True,
            version=found,
            instruction_set=instructions,
        )
    if os.environ.get(extension.ENV_VAR) == "none":
        reason, advice = f"off: {extension.ENV_VAR}=none", f"unset {extension.ENV_VAR}"
    elif caught:
        reason, advice = str(caught[0].message), ""
    else:
        reason, advice = "not installed", "everything works without it, but slower: see native/README.md"
    return warning(reason, advice, loaded=False, reason=reason)


def openblas() -> Finding:
    """The BLAS that MLX multiplies matrices with on Linux."""
    if sys.platform != "linux" or mx.default_device() == mx.gpu:
        return ok("not needed here", library=None)
    path = blas.patch_mlx_blas()
    if path is None:
        own = "MLX's own BLAS, which is slow"
        if os.environ.get(blas.ENV_VAR) == "none":
            return warning(f"{own}: {blas.ENV_VAR}=none", f"unset {blas.ENV_VAR}", library=None)
        return warning(own, "reinstall this program, with scipy-openblas32", library=None)
    packaged = package_version("scipy-openblas32") if "openblas" in Path(path).name else None
    return ok(
        f"MLX multiplies with {Path(path).name}" + (f" (scipy-openblas32 {packaged})" if packaged else ""),
        library=Path(path).name,
        version=packaged,
    )
