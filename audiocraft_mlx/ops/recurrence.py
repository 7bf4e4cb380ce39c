"""The recurrent layer of the codec."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops import native


def lstm(layer: nn.LSTM, x: mx.array) -> mx.array:
    """Hidden states `[B, T, dim]` of `x` `[B, T, inputs]`, beginning with a state of zeros."""
    extension = native.on_cpu()
    if extension is None or x.dtype != mx.float32:
        return layer(x)[0]
    # All inputs in one product; only what depends on the step before is left for the steps.
    projected = x @ layer.Wx.T
    if layer.bias is not None:
        projected = projected + layer.bias
    zeros = mx.zeros((x.shape[0], layer.Wh.shape[1]))
    hidden: mx.array = extension.lstm(projected, layer.Wh, zeros, zeros)[0]
    return hidden
