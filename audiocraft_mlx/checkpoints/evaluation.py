"""Computes the lazy weights of a model: two at a time on a CPU, which has a thread for each stream."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import mlx.core as mx

from audiocraft_mlx.ops.device import on_gpu

_AHEAD_BYTES = 16 << 20
"""What of each part may be computed or read at a time. More is no faster, and takes memory."""


def second_stream() -> AbstractContextManager[object]:
    """On a CPU, what is read and computed within has a thread beside that of the default stream."""
    return nullcontext() if on_gpu() else mx.stream(_second_stream())


@cache
def _second_stream() -> mx.ThreadLocalStream:
    return mx.new_thread_local_stream(mx.cpu)


def evaluate_beside(weights: Sequence[mx.array]) -> None:
    """Begin to compute lazy weights: whoever uses them waits for them."""
    _finish_at_exit()
    mx.async_eval(weights)
    # What a stream was given last is computed last.
    with second_stream():
        second = mx.zeros(1)
    markers = [mx.zeros(1), second]
    mx.async_eval(markers)
    _begun.extend(markers)


_begun: deque[mx.array] = deque(maxlen=32)


@cache
def _finish_at_exit() -> None:
    # A process that ends while MLX's threads compute may crash.
    atexit.register(lambda: mx.eval(*_begun))


def evaluate_together(*parts: Sequence[mx.array]) -> None:
    """Compute the lazy weights in `parts`, which are on different streams, at the same pace.

    Few are computed at a time: the peak of memory stays near what is kept.
    """
    sizes = [max(1, sum(weight.nbytes for weight in part)) for part in parts]
    rest: dict[int, Iterator[mx.array]] = {index: iter(part) for index, part in enumerate(parts)}
    begun: list[deque[mx.array]] = [deque() for _ in parts]
    done, ahead = [0] * len(parts), [0] * len(parts)
    while rest:
        index = min(rest, key=lambda part: done[part] / sizes[part])
        weight = next(rest[index], None)
        if weight is None:
            del rest[index]
            continue
        mx.async_eval(weight)
        begun[index].append(weight)
        done[index] += weight.nbytes
        ahead[index] += weight.nbytes
        while ahead[index] > _AHEAD_BYTES:
            first = begun[index].popleft()
            mx.eval(first)
            ahead[index] -= first.nbytes
    mx.eval(*begun)
