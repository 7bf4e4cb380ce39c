"""Position embeddings that several networks share."""

from __future__ import annotations

import mlx.core as mx


def sinusoidal_embedding(positions: mx.array, dim: int) -> mx.array:
    """`[cos, sin]` of `positions` `[...]` → float32 `[..., dim]` (audiocraft's `create_sin_embedding`)."""
    half = dim // 2
    phase = positions[..., None].astype(mx.float32) / 10000.0 ** (
        mx.arange(half, dtype=mx.float32) / (half - 1)
    )
    return mx.concatenate([mx.cos(phase), mx.sin(phase)], axis=-1)
