"""The recurrent layer of the codec."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension

LSTMState = tuple[mx.array, mx.array]
"""The last step's hidden state and cell, `[B, dim]` each."""


def lstm(layer: nn.LSTM, x: mx.array, state: LSTMState | None) -> tuple[mx.array, LSTMState]:
    """Hidden states `[B, T, dim]` of `x` `[B, T, inputs]`, and the last state; none is zeros."""
    kernels = extension.cpu_extension()
    if kernels is None or x.dtype != mx.float32:
        hidden, cells = layer(x, *(state or ()))
        return hidden, (hidden[:, -1], cells[:, -1])
    # All inputs in one product; only what depends on the step before is left for the steps.
    projected = x @ layer.Wx.T
    if layer.bias is not None:
        projected = projected + layer.bias
    zeros = mx.zeros((x.shape[0], layer.Wh.shape[1]))
    hidden, cell = kernels.lstm(projected, layer.Wh, *(state or (zeros, zeros)))
    return hidden, (hidden[:, -1], cell)
