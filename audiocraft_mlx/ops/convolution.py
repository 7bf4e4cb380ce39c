"""Convolutions of sequences `[B, T, C]`: MLX's own on a GPU, matrix products on a CPU.

MLX's convolutions are slow on CPUs. The same sums are a matrix product or two, and what overlaps is added:
each way reads and writes as little as its shape allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import mlx.core as mx

from audiocraft_mlx.ops.device import on_gpu


def conv1d(x: mx.array, weight: mx.array, bias: mx.array | None, stride: int, dilation: int) -> mx.array:
    """`[B, T, C]` with `weight` `[O, kernel, C]` → `[B, (T - span) // stride + 1, O]`, as `mx.conv1d`.

    `span` is `(kernel - 1) * dilation + 1`.
    """
    outputs, kernel, inputs = weight.shape
    if on_gpu() or (stride > 1 and (kernel % stride or dilation > 1)):
        y = mx.conv1d(x, weight, stride=stride, dilation=dilation)
    else:
        length = (x.shape[1] - (kernel - 1) * dilation - 1) // stride + 1
        if kernel * inputs <= outputs:
            y = _windows(x, kernel, length, stride, dilation) @ weight.reshape(outputs, -1).T
        else:
            y = _sum_of_taps(*_without_stride(x, weight, stride, length), length, dilation)
    return y if bias is None else y + bias


def conv_transpose1d(x: mx.array, weight: mx.array, bias: mx.array | None, stride: int) -> mx.array:
    """`[B, T, C]` with `weight` `[O, kernel, C]` → `[B, (T - 1) * stride + kernel, O]`.

    As `mx.conv_transpose1d`.
    """
    outputs, kernel, _ = weight.shape
    if on_gpu() or kernel % stride:
        y = mx.conv_transpose1d(x, weight, stride=stride)
    else:
        batch, length, _ = x.shape
        blocks = kernel // stride
        # What each frame adds to the `blocks` strides that begin with its own.
        parts = _products_with_taps(x, weight).reshape(batch, length, blocks, stride * outputs)
        y = _sum(
            mx.pad(parts[:, :, block], [(0, 0), (block, blocks - 1 - block), (0, 0)])
            for block in range(blocks)
        ).reshape(batch, -1, outputs)
    return y if bias is None else y + bias


def _windows(x: mx.array, kernel: int, length: int, stride: int, dilation: int) -> mx.array:
    """Each output's inputs side by side: `[B, length, kernel * C]`."""
    batch, time, inputs = x.shape
    shape = (batch, length, kernel, inputs)
    strides = (time * inputs, stride * inputs, dilation * inputs, 1)
    return mx.as_strided(mx.contiguous(x), shape, strides).reshape(batch, length, -1)


def _without_stride(x: mx.array, weight: mx.array, stride: int, length: int) -> tuple[mx.array, mx.array]:
    """The same convolution with stride 1, over blocks of `stride` frames."""
    if stride == 1:
        return x, weight
    outputs, kernel, inputs = weight.shape
    blocks = kernel // stride
    frames = (length - 1 + blocks) * stride
    x = x[:, :frames].reshape(x.shape[0], -1, stride * inputs)
    return x, weight.reshape(outputs, blocks, stride * inputs)


def _sum_of_taps(x: mx.array, weight: mx.array, length: int, dilation: int) -> mx.array:
    """Each tap's product where it belongs."""
    outputs, kernel, _ = weight.shape
    parts = _products_with_taps(x, weight)
    return _sum(
        parts[:, tap * dilation : tap * dilation + length, tap * outputs : (tap + 1) * outputs]
        for tap in range(kernel)
    )


def _products_with_taps(x: mx.array, weight: mx.array) -> mx.array:
    """One product for all taps of the kernel: `[B, T, kernel * O]`."""
    outputs, kernel, inputs = weight.shape
    return x @ weight.swapaxes(0, 1).reshape(kernel * outputs, inputs).T


def _sum(parts: Iterable[mx.array]) -> mx.array:
    return reduce(mx.add, parts)
