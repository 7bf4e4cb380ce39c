"""Convolutions over sequences `[B, T, C]`: MLX's own on a GPU, matrix products on a CPU.

MLX's convolutions are slow on CPUs. Here they are one matrix product, of the input windows or followed by a
sum over the kernel's taps, whichever needs less memory traffic for the shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import mlx.core as mx

from audiocraft_mlx.ops.device import on_gpu


def conv1d(x: mx.array, weight: mx.array, bias: mx.array | None, stride: int, dilation: int) -> mx.array:
    """As `mx.conv1d`: `[B, T, C]` with `weight` `[O, kernel, C]` → `[B, (T - k) // stride + 1, O]`.

    `k` is the effective kernel size, `(kernel - 1) * dilation + 1`.
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
    """As `mx.conv_transpose1d`: `weight` `[O, kernel, C]`, result `[B, (T - 1) * stride + kernel, O]`."""
    outputs, kernel, _ = weight.shape
    if on_gpu() or kernel % stride:
        y = mx.conv_transpose1d(x, weight, stride=stride)
    else:
        batch, length, _ = x.shape
        blocks = kernel // stride
        # The contribution of each frame to its own and the following `blocks - 1` strides.
        parts = _products_with_taps(x, weight).reshape(batch, length, blocks, stride * outputs)
        y = _sum(
            mx.pad(parts[:, :, block], [(0, 0), (block, blocks - 1 - block), (0, 0)])
            for block in range(blocks)
        ).reshape(batch, -1, outputs)
    return y if bias is None else y + bias


def _windows(x: mx.array, kernel: int, length: int, stride: int, dilation: int) -> mx.array:
    """The input window of each output frame: `[B, length, kernel * C]` (im2col)."""
    batch, time, inputs = x.shape
    shape = (batch, length, kernel, inputs)
    strides = (time * inputs, stride * inputs, dilation * inputs, 1)
    return mx.as_strided(mx.contiguous(x), shape, strides).reshape(batch, length, -1)


def _without_stride(x: mx.array, weight: mx.array, stride: int, length: int) -> tuple[mx.array, mx.array]:
    """An equivalent convolution with stride 1, over blocks of `stride` frames."""
    if stride == 1:
        return x, weight
    outputs, kernel, inputs = weight.shape
    blocks = kernel // stride
    frames = (length - 1 + blocks) * stride
    x = x[:, :frames].reshape(x.shape[0], -1, stride * inputs)
    return x, weight.reshape(outputs, blocks, stride * inputs)


def _sum_of_taps(x: mx.array, weight: mx.array, length: int, dilation: int) -> mx.array:
    """The sum over the kernel's taps of their shifted products, `[B, length, O]`."""
    outputs, kernel, _ = weight.shape
    parts = _products_with_taps(x, weight)
    return _sum(
        parts[:, tap * dilation : tap * dilation + length, tap * outputs : (tap + 1) * outputs]
        for tap in range(kernel)
    )


def _products_with_taps(x: mx.array, weight: mx.array) -> mx.array:
    """Every frame times every tap in one product: `[B, T, kernel * O]`."""
    outputs, kernel, inputs = weight.shape
    return x @ weight.swapaxes(0, 1).reshape(kernel * outputs, inputs).T


def _sum(parts: Iterable[mx.array]) -> mx.array:
    return reduce(mx.add, parts)
