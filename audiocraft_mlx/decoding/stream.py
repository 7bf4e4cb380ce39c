"""Chunks of audio of equal length, from pieces of any length as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import mlx.core as mx


def rechunk(pieces: Iterable[mx.array], size: int) -> Iterator[mx.array]:
    """The samples of `pieces` `[B, C, m]` in chunks `[B, C, size]`; the last one has what is left."""
    rest: mx.array | None = None
    for piece in pieces:
        rest = piece if rest is None else mx.concatenate([rest, piece], axis=2)
        while rest.shape[2] >= size:
            chunk, rest = rest[:, :, :size], rest[:, :, size:]
            mx.eval(chunk, rest)  # else the rest holds on to all that it was cut from
            yield chunk
    if rest is not None and rest.shape[2]:
        yield rest
