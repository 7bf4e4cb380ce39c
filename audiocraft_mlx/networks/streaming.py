"""The codec's layers on a clip that comes in pieces, one after the other.

What comes out, put together, is what the layer makes of the whole clip. A convolution that looks ahead gives
its last frames when it has seen what follows them, or when it is told that nothing does. A whole clip is a
single piece that is the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.convolution import conv1d, conv_transpose1d
from audiocraft_mlx.ops.lstm import LSTMState, lstm


class StreamingLayer(Protocol):
    """One layer's progress through a clip."""

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        """What can be said after the next piece `[B, n, C]`, n > 0: `[B, m, C']`, or None for nothing yet."""

    def delay(self, delay: int) -> int:
        """Frames by which its result is behind a whole clip's, where its input is `lag` frames behind."""


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


class Stateless:
    """What looks at each frame alone."""

    def __init__(self, function: Callable[[mx.array], mx.array]) -> None:
        self._function = function

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        return self._function(x)

    def delay(self, delay: int) -> int:
        return delay


class StreamingResidual:
    """Layers with a way around them: `x + layers(x)`."""

    def __init__(self, layers: StreamingLayer) -> None:
        self._layers = layers
        self._waiting: mx.array | None = None

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        waiting = _joined(self._waiting, x)
        y = self._layers.step(x, is_last)
        count = 0 if y is None else y.shape[1]
        self._waiting = waiting[:, count:]
        return None if y is None else waiting[:, :count] + y

    def delay(self, delay: int) -> int:
        return self._layers.delay(delay)


class StreamingLSTM:
    """An LSTM."""

    def __init__(self, layer: nn.LSTM) -> None:
        self._layer = layer
        self._state: LSTMState | None = None

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        y, self._state = lstm(self._layer, x, self._state)
        return y

    def delay(self, delay: int) -> int:
        return delay


class StreamingConv1d:
    """A strided or dilated convolution that makes `ceil(T / stride)` frames of T.

    Padded as the reference's `StreamableConv1d` does it (`modules/conv.py`): half of what is needed on either
    side, the odd one on the left, and more on the right so that the last frame is whole.
    """

    def __init__(self, conv: nn.Conv1d, pad_mode: str) -> None:
        self._conv, self._pad_mode = conv, pad_mode
        padding = effective_kernel_size(conv) - conv.stride
        self._right = padding // 2
        self._left = padding - self._right
        self._seen = 0
        self._rest: mx.array | None = None
        """What is still needed of the padded input."""
        self._next = 0
        """Where in it the next frame's inputs begin."""
        self._begun = False

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        stride = self._conv.stride
        self._seen += x.shape[1]
        x = _joined(self._rest, x)
        if not (self._begun or is_last) and x.shape[1] <= max(self._left, self._right + stride - 1):
            self._rest = x  # too little to be reflected at its edges
            return None
        before = 0 if self._begun else self._left
        after = self._right + -self._seen % stride if is_last else 0
        x = pad(x, before, after, self._pad_mode)
        self._begun = True
        frames = max(0, (x.shape[1] - self._next - effective_kernel_size(self._conv)) // stride + 1)
        end = self._next + frames * stride
        used = x[:, self._next : end - stride + effective_kernel_size(self._conv)]
        drop = max(0, min(end, x.shape[1] - self._right - stride))
        self._rest, self._next = x[:, drop:], end - drop
        if frames < 1:
            return None
        return conv1d(used, self._conv.weight, self._conv.bias, stride, self._conv.dilation)

    def delay(self, delay: int) -> int:
        return -(-(delay + self._right) // self._conv.stride)


class StreamingConvTranspose1d:
    """The way back: `T * stride` frames of T, trimmed on both sides as the other is padded."""

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        self._conv = conv
        kernel, stride = conv.weight.shape[1], conv.stride
        trim = kernel - stride
        self._right = trim // 2
        self._left = trim - self._right
        self._reach = -(-trim // stride)
        """Frames before it that a frame's result overlaps with."""
        self._rest: mx.array | None = None

    def step(self, x: mx.array, is_last: bool) -> mx.array | None:
        stride = self._conv.stride
        start = self._left if self._rest is None else self._rest.shape[1] * stride
        x = _joined(self._rest, x)
        y = conv_transpose1d(x, self._conv.weight, self._conv.bias, stride)
        end = y.shape[1] - self._right if is_last else x.shape[1] * stride
        self._rest = x[:, max(0, x.shape[1] - self._reach) :]
        return y[:, start:end] if end > start else None

    def delay(self, delay: int) -> int:
        return delay * self._conv.stride + self._left


def effective_kernel_size(conv: nn.Conv1d) -> int:
    """Frames that one frame of a convolution's result is made from."""
    return int((conv.weight.shape[1] - 1) * conv.dilation + 1)


def pad(x: mx.array, left: int, right: int, mode: str) -> mx.array:
    """Pad the time of `[B, T, C]`; a clip too short to be reflected is zero-padded first (`pad1d`)."""
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


def _joined(before: mx.array | None, x: mx.array) -> mx.array:
    return x if before is None or not before.shape[1] else mx.concatenate([before, x], axis=1)
