"""An LSTM layer with its state: MLX's own, or the CPU extension's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension

LSTMState = tuple[mx.array, mx.array]
"""Hidden and cell state of the last step, `[B, dim]` each."""


def lstm(layer: nn.LSTM, x: mx.array, state: LSTMState | None) -> tuple[mx.array, LSTMState]:
    """Hidden states `[B, T, dim]` of `x` `[B, T, inputs]`, and the last state; `state` None is zeros."""
    kernels = extension.cpu_extension()
    if kernels is None or x.dtype != mx.float32:
        hidden, cells = layer(x, *(state or ()))
        return hidden, (hidden[:, -1], cells[:, -1])
    # All inputs in one product; only the recurrence is left to do step by step.
    projected = x @ layer.Wx.T
    if layer.bias is not None:
        projected = projected + layer.bias
    zeros = mx.zeros((x.shape[0], layer.Wh.shape[1]))
    hidden, cell = kernels.lstm(projected, layer.Wh, *(state or (zeros, zeros)))
    return hidden, (hidden[:, -1], cell)
