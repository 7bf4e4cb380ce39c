"""The codec's layers applied to a clip chunk by chunk.

The outputs, concatenated, equal the layer's output for the whole clip. A convolution that isn't causal
delays its output until the frames after it are known, or until the last chunk. A whole clip is a single
chunk which is the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.convolution import conv1d, conv_transpose1d
from audiocraft_mlx.ops.lstm import LSTMState, lstm


class StreamingLayer(Protocol):
    """A layer with its state for one batch of clips."""

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        """The next output `[B, m, C']` after the chunk `x` `[B, n, C]`, n > 0; None if there is none yet."""

    def delay(self, delay: int) -> int:
        """Frames that the output is delayed by if the input is delayed by `delay` frames."""

    @property
    def state(self) -> list[mx.array]:
        """All that the next step goes on with. Evaluated, it can be used by another thread."""


class StreamingSequential:
    """Layers in a row."""

    def __init__(self, layers: Sequence[StreamingLayer]) -> None:
        self._layers = layers

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        result: mx.array | None = x
        for layer in self._layers:
            if result is None:
                return None
            result = layer.step(result, is_last)
        return result

    def delay(self, delay: int) -> int:
        for layer in self._layers:
            delay = layer.delay(delay)
        return delay

    @property
    def state(self) -> list[mx.array]:
        return [array for layer in self._layers for array in layer.state]


class Stateless:
    """A function of each frame alone."""

    def __init__(self, function: Callable[[mx.array], mx.array]) -> None:
        self._function = function

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        return self._function(x)

    def delay(self, delay: int) -> int:
        return delay

    @property
    def state(self) -> list[mx.array]:
        return []


class StreamingResidual:
    """A residual connection: `x + layers(x)`."""

    def __init__(self, layers: StreamingLayer) -> None:
        self._layers = layers
        self._pending: mx.array | None = None
        """Inputs whose outputs are delayed."""

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        pending = _concat(self._pending, x)
        y = self._layers.step(x, is_last)
        count = 0 if y is None else y.shape[1]
        self._pending = pending[:, count:]
        return None if y is None else pending[:, :count] + y

    def delay(self, delay: int) -> int:
        return self._layers.delay(delay)

    @property
    def state(self) -> list[mx.array]:
        return [*_given(self._pending), *self._layers.state]


class StreamingLSTM:
    def __init__(self, layer: nn.LSTM) -> None:
        self._layer = layer
        self._state: LSTMState | None = None

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        y, self._state = lstm(self._layer, x, self._state)
        return y

    def delay(self, delay: int) -> int:
        return delay

    @property
    def state(self) -> list[mx.array]:
        return list(self._state or ())


class StreamingConv1d:
    """A strided or dilated convolution: T frames → `ceil(T / stride)`.

    Padded like audiocraft's non-causal `StreamableConv1d` (`modules/conv.py`): half of the padding on either
    side, the odd frame on the left, and extra padding on the right to complete the last window.
    """

    def __init__(self, conv: nn.Conv1d, pad_mode: str) -> None:
        self._conv, self._pad_mode = conv, pad_mode
        padding = effective_kernel_size(conv) - conv.stride
        self._right = padding // 2
        self._left = padding - self._right
        self._seen = 0
        self._buffer: mx.array | None = None
        """The part of the padded input that is still needed."""
        self._next = 0
        """Where in it the window of the next frame begins."""
        self._started = False

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        stride = self._conv.stride
        self._seen += x.shape[1]
        x = _concat(self._buffer, x)
        if not (self._started or is_last) and x.shape[1] <= max(self._left, self._right + stride - 1):
            self._buffer = x  # too short for reflect padding
            return None
        before = 0 if self._started else self._left
        after = self._right + -self._seen % stride if is_last else 0
        x = pad(x, before, after, self._pad_mode)
        self._started = True
        frames = max(0, (x.shape[1] - self._next - effective_kernel_size(self._conv)) // stride + 1)
        end = self._next + frames * stride
        used = x[:, self._next : end - stride + effective_kernel_size(self._conv)]
        drop = max(0, min(end, x.shape[1] - self._right - stride))
        self._buffer, self._next = x[:, drop:], end - drop
        if frames < 1:
            return None
        return conv1d(used, self._conv.weight, self._conv.bias, stride, self._conv.dilation)

    def delay(self, delay: int) -> int:
        return -(-(delay + self._right) // self._conv.stride)

    @property
    def state(self) -> list[mx.array]:
        return _given(self._buffer)


class StreamingConvTranspose1d:
    """A transposed convolution: T frames → `T * stride`, trimmed as `StreamingConv1d` is padded."""

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        self._conv = conv
        kernel, stride = conv.weight.shape[1], conv.stride
        trim = kernel - stride
        self._right = trim // 2
        self._left = trim - self._right
        self._overlap = -(-trim // stride)
        """Previous frames whose output overlaps with that of a frame."""
        self._buffer: mx.array | None = None

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        stride = self._conv.stride
        start = self._left if self._buffer is None else self._buffer.shape[1] * stride
        x = _concat(self._buffer, x)
        y = conv_transpose1d(x, self._conv.weight, self._conv.bias, stride)
        end = y.shape[1] - self._right if is_last else x.shape[1] * stride
        self._buffer = x[:, max(0, x.shape[1] - self._overlap) :]
        return y[:, start:end] if end > start else None

    def delay(self, delay: int) -> int:
        return delay * self._conv.stride + self._left

    @property
    def state(self) -> list[mx.array]:
        return _given(self._buffer)


def effective_kernel_size(conv: nn.Conv1d) -> int:
    """Input frames from the first to the last tap of the kernel."""
    return int((conv.weight.shape[1] - 1) * conv.dilation + 1)


def pad(x: mx.array, left: int, right: int, mode: str) -> mx.array:
    """Pad `T` of `[B, T, C]`; a clip too short to reflect is zero-padded first (audiocraft's `pad1d`)."""
    if mode == "constant":
        return mx.pad(x, [(0, 0), (left, right), (0, 0)])
    extra = max(0, max(left, right) - x.shape[1] + 1)
    if extra:
        x = mx.pad(x, [(0, 0), (0, extra), (0, 0)])
    length = x.shape[1]
    before = x[:, left:0:-1] if left else x[:, :0]
    after = (
        x[:, length - 2 : length - 2 - right : -1]
        if right < length - 1
        else x[:, length - 2 :: -1][:, :right]
    )
    return mx.concatenate([before, x, after], axis=1)[:, : left + length + right - extra]


def _concat(before: mx.array | None, x: mx.array) -> mx.array:
    return x if before is None or not before.shape[1] else mx.concatenate([before, x], axis=1)


def _given(array: mx.array | None) -> list[mx.array]:
    return [] if array is None else [array]
