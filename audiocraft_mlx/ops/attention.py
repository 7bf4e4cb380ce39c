"""Attention of queries to keys and values."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.ops import training as training_ops
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.ops.int8_rows import Int8Rows

KVArray = mx.array | Int8Rows

_BAND_BLOCK = 64
"""Queries that are computed together with the keys around them; measured."""


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


def banded_attention(q: mx.array, k: mx.array, v: mx.array, reach: int, training: bool = False) -> mx.array:
    """`attention` where each position attends to those at most `reach` before or after it.

    All are float `[B, heads, S, head_dim]`. Returns `[B, S, heads * head_dim]`.
    """
    batch, heads, length, head_dim = q.shape
    blocks, width = -(-length // _BAND_BLOCK), _BAND_BLOCK + 2 * reach
    if on_gpu() or training or width >= length:
        position = mx.arange(length)
        return attention(q, k, v, mx.abs(position[:, None] - position) <= reach, training)
    # A CPU would compute all scores, and few count: each block of queries gets the keys that it reaches.
    padding = blocks * _BAND_BLOCK - length
    ends = [(0, 0), (0, 0), (reach, padding + reach), (0, 0)]
    index = mx.arange(blocks)[:, None] * _BAND_BLOCK + mx.arange(width)  # in the padded keys
    q = mx.pad(q, [(0, 0), (0, 0), (0, padding), (0, 0)])
    q = q.reshape(batch * heads, blocks, _BAND_BLOCK, head_dim)
    k, v = (mx.pad(x, ends)[:, :, index].reshape(batch * heads, blocks, width, head_dim) for x in (k, v))
    query = mx.arange(blocks)[:, None, None] * _BAND_BLOCK + mx.arange(_BAND_BLOCK)[:, None]
    key = index[:, None] - reach
    # Padding sees padding, so that its (unused) softmax has something to normalize.
    is_there = ((key >= 0) & (key < length)) | (query >= length)
    mask = (mx.abs(query - key) <= reach) & is_there
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5, mask=mask[None])
    out = out.reshape(batch, heads, -1, head_dim)[:, :, :length]
    return out.transpose(0, 2, 1, 3).reshape(batch, length, -1)
