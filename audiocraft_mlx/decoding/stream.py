"""The chunks that a stream's codes and audio come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import mlx.core as mx

from audiocraft_mlx.decoding.step import LMStep
from audiocraft_mlx.ops.device import require_mlx_threads


def chunk_sizes(first: int, size: int) -> Iterator[int]:
    """`first`, then twice as many each time, up to `size` for ever.

    A short first chunk is heard sooner, and few chunks are the cheaper.
    """
    while first < size:
        yield first
        first *= 2
    while True:
        yield size


def in_chunks(codes: mx.array, chunk_frames: Iterator[int]) -> Iterator[mx.array]:
    """`codes` `[B, K, T]` in parts of `chunk_frames` frames; the last one has what is left."""
    start = 0
    while start < codes.shape[2]:
        size = next(chunk_frames)
        yield codes[:, :, start : start + size]
        start += size


def rechunk(audio: Iterable[mx.array | LMStep], sizes: Iterator[int]) -> Iterator[mx.array | LMStep]:
    """The samples of arrays `[B, C, m]` of any length in chunks `[B, C, size]`; the last one is shorter.

    The steps between them are passed on. Chunks are evaluated, and so is what is left of the arrays at each
    yield.
    """
    rest: mx.array | None = None
    size = next(sizes)
    for samples in audio:
        if isinstance(samples, LMStep):
            yield samples
            continue
        rest = samples if rest is None else mx.concatenate([rest, samples], axis=2)
        while rest.shape[2] >= size:
            chunk, rest = rest[:, :, :size], rest[:, :, size:]
            mx.eval(chunk, rest)  # else the rest keeps the whole array in memory
            yield chunk
            require_mlx_threads()  # there may have been a fork since
            size = next(sizes)
    if rest is not None and rest.shape[2]:
        mx.eval(rest)
        yield rest
