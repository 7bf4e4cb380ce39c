"""The device that MLX computes on by default, and the process that it computes in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx

from audiocraft_mlx.errors import MusicGenError

_process: int | None = None
"""The id of the first process that computed, None before: MLX's threads are in that one."""

_gpu_branch: ContextVar[bool] = ContextVar("gpu_branch", default=False)


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU, or the GPU's branch is to be taken (`gpu_branch`)."""
    return _gpu_branch.get() or mx.default_device() == mx.gpu


@contextmanager
def gpu_branch() -> Iterator[None]:
    """Within it `on_gpu()` is true, on whatever device MLX computes: to try the GPU's branch on a CPU.

    That branch is pure MLX. A model has to be loaded inside: its layout and precision are decided then. It is
    the calling thread's own choice; a thread that is started inside doesn't take it over.
    """
    token = _gpu_branch.set(True)
    try:
        yield
    finally:
        _gpu_branch.reset(token)


def is_forked() -> bool:
    """Whether this process was forked from one that has computed."""
    return _process is not None and _process != os.getpid()


def require_mlx_threads() -> None:
    """Raise `MusicGenError` in a process forked from one that has computed.

    A fork copies no threads but the caller's, and whatever is given to MLX's would wait for ever.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    elif is_forked():
        raise MusicGenError(
            "MLX can't compute in a process that was forked after a model was used: start it with"
            " multiprocessing's method 'spawn', or load the model only after the fork"
        )
