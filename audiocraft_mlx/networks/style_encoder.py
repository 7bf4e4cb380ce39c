"""The style encoder of MusicGen-Style: MERT features of an excerpt → a few style tokens.

A transformer, then a residual quantizer as an information bottleneck, then downsampling. Rouard et al. 2024,
"Audio Conditioning for Music Generation via Discrete Bottleneck Features"; equal to what follows the feature
extractor in audiocraft's `StyleConditioner` (`modules/conditioners.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.configs import CARDINALITY, CODEBOOKS, DS_FACTOR, WIDTH, ConfigSection, shown
from audiocraft_mlx.networks.positions import sinusoidal_embedding
from audiocraft_mlx.networks.rvq import ResidualVectorQuantizer, pack_codebooks
from audiocraft_mlx.networks.weights import Weights, rename
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.linear import linear

# Dimension, heads, layers by `transformer_scale`.
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
    """Frames per token: every `ds_factor`-th frame becomes one."""
    middle_excerpt: bool
    """Excerpts are taken from the middle of the audio, not at random."""

    @classmethod
    def from_audiocraft(cls, config: ConfigSection, feature_dim: int) -> StyleConfig:
        """Read `xp.cfg` of a `state_dict.bin`; absent keys take the defaults of `StyleConditioner`.

        `feature_dim` is the dimension of the feature extractor, which is not in the file.
        """
        condition = config.section("conditioners").section("self_wav")
        condition.require("model", "style")
        style = condition.section("style")
        style.require("model_name", "mert")
        style.require("batch_norm", True, True)
        scale = style.string("transformer_scale", "default")
        if scale not in SCALES:
            raise style.error(
                "transformer_scale", f"is {shown(scale)}; only {', '.join(SCALES)} are supported"
            )
        dim, num_heads, num_layers = SCALES[scale]
        return cls(
            feature_dim=feature_dim,
            output_dim=config.section("transformer_lm").integer("dim", within=WIDTH),
            dim=dim,
            num_heads=num_heads,
            num_layers=num_layers,
            num_codebooks=style.integer("n_q_out", 6, CODEBOOKS),
            cardinality=style.integer("bins", 1024, CARDINALITY),
            ds_factor=style.integer("ds_factor", 15, DS_FACTOR),
            middle_excerpt=style.boolean("use_middle_of_segment", False),
        )


class SelfAttention(nn.Module):
    """`x + attention(norm(x))`, `[B, F, dim]`; the norm is the block's."""

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
    """Pre-norm: self-attention and feed-forward, each with a residual connection."""

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
    """Bidirectional, with sinusoidal positions: `[B, F, dim]` → the same shape."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.layers = [Block(config) for _ in range(config.num_layers)]

    def __call__(self, x: mx.array) -> mx.array:
        _, length, dim = x.shape
        x = x + sinusoidal_embedding(mx.arange(length), dim)
        for layer in self.layers:
            x = layer(x)
        return x


class StyleEncoder(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.feature_dim, config.dim)
        self.transformer = Transformer(config)
        self.batch_norm = nn.BatchNorm(config.dim, affine=False)
        self.bottleneck = ResidualVectorQuantizer(config.num_codebooks, config.cardinality, config.dim)
        self.output_proj = nn.Linear(config.dim, config.output_dim)

    def __call__(self, features: mx.array, num_codebooks: int, ds_factor: int) -> mx.array:
        """Tokens float `[B, ceil(F / ds_factor), output_dim]` of `features` float `[B, F, feature_dim]`.

        The fewer codebooks, the less information about the excerpt is in the tokens.
        """
        latents = self.batch_norm(self.transformer(self.embed(features)))
        # The quantizer works on each frame alone, so downsampling (after it in audiocraft) can come first.
        return self.output_proj(self.bottleneck(latents[:, ::ds_factor], num_codebooks))

    def sanitize(self, weights: Weights) -> Weights:
        """Parameters from audiocraft's names, without the conditioner's prefix."""
        weights = rename(
            weights,
            [
                (r"\.self_attn\.in_proj_weight$", ".self_attn.qkv_proj.weight"),
                (r"^rvq\.vq\.", "bottleneck."),
                (r"\._codebook\.", ".codebook."),
            ],
        )
        weights.pop("batch_norm.num_batches_tracked", None)  # used in training only
        pack_codebooks(weights, "bottleneck", self.config.num_codebooks)
        return weights
