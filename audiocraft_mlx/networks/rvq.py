"""Residual vector quantization: each codebook quantizes the residual of those before it.

Zeghidour et al. 2021, "SoundStream: An End-to-End Neural Audio Codec", section III.C; audiocraft's
`quantization/vq.py` and `core_vq.py`, at inference.
"""

from __future__ import annotations

import re

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.networks.weights import Weights, check_tensor, concat_tensors


class ResidualVectorQuantizer(nn.Module):
    def __init__(self, num_codebooks: int, cardinality: int, dim: int) -> None:
        super().__init__()
        self.codebooks = mx.zeros((num_codebooks, cardinality, dim))

    def __call__(self, latents: mx.array, num_codebooks: int) -> mx.array:
        """`latents` `[B, F, dim]` quantized with the first `num_codebooks`: `[B, F, dim]`."""
        return latents - self._quantize(latents, num_codebooks)[1]

    def encode(self, latents: mx.array, num_codebooks: int) -> mx.array:
        """Codes int32 `[B, num_codebooks, F]` of `latents` `[B, F, dim]`: the nearest entries."""
        return self._quantize(latents, num_codebooks)[0]

    def decode(self, codes: mx.array) -> mx.array:
        """Latents `[B, F, dim]` of `codes` int `[B, K, F]`: the sum of their entries."""
        latents = self.codebooks[0][codes[:, 0]]
        for k in range(1, codes.shape[1]):
            latents = latents + self.codebooks[k][codes[:, k]]
        return latents

    def _quantize(self, latents: mx.array, num_codebooks: int) -> tuple[mx.array, mx.array]:
        """Codes int32 `[B, num_codebooks, F]`, and the last residual `[B, F, dim]`."""
        residual, codes = latents, []
        for codebook in self.codebooks[:num_codebooks]:
            # |x - e|² without |x|², which is the same for all entries.
            distance = (codebook * codebook).sum(axis=-1) - 2 * (residual @ codebook.T)
            nearest = mx.argmin(distance, axis=-1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
        return mx.stack(codes, axis=1).astype(mx.int32), residual


def pack_codebooks(weights: Weights, prefix: str, num_codebooks: int) -> None:
    """Replace `{prefix}.layers.{k}.codebook.embed` by one `{prefix}.codebooks` `[K, cardinality, dim]`.

    The statistics that training keeps for each codebook are dropped.
    """
    statistics = re.compile(rf"{re.escape(prefix)}\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)")
    for name in [name for name in weights if statistics.fullmatch(name)]:
        del weights[name]
    packed = f"{prefix}.codebooks"
    names = [f"{prefix}.layers.{k}.codebook.embed" for k in range(num_codebooks)]
    for name in names:
        if name in weights:
            check_tensor(weights, name, [None, None])
    concat_tensors(weights, names, packed)
    if packed in weights:
        weights[packed] = weights[packed].reshape(num_codebooks, -1, weights[packed].shape[-1])
