"""What a Mac's GPU works with stays in memory while clips are generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import mlx.core as mx

from audiocraft_mlx.ops.device import is_forked

_Chunk = TypeVar("_Chunk")

# The limit is the process's, and generations may overlap: the first one raises it, the last one puts it back.
_lock = Lock()
_generations = 0
_limit_before = 0


def with_wired_memory(chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
    """The same `chunks`; `wired_memory` until they end, or the iterator is closed."""
    with wired_memory():
        yield from chunks


@contextmanager
def wired_memory() -> Iterator[None]:
    """On a Mac keep arrays wired, as far as is recommended for its GPU; afterwards free cached buffers.

    macOS pages out, or compresses, what a GPU hasn't used for a second, and then a step waits for it: with
    models that are large for the machine's memory many times as long as it computes.
    """
    global _generations, _limit_before
    recommended = _recommended_working_set()
    if recommended is not None:
        with _lock:
            _generations += 1
            if _generations == 1:
                _limit_before = mx.set_wired_limit(recommended)
    try:
        yield
    finally:
        if recommended is not None:
            with _lock:
                _generations -= 1
                if not _generations:
                    mx.synchronize()  # a kernel that still runs may use what would no longer be wired
                    mx.set_wired_limit(_limit_before)
        # What one job no longer uses, another one, or another program, may need. A fork's child would wait.
        if not is_forked():
            mx.clear_cache()


def _recommended_working_set() -> int | None:
    """Bytes that Metal recommends to stay within; None where MLX doesn't compute with Metal."""
    if mx.default_device() != mx.gpu or not mx.metal.is_available():
        return None
    size = mx.device_info().get("max_recommended_working_set_size")
    return None if size is None else int(size)
