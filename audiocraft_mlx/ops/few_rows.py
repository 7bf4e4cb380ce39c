"""A few rows times a large matrix on a CPU, through a BLAS.

Such a product takes as long as the matrix takes to be read. A BLAS copies a large matrix into another order
first, which pays with many rows only; small matrices it multiplies as they are, in one thread. So the matrix
is given to it in blocks that it takes for small, and threads of their own read parts of a large one.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache

import mlx.core as mx

from audiocraft_mlx.ops.device import on_gpu

FEW_ROWS = 8
"""Up to so many rows a dense layer's time is that of reading its weights; a BLAS is made for more."""
SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS takes a product for small (`sgemm_small_matrix_permit`)."""
LARGEST_BLOCK = 512
PART = 2**19
"""Elements of a matrix for which a thread of its own pays."""
MOST_PARTS = 4
"""By then memory is as busy as it gets."""


def few_rows_on_a_cpu(x: mx.array) -> bool:
    return x.size <= FEW_ROWS * x.shape[-1] and not on_gpu()


def product(x: mx.array, weight: mx.array, bias: mx.array | None, gelu: bool) -> mx.array:
    """`x @ weight.T + bias`, then GELU if asked, for few rows: `[..., inputs]` → `[..., outputs]`.

    `weight` is `[outputs, inputs]`.
    """
    outputs, inputs = weight.shape
    rows = x.reshape(-1, inputs)
    block = _block(outputs, len(rows) * inputs)
    blocks = weight.reshape(-1, block, inputs).swapaxes(1, 2)
    biases = None if bias is None else bias.reshape(-1, 1, block)
    parts = max(1, min(_threads(), weight.size // PART, len(blocks)))
    products = []
    for part, stream in zip(range(parts), _streams(), strict=False):
        own = slice(len(blocks) * part // parts, len(blocks) * (part + 1) // parts)
        with nullcontext() if stream is None else mx.stream(stream):
            y = rows @ blocks[own]
            if biases is not None:
                y = y + biases[own]
            products.append(_gelu(y) if gelu else y)
    together = products[0] if parts == 1 else mx.concatenate(products)
    return together.swapaxes(0, 1).reshape(*x.shape[:-1], outputs)


@cache
def _block(outputs: int, per_output: int) -> int:
    """Outputs at a time: the largest divisor that makes a product small; all, if that is next to none."""
    most = min(LARGEST_BLOCK, SMALL_PRODUCT // per_output)
    block = next(size for size in range(min(most, outputs), 0, -1) if outputs % size == 0) if most else 1
    return block if block >= 16 else outputs


@cache
def _threads() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_PARTS)


@cache
def _streams() -> list[mx.Stream | mx.ThreadLocalStream | None]:
    """The usual one, and others beside it."""
    return [None, *(mx.new_thread_local_stream(mx.cpu) for _ in range(_threads() - 1))]


def _gelu(x: mx.array) -> mx.array:
    return x * (0.5 + 0.5 * mx.erf(x * 0.5**0.5))
