"""Residual vector quantization: each codebook takes what those before it left over."""

from __future__ import annotations

import mlx.core as mx


def rvq_encode(latents: mx.array, codebooks: mx.array) -> tuple[mx.array, mx.array]:
    """Codes int32 `[B, K, F]` of `latents` `[B, F, dim]`, and what they leave over of them.

    They are the nearest entries of `codebooks` `[K, cardinality, dim]`.
    """
    residual, codes = latents, []
    for codebook in codebooks:
        # |x - e|² without |x|², which is the same for all entries.
        distance = (codebook * codebook).sum(axis=-1) - 2 * (residual @ codebook.T)
        nearest = mx.argmin(distance, axis=-1)
        residual = residual - codebook[nearest]
        codes.append(nearest)
    return mx.stack(codes, axis=1).astype(mx.int32), residual
