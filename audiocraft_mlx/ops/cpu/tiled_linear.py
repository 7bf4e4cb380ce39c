"""A dense layer for a few rows on a CPU, through a BLAS.

Such a product takes as long as reading the matrix. A BLAS first copies a large matrix into another order,
which pays with many rows only; a small one it multiplies as it is, in one thread. So the matrix is stored in
tiles small enough for that, the weights of neighbouring outputs side by side, as a processor multiplies them;
and several threads read parts of a large one.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import cache
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.machine import num_cpus

MAX_DECODE_ROWS = 8
"""Rows up to which a dense layer's time is that of reading its weights; a BLAS is made for more."""
SMALL_GEMM_LIMIT = 1_000_000
"""Multiplications up to which OpenBLAS treats a product as small (`sgemm_small_matrix_permit`)."""
TILE_WIDTHS = (32, 16)
"""Outputs of a tile."""
ELEMENTS_PER_THREAD = 2**20
"""Elements of a matrix that make another thread pay: a waiting one takes a while to start."""
FIRST_THREAD_SHARE = 1.25
"""The first thread's work, as a multiple of each other one's: it computes while they wake up."""
MAX_THREADS = 4
"""More don't read memory faster."""


class TiledLinear(nn.Module):
    """A dense layer, float32, with its weights in tiles `[outputs / width, inputs, width]`."""

    def __init__(self, weight: mx.array, bias: mx.array | None) -> None:
        """`weight` is in tiles already; see `from_linear`."""
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    @staticmethod
    def supports(layer: nn.Module) -> bool:
        return (
            type(layer) is nn.Linear
            and layer.weight.dtype == mx.float32
            and any(layer.weight.shape[0] % width == 0 for width in TILE_WIDTHS)
        )

    @classmethod
    def from_linear(cls, layer: nn.Linear) -> TiledLinear:
        """The same layer; its weights `[outputs, inputs]` are copied, at the latest when they are used."""
        outputs, inputs = layer.weight.shape
        widths = [width for width in TILE_WIDTHS if outputs % width == 0]
        small = [width for width in widths if MAX_DECODE_ROWS * inputs * width <= SMALL_GEMM_LIMIT]
        width = (small or widths[-1:])[0]
        tiles = mx.contiguous(layer.weight.reshape(-1, width, inputs).swapaxes(1, 2))
        tiled = cls(tiles, layer.get("bias"))
        tiled.train(layer.training)
        return tiled

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., inputs]` → `[..., outputs]`."""
        y = tiled_matmul(x, self.weight)
        return y + self.bias if "bias" in self else y


def tiled_matmul(x: mx.array, tiles: mx.array) -> mx.array:
    """`x @ weight.T` of a weight in `tiles`: `[..., inputs]` → `[..., outputs]`."""
    count, inputs, width = tiles.shape
    rows = x.reshape(-1, inputs)
    # A BLAS has threads of its own for larger products.
    small = len(rows) * inputs * width <= SMALL_GEMM_LIMIT
    parts = min(_threads(), tiles.size // ELEMENTS_PER_THREAD, count) if small else 1
    y = rows @ tiles if parts < 2 else _matmul_threaded(rows, tiles, parts)
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], count * width)


def _matmul_threaded(rows: mx.array, tiles: mx.array, parts: int) -> mx.array:
    shares = [FIRST_THREAD_SHARE, *[1.0] * (parts - 1)]
    ends = [round(len(tiles) * share / sum(shares)) for share in accumulate(shares)]
    products = []
    for start, end, stream in zip([0, *ends], ends, _streams(), strict=False):
        with nullcontext() if stream is None else mx.stream(stream):
            products.append(rows @ tiles[start:end])
    return mx.concatenate(products)


@cache
def _threads() -> int:
    # On macOS it is Accelerate that multiplies, with threads of its own.
    return min(num_cpus(), MAX_THREADS) if sys.platform == "linux" else 1


@cache
def _streams() -> list[mx.Stream | mx.ThreadLocalStream | None]:
    """The default one (None) and one for each other thread."""
    return [None, *(mx.new_thread_local_stream(mx.cpu) for _ in range(_threads() - 1))]
