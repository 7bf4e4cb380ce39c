"""transformers' side, in a process of its own: so its memory is its own, and torch is never imported here."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from audiocraft_mlx.benchmark.subject import Subject
from audiocraft_mlx.errors import MusicGenError, UsageError

_MODULE = "audiocraft_mlx.benchmark.theirs"


class Companion:
    """See `Side`."""

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
def companion(subject: Subject) -> Iterator[Companion]:
    """transformers with the same weights.

    Raises `MusicGenError`: `UsageError` for a model that it can't have, or if its process is ended.
    """
    # spawn: the threads of this process don't live on in a copy of it.
    context = multiprocessing.get_context("spawn")
    # On Ctrl-C it just ends; what there is to say about it is said here.
    on_interrupt = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=on_interrupt) as pool:
        try:
            pool.submit(_start, subject).result()
            yield Companion(pool)
        except BrokenProcessPool:
            raise MusicGenError(
                f"{subject.name}: the process of transformers was ended, most likely for want of memory;"
                " close programs, or compare a smaller model"
            ) from None


def _start(subject: Subject) -> None:
    import_module(_MODULE).start(subject)


def _call(method: str, *arguments: float) -> float:
    result: float = import_module(_MODULE).call(method, *arguments)
    return result
