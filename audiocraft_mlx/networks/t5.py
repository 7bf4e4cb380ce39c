"""The encoder of T5: tokens of a prompt → hidden states.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (v1.0: ReLU, no gate); equal to
`transformers.T5EncoderModel`. Always in float32: T5's activations overflow float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.configs import (
    HEADS,
    HIDDEN_WIDTH,
    LAYERS,
    NORM_EPS,
    VOCABULARY,
    WIDTH,
    ConfigSection,
    Range,
)
from audiocraft_mlx.networks.weights import Weights, concat_tensors, rename
from audiocraft_mlx.ops.linear import linear

HEAD_DIM = Range(1, 4096)
BUCKETS = Range(4, 4096)
MAX_DISTANCE = Range(1, 2**20)


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    dim: int
    head_dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_buckets: int
    max_distance: int
    norm_eps: float

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> T5Config:
        """Read a `config.json` of model type `t5`; absent keys take `transformers.T5Config`'s defaults."""
        config.require("model_type", "t5", "t5")
        config.require("feed_forward_proj", "relu", "relu")
        num_buckets, max_distance = read_buckets(
            config, "relative_attention_num_buckets", "relative_attention_max_distance"
        )
        return cls(
            vocab_size=config.integer("vocab_size", 32128, VOCABULARY),
            dim=config.integer("d_model", 512, WIDTH),
            head_dim=config.integer("d_kv", 64, HEAD_DIM),
            hidden_dim=config.integer("d_ff", 2048, HIDDEN_WIDTH),
            num_layers=config.integer("num_layers", 6, LAYERS),
            num_heads=config.integer("num_heads", 8, HEADS),
            num_buckets=num_buckets,
            max_distance=max_distance,
            norm_eps=config.number("layer_norm_epsilon", 1e-6, NORM_EPS),
        )


def read_buckets(config: ConfigSection, num_buckets_key: str, max_distance_key: str) -> tuple[int, int]:
    """The number of buckets and the maximum distance, if they fit together, else `CheckpointError`."""
    num_buckets = config.integer(num_buckets_key, 32, BUCKETS)
    max_distance = config.integer(max_distance_key, 128, MAX_DISTANCE)
    if max_distance <= num_buckets // 4:
        raise config.error(max_distance_key, f"is too small for {num_buckets} buckets")
    return num_buckets, max_distance


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query, key) pair's distance, int32 `[length, length]`, bidirectional.

    As transformers' `T5Attention._relative_position_bucket`: half of the buckets for each sign; of these,
    half for small distances one by one, the rest spaced logarithmically up to `max_distance`.
    """
    positions = np.arange(length)
    distance = positions[None, :] - positions[:, None]
    per_sign = num_buckets // 2
    exact = per_sign // 2
    size = np.abs(distance)
    # float32 as in transformers, so that the boundaries between buckets are at the same distances.
    scaled = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    spaced = exact + (scaled / np.float32(math.log(max_distance / exact)) * (per_sign - exact)).astype(
        np.int32
    )
    bucket = np.where(size < exact, size, np.minimum(spaced, per_sign - 1))
    return (bucket + np.where(distance > 0, per_sign, 0)).astype(np.int32)


class Attention(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.dim, 3 * inner, bias=False)
        self.out_proj = nn.Linear(inner, config.dim, bias=False)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        batch, length, _ = x.shape
        qkv = linear(self.qkv_proj, x).reshape(batch, length, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        # T5's weights include the factor 1/sqrt(head_dim).
        out = mx.fast.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=1.0, mask=bias)
        return linear(self.out_proj, out.transpose(0, 2, 1, 3).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ff_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ff_in = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.ff_out = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x), bias)
        return linear(self.ff_out, nn.relu(linear(self.ff_in, self.ff_norm(x))), residual=x)


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.relative_bias = nn.Embedding(config.num_buckets, config.num_heads)
        self.layers = [Block(config) for _ in range(config.num_layers)]
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)

    def __call__(self, tokens: mx.array, mask: mx.array) -> mx.array:
        """Hidden states float `[B, L, dim]` of `tokens` int `[B, L]`; `mask` bool is False on padding."""
        config = self.config
        buckets = relative_position_buckets(tokens.shape[1], config.num_buckets, config.max_distance)
        bias = self.relative_bias(mx.array(buckets)).transpose(2, 0, 1)[None]
        bias = mx.where(mask[:, None, None, :], bias, mx.finfo(bias.dtype).min)
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)

    @staticmethod
    def is_encoder_weight(name: str) -> bool:
        """Whether a tensor of a full T5 checkpoint (encoder, decoder, head) belongs to the encoder."""
        return name == "shared.weight" or name.startswith("encoder.")

    @staticmethod
    def sanitize(weights: Weights) -> Weights:
        """Parameters from transformers' names; q, k and v are packed into one matrix."""
        # Two names of the same embedding; a file has one or both.
        tied = weights.pop("encoder.embed_tokens.weight", None)
        if tied is not None:
            weights.setdefault("shared.weight", tied)
        for q in [name for name in weights if name.endswith(".SelfAttention.q.weight")]:
            concat_tensors(
                weights, [q.replace(".q.", f".{part}.") for part in "qkv"], q.replace(".q.", ".qkv.")
            )
        return rename(
            weights,
            [
                (r"^shared\.", "embed."),
                (r"^encoder\.final_layer_norm\.", "norm."),
                (r"^encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.", "relative_bias."),
                (r"^encoder\.block\.(\d+)\.layer\.", r"layers.\1."),
                (r"(layers\.\d+)\.0\.layer_norm\.", r"\1.attention_norm."),
                (r"(layers\.\d+)\.0\.SelfAttention\.qkv\.", r"\1.attention.qkv_proj."),
                (r"(layers\.\d+)\.0\.SelfAttention\.o\.", r"\1.attention.out_proj."),
                (r"(layers\.\d+)\.1\.layer_norm\.", r"\1.ff_norm."),
                (r"(layers\.\d+)\.1\.DenseReluDense\.wi\.", r"\1.ff_in."),
                (r"(layers\.\d+)\.1\.DenseReluDense\.wo\.", r"\1.ff_out."),
            ],
        )
