"""A few rows times a large matrix on a CPU, through a BLAS.

Such a product takes as long as the matrix takes to be read. A BLAS copies a large matrix into another order
first, which pays with many rows only; small ones it multiplies as they are, in one thread. So the matrix lies
in tiles that it takes for small, their outputs side by side, as a processor multiplies them; and threads of
their own read parts of a large one.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

MAX_DECODE_ROWS = 8
"""Up to so many rows a dense layer's time is that of reading its weights; a BLAS is made for more."""
SMALL_GEMM_LIMIT = 1_000_000
"""Multiplications up to which OpenBLAS takes a product for small (`sgemm_small_matrix_permit`)."""
TILE_WIDTHS = (32, 16)
"""Outputs of a tile."""
ELEMENTS_PER_THREAD = 2**20
"""Elements of a matrix for which a thread of its own pays: one that waits takes a while to begin."""
FIRST_THREAD_SHARE = 1.25
"""What the first thread computes while the others wake up: so many times as much as each of them."""
MAX_THREADS = 4
"""By then memory is as busy as it gets."""


def optimize_layout(layer: nn.Module) -> None:
    """Bring a dense layer's weights `[outputs, inputs]` into tiles `[outputs / width, inputs, width]`."""
    if type(layer) is not nn.Linear or layer.weight.dtype != mx.float32 or layer.weight.ndim != 2:
        return
    outputs, inputs = layer.weight.shape
    widths = [width for width in TILE_WIDTHS if outputs % width == 0]
    small = [width for width in widths if MAX_DECODE_ROWS * inputs * width <= SMALL_GEMM_LIMIT]
    if widths:
        width = (small or widths[-1:])[0]
        layer.weight = mx.contiguous(layer.weight.reshape(-1, width, inputs).swapaxes(1, 2))


def in_tiles(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.ndim == 3


def product(x: mx.array, tiles: mx.array) -> mx.array:
    """`x @ weight.T` of a weight in `tiles`: `[..., inputs]` → `[..., outputs]`."""
    count, inputs, width = tiles.shape
    rows = x.reshape(-1, inputs)
    # A BLAS has threads of its own for larger products.
    small = len(rows) * inputs * width <= SMALL_GEMM_LIMIT
    parts = min(_threads(), tiles.size // ELEMENTS_PER_THREAD, count) if small else 1
    y = rows @ tiles if parts < 2 else _in_parts(rows, tiles, parts)
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], count * width)


def _in_parts(rows: mx.array, tiles: mx.array, parts: int) -> mx.array:
    shares = [FIRST_THREAD_SHARE, *[1.0] * (parts - 1)]
    ends = [round(len(tiles) * share / sum(shares)) for share in accumulate(shares)]
    products = []
    for start, end, stream in zip([0, *ends], ends, _streams(), strict=False):
        with nullcontext() if stream is None else mx.stream(stream):
            products.append(rows @ tiles[start:end])
    return mx.concatenate(products)


@cache
def _threads() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MAX_THREADS)


@cache
def _streams() -> list[mx.Stream | mx.ThreadLocalStream | None]:
    """The usual one, and others beside it."""
    return [None, *(mx.new_thread_local_stream(mx.cpu) for _ in range(_threads() - 1))]
