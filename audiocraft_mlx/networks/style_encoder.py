"""The style encoder: features of an excerpt → a few tokens that say how it sounds, and not what it is.

Rouard et al. 2024, "Audio Conditioning for Music Generation via Discrete Bottleneck Features"; equal to what
audiocraft's `StyleConditioner` (`modules/conditioners.py`) has behind its feature extractor.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.networks.lm import sinusoidal_embedding
from audiocraft_mlx.networks.rvq import rvq_encode
from audiocraft_mlx.networks.weights import Weights, concat_tensors, rename
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.linear import linear

# What `transformer_scale` stands for: dimension, heads, layers.
SCALES = {"xsmall": (256, 8, 4), "default": (512, 8, 8), "large": (1024, 16, 24)}


@dataclass(frozen=True)
class StyleConfig:
    feature_dim: int
    output_dim: int
    dim: int
    num_heads: int
    num_layers: int
    num_codebooks: int
    cardinality: int
    ds_factor: int
    """Of so many frames one becomes a token."""
    middle_excerpt: bool
    """Excerpts are taken from the middle of the audio, not drawn."""

    @classmethod
    def from_audiocraft(cls, config: ConfigSection, feature_dim: int) -> StyleConfig:
        """Read `xp.cfg` of a release file; absent keys take the defaults of `StyleConditioner`.

        `feature_dim` is the dimension of the feature extractor, which the file doesn't say.
        """
        condition = config.section("conditioners").section("self_wav")
        condition.require("model", "style")
        style = condition.section("style")
        style.require("model_name", "mert")
        style.require("batch_norm", True, True)
        scale = style.string("transformer_scale", "default")
        if scale not in SCALES:
            raise style.error("transformer_scale", f"is {scale!r}; only {', '.join(SCALES)} are supported")
        dim, num_heads, num_layers = SCALES[scale]
        return cls(
            feature_dim=feature_dim,
            output_dim=config.section("transformer_lm").integer("dim"),
            dim=dim,
            num_heads=num_heads,
            num_layers=num_layers,
            num_codebooks=style.integer("n_q_out", 6),
            cardinality=style.integer("bins", 1024),
            ds_factor=style.integer("ds_factor", 15),
            middle_excerpt=style.boolean("use_middle_of_segment", False),
        )


class SelfAttention(nn.Module):
    """`x` plus what its frames find in each other; the norm in front is the block's."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)

    def __call__(self, x: mx.array, norm: nn.LayerNorm) -> mx.array:
        batch, length, _ = x.shape
        qkv = linear(self.qkv_proj, x, norm=norm).reshape(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        return linear(self.out_proj, attention(q, k, v, None), residual=x)


class Block(nn.Module):
    """Pre-norm: attention and feed-forward, each added to its input."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.self_attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.linear1 = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.linear2 = nn.Linear(4 * config.dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.self_attn(x, self.norm1)
        return linear(self.linear2, linear(self.linear1, x, norm=self.norm2, gelu=True), residual=x)


class Transformer(nn.Module):
    """Every frame looks at all frames; `[B, F, dim]` → the same shape."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.layers = [Block(config) for _ in range(config.num_layers)]

    def __call__(self, x: mx.array) -> mx.array:
        _, length, dim = x.shape
        x = x + sinusoidal_embedding(mx.arange(length), dim)
        for layer in self.layers:
            x = layer(x)
        return x


class ResidualVectorQuantizer(nn.Module):
    """A residual quantizer: each codebook takes the nearest of its entries to what those before left over."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.codebooks = mx.zeros((config.num_codebooks, config.cardinality, config.dim))

    def __call__(self, latents: mx.array, num_codebooks: int) -> tuple[mx.array, mx.array]:
        """`latents` `[B, F, dim]` as the first codebooks have them, and their codes int `[B, K, F]`."""
        codes, residual = rvq_encode(latents, self.codebooks[:num_codebooks])
        return latents - residual, codes


class StyleEncoder(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.feature_dim, config.dim)
        self.transformer = Transformer(config)
        self.batch_norm = nn.BatchNorm(config.dim, affine=False)
        self.bottleneck = ResidualVectorQuantizer(config)
        self.output_proj = nn.Linear(config.dim, config.output_dim)

    def __call__(self, features: mx.array, num_codebooks: int, ds_factor: int) -> mx.array:
        """Tokens `[B, ceil(F / ds_factor), output_dim]` of `features` `[B, F, feature_dim]`.

        The fewer of its codebooks are used, the less of the excerpt comes through.
        """
        latents = self.batch_norm(self.transformer(self.embed(features)))
        # The quantizer takes each frame by itself, so that only those in use need it.
        tokens, _ = self.bottleneck(latents[:, ::ds_factor], num_codebooks)
        return self.output_proj(tokens)

    def sanitize(self, weights: Weights) -> Weights:
        """From upstream's names, without the conditioner's prefix, to ours."""
        weights = rename(
            weights,
            [
                (r"\.self_attn\.in_proj_weight$", ".self_attn.qkv_proj.weight"),
                (r"^rvq\.vq\.layers\.(\d+)\._codebook\.", r"bottleneck.\1."),
            ],
        )
        count = self.config.num_codebooks
        # Training's statistics.
        weights.pop("batch_norm.num_batches_tracked", None)
        for k in range(count):
            for statistic in ("inited", "cluster_size", "embed_avg"):
                weights.pop(f"bottleneck.{k}.{statistic}", None)
        concat_tensors(weights, [f"bottleneck.{k}.embed" for k in range(count)], "bottleneck.codebooks")
        if "bottleneck.codebooks" in weights:
            codebooks = weights["bottleneck.codebooks"]
            weights["bottleneck.codebooks"] = codebooks.reshape(count, -1, codebooks.shape[-1])
        return weights
