"""Attention of some queries to all keys."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.ops import native
from audiocraft_mlx.ops.eight_bit import EightBit

Stored = mx.array | EightBit


def attend(q: mx.array, k: Stored, v: Stored, mask: mx.array | str | None) -> mx.array:
    """Queries `[B, heads, S, head_dim]` over keys and values `[B, heads, T, head_dim]`.

    `mask` is bool, broadcast to `[B, 1, S, T]` and False where a query may not look, or "causal".
    Returns `[B, S, heads * head_dim]`.
    """
    batch, _, length, head_dim = q.shape
    scale = head_dim**-0.5
    extension = native.on_cpu()
    if extension is not None and length == 1 and q.dtype == mx.float32 and not isinstance(mask, str):
        seen = None if mask is None else mx.broadcast_to(mask, (batch, 1, 1, k.shape[2])).reshape(batch, -1)
        one: mx.array
        if isinstance(k, EightBit) and isinstance(v, EightBit):
            one = extension.attend(q, k.codes, v.codes, scale, seen, k.scales, v.scales)
        else:
            one = extension.attend(q, k, v, scale, seen)
        return one
    if isinstance(k, EightBit):
        k = k.values().astype(q.dtype)
    if isinstance(v, EightBit):
        v = v.values().astype(q.dtype)
    if extension is not None and mask is None and q.dtype == k.dtype == mx.float32:
        many: mx.array = extension.attend_many(q, k, v, scale)
        return many
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(batch, length, -1)
