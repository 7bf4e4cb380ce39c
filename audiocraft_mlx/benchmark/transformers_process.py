"""transformers in a process of its own: its memory is measured alone, and torch is never imported here."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.errors import MusicGenError, UsageError

_BACKEND_MODULE = "audiocraft_mlx.benchmark.transformers_backend"


class TransformersProcess:
    """A `Backend` whose calls are run by the `TransformersBackend` of the child process."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def encode_text(self) -> float:
        return self._call("encode_text")

    def step(self, second: float) -> float:
        return self._call("step", second)

    def decode(self, duration: float) -> float:
        return self._call("decode", duration)

    def generate(self, duration: float) -> float:
        return self._call("generate", duration)

    def peak_memory(self) -> float:
        return self._call("peak_memory")

    def _call(self, method: str, *arguments: float) -> float:
        return float(self._pool.submit(_call, method, *arguments).result())


def require_transformers() -> None:
    """Raises `UsageError` if torch or transformers isn't installed."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--compare transformers needs {' and '.join(missing)};"
            " install musicgen-mlx with its extra 'bench'"
        )


@contextmanager
def transformers_process(model: BenchmarkModel) -> Iterator[TransformersProcess]:
    """Start a process that runs `model` in transformers, with the same weights.

    Raises:
        UsageError: transformers has no such model.
        MusicGenError: the process was killed.
    """
    # spawn, not fork: a forked child would have the locks of this process's threads, but not the threads.
    context = multiprocessing.get_context("spawn")
    # On Ctrl-C the child dies silently; this process reports it.
    on_interrupt = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=on_interrupt) as pool:
        try:
            pool.submit(_start, model).result()
            yield TransformersProcess(pool)
        except BrokenProcessPool:
            raise MusicGenError(
                f"{model.name}: the transformers process was killed, most likely because memory ran out;"
                " close programs, or compare a smaller model"
            ) from None


def _start(model: BenchmarkModel) -> None:
    import_module(_BACKEND_MODULE).start(model)


def _call(method: str, *arguments: float) -> float:
    result: float = import_module(_BACKEND_MODULE).call(method, *arguments)
    return result
