"""An LSTM layer with its state: step by step in MLX, or the CPU extension's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import on_gpu

LSTMState = tuple[mx.array, mx.array]
"""Hidden and cell state of the last step, `[B, dim]` each."""


def lstm(layer: nn.LSTM, x: mx.array, state: LSTMState | None) -> tuple[mx.array, LSTMState]:
    """Hidden states `[B, T, dim]` of `x` `[B, T, inputs]`, and the last state; `state` None is zeros."""
    # All inputs in one product; only the recurrence is left to do step by step.
    projected = x @ layer.Wx.T
    if layer.bias is not None:
        projected = projected + layer.bias
    zeros = mx.zeros((x.shape[0], layer.Wh.shape[1]), x.dtype)
    hidden, cell = state or (zeros, zeros)
    kernels = extension.cpu_extension()
    if kernels is not None and x.dtype == mx.float32:
        outputs, cell = kernels.lstm(projected, layer.Wh, hidden, cell)
        return outputs, (outputs[:, -1], cell)
    step = _compiled_cell if on_gpu() else _cell
    steps = []
    for frame in range(x.shape[1]):
        gates = mx.addmm(projected[:, frame], hidden, layer.Wh.T)
        hidden, cell = step(gates, cell)
        steps.append(hidden)
    return mx.stack(steps, axis=1), (hidden, cell)


def _cell(gates: mx.array, cell: mx.array) -> tuple[mx.array, mx.array]:
    """Hidden and cell state after a step; `gates` `[B, 4 * dim]` are input, forget, cell and output."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
    return mx.sigmoid(o) * mx.tanh(cell), cell


# On a GPU a step is two kernels so, instead of ten (`nn.LSTM`).
_compiled_cell = mx.compile(_cell)
