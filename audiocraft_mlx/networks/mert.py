"""MERT: audio → music features, 75 frames per second. Convolutions, then a transformer.

Li et al. 2023, "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training"; equal to
the last hidden state of `m-a-p/MERT-v1-95M`, whose architecture is that of transformers' `HubertModel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.configs import (
    HEADS,
    HIDDEN_WIDTH,
    KERNEL,
    LAYERS,
    NORM_EPS,
    SAMPLE_RATE,
    WIDTH,
    ConfigSection,
    Range,
)
from audiocraft_mlx.networks.weights import Weights, check_tensor, concat_tensors, fold_weight_norm, rename
from audiocraft_mlx.ops.activations import gelu
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.convolution import conv1d
from audiocraft_mlx.ops.linear import linear

MAX_CONVS = 16
FRAME_RATE = Range(1, 1000)
MAX_RECEPTIVE_SECONDS = 1


@dataclass(frozen=True)
class MERTConfig:
    sample_rate: int
    conv_dims: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool
    position_kernel: int
    position_groups: int
    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    norm_eps: float

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame is computed from, the minimum length of audio."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def checked(
        self,
        config: ConfigSection,
        dims_key: str = "conv_dims",
        strides_key: str = "conv_strides",
        kernels_key: str = "conv_kernels",
        heads_key: str = "num_heads",
        groups_key: str = "position_groups",
    ) -> MERTConfig:
        """This configuration, if its numbers fit together, else `CheckpointError`.

        `config` is where it was read from, and has the numbers under these keys.
        """
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise config.error(dims_key, f"doesn't have as many entries as {kernels_key} and {strides_key}")
        for key, value in ((heads_key, self.num_heads), (groups_key, self.position_groups)):
            if self.dim % value:
                raise config.error(key, f"is {value}, which doesn't divide the dimension {self.dim}")
        frame_rate = self.sample_rate / self.hop_length
        if frame_rate not in FRAME_RATE:
            raise config.error(strides_key, f"gives {frame_rate:g} frames per second, not {FRAME_RATE}")
        if self.receptive_field > MAX_RECEPTIVE_SECONDS * self.sample_rate:
            raise config.error(kernels_key, f"gives frames of more than {MAX_RECEPTIVE_SECONDS} s of audio")
        return self

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> MERTConfig:
        """Read a `config.json` of model type `mert_model`; absent keys take its `MERTConfig`'s defaults."""
        config.require("model_type", "mert_model")
        for key, supported in (
            ("feature_extractor_cqt", False),
            ("deepnorm", False),
            ("do_stable_layer_norm", False),
            ("conv_pos_batch_norm", False),
            ("feat_extract_norm", "group"),
            ("feat_proj_layer_norm", True),
            ("feat_extract_activation", "gelu"),
            ("hidden_act", "gelu"),
        ):
            config.require(key, supported, supported)
        return cls(
            sample_rate=config.integer("sample_rate", 24000, SAMPLE_RATE),
            conv_dims=config.integers("conv_dim", (512,) * 7, WIDTH, MAX_CONVS),
            conv_kernels=config.integers("conv_kernel", (10, 3, 3, 3, 3, 2, 2), KERNEL, MAX_CONVS),
            conv_strides=config.integers("conv_stride", (5, 2, 2, 2, 2, 2, 2), KERNEL, MAX_CONVS),
            conv_bias=config.boolean("conv_bias", False),
            position_kernel=config.integer("num_conv_pos_embeddings", 128, KERNEL),
            position_groups=config.integer("num_conv_pos_embedding_groups", 16, WIDTH),
            dim=config.integer("hidden_size", 768, WIDTH),
            hidden_dim=config.integer("intermediate_size", 3072, HIDDEN_WIDTH),
            num_layers=config.integer("num_hidden_layers", 12, LAYERS),
            num_heads=config.integer("num_attention_heads", 12, HEADS),
            norm_eps=config.number("layer_norm_eps", 1e-5, NORM_EPS),
        ).checked(
            config,
            dims_key="conv_dim",
            strides_key="conv_stride",
            kernels_key="conv_kernel",
            heads_key="num_attention_heads",
            groups_key="num_conv_pos_embedding_groups",
        )


class ConvLayer(nn.Module):
    """A strided convolution without padding, each channel normalized over time if `normalize`, GELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, bias: bool, normalize: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, bias=bias)
        self.stride = stride
        # One channel per group: MLX's two grouping modes then both equal torch's, and the default is faster.
        self.norm = nn.GroupNorm(outputs, outputs) if normalize else None

    def __call__(self, x: mx.array) -> mx.array:
        x = conv1d(x, self.conv.weight, self.conv.get("bias"), self.stride, 1)
        return gelu(x if self.norm is None else self.norm(x))


class PositionalConv(nn.Module):
    """Relative positions, from a wide grouped convolution over the frames."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        kernel = config.position_kernel
        self.conv = nn.Conv1d(
            config.dim, config.dim, kernel, padding=kernel // 2, groups=config.position_groups
        )

    def __call__(self, x: mx.array) -> mx.array:
        # An even kernel gives one frame too many.
        return gelu(self.conv(x)[:, : x.shape[1]])


class Attention(nn.Module):
    """`x + attention(x)`, `[B, frames, dim]`."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.dim, 3 * config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        qkv = linear(self.qkv_proj, x).reshape(batch, length, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        return linear(self.out_proj, attention(qkv[0], qkv[1], qkv[2], None), residual=x)


class Block(nn.Module):
    """Post-norm: self-attention and feed-forward, each with a residual connection, then normalized."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.ff_in = nn.Linear(config.dim, config.hidden_dim)
        self.ff_out = nn.Linear(config.hidden_dim, config.dim)
        self.ff_norm = nn.LayerNorm(config.dim, config.norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.attention_norm(self.attention(x))
        return self.ff_norm(linear(self.ff_out, linear(self.ff_in, x, gelu=True), residual=x))


class MERT(nn.Module):
    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (1, *config.conv_dims[:-1])
        self.convs = [
            ConvLayer(*shape, bias=config.conv_bias, normalize=index == 0)
            for index, shape in enumerate(
                zip(inputs, config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
            )
        ]
        self.projection_norm = nn.LayerNorm(config.conv_dims[-1], config.norm_eps)
        self.projection = nn.Linear(config.conv_dims[-1], config.dim)
        self.positions = PositionalConv(config)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.layers = [Block(config) for _ in range(config.num_layers)]

    def __call__(self, audio: mx.array) -> mx.array:
        """Features `[B, frames, dim]` of mono `audio` float `[B, T]` at `config.sample_rate`.

        `T >= receptive_field`, and `frames = (T - receptive_field) // hop_length + 1`.
        """
        x = audio[..., None]
        for conv in self.convs:
            x = conv(x)
        x = linear(self.projection, x, norm=self.projection_norm)
        x = self.norm(x + self.positions(x))
        for layer in self.layers:
            x = layer(x)
        return x

    @staticmethod
    def sanitize(weights: Weights) -> Weights:
        """Parameters from transformers' names and layouts; weight norm is folded."""
        weights.pop("masked_spec_embed", None)  # used in training only
        weights = rename(
            weights,
            [
                (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"convs.\1.norm."),
                (r"^feature_extractor\.conv_layers\.", "convs."),
                (r"^feature_projection\.layer_norm\.", "projection_norm."),
                (r"^feature_projection\.projection\.", "projection."),
                (r"^encoder\.pos_conv_embed\.conv\.", "positions.conv."),
                (r"^encoder\.layer_norm\.", "norm."),
                (r"^encoder\.layers\.", "layers."),
                (r"(layers\.\d+)\.layer_norm\.", r"\1.attention_norm."),
                (r"(layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.ff_in."),
                (r"(layers\.\d+)\.feed_forward\.output_dense\.", r"\1.ff_out."),
                (r"(layers\.\d+)\.final_layer_norm\.", r"\1.ff_norm."),
            ],
        )
        fold_weight_norm(weights, dim=2)  # one gain for each tap of the kernel
        for name in [name for name in weights if name.endswith(".conv.weight")]:
            check_tensor(weights, name, [None] * 3)
            weights[name] = weights[name].transpose(0, 2, 1)  # torch: [out, in, k]; MLX: [out, k, in]
        for name in [name for name in weights if ".attention.q_proj." in name]:
            concat_tensors(
                weights, [name.replace(".q_", f".{part}_") for part in "qkv"], name.replace(".q_", ".qkv_")
            )
        return weights
