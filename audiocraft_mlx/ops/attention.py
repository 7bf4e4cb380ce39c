"""Attention of queries to keys and values."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.ops import training as training_ops
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.int8_rows import Int8Rows

KVArray = mx.array | Int8Rows


def attention(
    q: mx.array, k: KVArray, v: KVArray, mask: mx.array | str | None, training: bool = False
) -> mx.array:
    """Queries `[B, heads, S, head_dim]` over keys and values `[B, heads, T, head_dim]`.

    `mask` is bool, broadcast to `[B, 1, S, T]` and False where a query may not attend to a position, or
    "causal". With `training` it is differentiable. Returns `[B, S, heads * head_dim]`.
    """
    if training and not isinstance(k, Int8Rows) and not isinstance(v, Int8Rows):
        return training_ops.attention(q, k, v, mask)
    batch, _, length, head_dim = q.shape
    scale = head_dim**-0.5
    kernels = None if training else extension.cpu_extension()
    if kernels is not None and length == 1 and q.dtype == mx.float32 and not isinstance(mask, str):
        visible = (
            None if mask is None else mx.broadcast_to(mask, (batch, 1, 1, k.shape[2])).reshape(batch, -1)
        )
        one: mx.array
        if isinstance(k, Int8Rows) and isinstance(v, Int8Rows):
            one = kernels.attention(q, k.data, v.data, scale, visible, k.scales, v.scales)
        else:
            one = kernels.attention(q, k, v, scale, visible)
        return one
    if isinstance(k, Int8Rows):
        k = k.dequantize(q.dtype)
    if isinstance(v, Int8Rows):
        v = v.dequantize(q.dtype)
    if kernels is not None and mask is None and q.dtype == k.dtype == mx.float32:
        full: mx.array = kernels.attention_full(q, k, v, scale)
        return full
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(batch, length, -1)
