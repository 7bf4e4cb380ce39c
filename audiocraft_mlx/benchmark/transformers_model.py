"""Our networks as transformers' configuration and state dict: the inverse of their `sanitize`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.encodec import ConvTranspose1d, Encodec, InterleavedStereoCodec
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.networks.weights import Weights, flat_parameters, rename


@dataclass(frozen=True)
class TransformersModel:
    """What transformers needs to build a model."""

    decoder: dict[str, Any]
    text_encoder: dict[str, Any]
    audio_encoder: dict[str, Any]
    """Arguments of `MusicgenDecoderConfig`, `T5Config` and `EncodecConfig`."""
    weights: Weights
    """The state dict of `MusicgenForConditionalGeneration`."""


def to_transformers(bundle: ModelBundle) -> TransformersModel:
    """Convert a model as `load.read` returns it: its weights not yet reordered for speed.

    Raises `UsageError` for a model that transformers can't run.
    """
    lm, t5, codec = bundle.lm, bundle.text_conditioner.t5, bundle.mono_codec
    projection = bundle.text_conditioner.output_proj
    if quantization_of(lm) is not None:
        raise UsageError(
            "--compare needs a model that isn't quantized; give the model that it was converted from"
        )
    channels = 2 if isinstance(bundle.codec, InterleavedStereoCodec) else 1
    delays = tuple(k // channels for k in range(lm.config.num_codebooks))
    if lm.config.delays != delays or lm.config.rotary_positions or lm.config.bias_attention:
        raise UsageError(
            "--compare needs a model with the released architecture, the only one that transformers can run"
        )
    parts = {
        "decoder": _lm_weights(lm),
        "text_encoder": _t5_weights(t5),
        "audio_encoder": _codec_weights(codec),
    }
    if projection is not None:
        parts["enc_to_dec_proj"] = flat_parameters(projection)
    return TransformersModel(
        decoder={
            "vocab_size": lm.config.cardinality,
            "pad_token_id": lm.special_token_id,
            "bos_token_id": lm.special_token_id,
            "num_hidden_layers": lm.config.num_layers,
            "ffn_dim": lm.config.hidden_dim,
            "num_attention_heads": lm.config.num_heads,
            "hidden_size": lm.config.dim,
            "num_codebooks": lm.config.num_codebooks,
            "audio_channels": channels,
        },
        text_encoder={
            "vocab_size": t5.config.vocab_size,
            "d_model": t5.config.dim,
            "d_kv": t5.config.head_dim,
            "d_ff": t5.config.hidden_dim,
            "num_layers": t5.config.num_layers,
            "num_heads": t5.config.num_heads,
            "relative_attention_num_buckets": t5.config.num_buckets,
            "relative_attention_max_distance": t5.config.max_distance,
            "layer_norm_epsilon": t5.config.norm_eps,
        },
        audio_encoder={
            "sampling_rate": codec.config.sample_rate,
            "audio_channels": codec.config.channels,
            "hidden_size": codec.config.dimension,
            "num_filters": codec.config.num_filters,
            "num_residual_layers": codec.config.num_residual_layers,
            "upsampling_ratios": list(codec.config.ratios),
            "kernel_size": codec.config.kernel_size,
            "last_kernel_size": codec.config.last_kernel_size,
            "residual_kernel_size": codec.config.residual_kernel_size,
            "dilation_growth_rate": codec.config.dilation_base,
            "pad_mode": codec.config.pad_mode,
            "compress": codec.config.compress,
            "num_lstm_layers": codec.config.num_lstm_layers,
            "codebook_size": codec.config.cardinality,
            "use_causal_conv": False,
            "use_conv_shortcut": False,
            "target_bandwidths": [_bandwidth(codec)],
        },
        weights={
            f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()
        },
    )


def _bandwidth(codec: Encodec) -> float:
    """Of all codebooks in kbit/s, and of half a codebook more, so that rounding doesn't drop one."""
    bits = (codec.config.cardinality - 1).bit_length()
    return (codec.config.num_codebooks + 0.5) * codec.frame_rate * bits / 1000


def _lm_weights(lm: LM) -> Weights:
    weights = flat_parameters(lm)
    for ours, theirs in (("embed", "model.decoder.embed_tokens"), ("lm_heads", "lm_heads")):
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                parts = mx.split(weights.pop(f"{ours}.{kind}"), lm.config.num_codebooks)
                weights |= {f"{theirs}.{k}.{kind}": part for k, part in enumerate(parts)}
    _split_packed(weights)
    return rename(
        weights,
        [
            (r"^(layers|out_norm)\.", r"model.decoder.\1."),
            (r"\.out_norm\.", ".layer_norm."),
            (r"\.norm1\.", ".self_attn_layer_norm."),
            (r"\.norm_cross\.", ".encoder_attn_layer_norm."),
            (r"\.norm2\.", ".final_layer_norm."),
            (r"\.cross_attn\.", ".encoder_attn."),
            (r"\.linear([12])\.", r".fc\1."),
        ],
    )


def _t5_weights(t5: T5Encoder) -> Weights:
    weights = flat_parameters(t5)
    _split_packed(weights)
    weights = rename(
        weights,
        [
            (r"^embed\.", "shared."),
            (r"^norm\.", "encoder.final_layer_norm."),
            (r"^relative_bias\.", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."),
            (r"^layers\.(\d+)\.attention", r"encoder.block.\1.layer.0.attention"),
            (r"^layers\.(\d+)\.ff", r"encoder.block.\1.layer.1.ff"),
            (r"\.(attention|ff)_norm\.", ".layer_norm."),
            (r"\.attention\.([qkv]|o)(ut)?_proj\.", r".SelfAttention.\1."),
            (r"\.ff_in\.", ".DenseReluDense.wi."),
            (r"\.ff_out\.", ".DenseReluDense.wo."),
        ],
    )
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    return weights


def _split_packed(weights: Weights) -> None:
    """Split the packed attention projections (`qkv_proj`, `kv_proj`) into one for each of q, k and v."""
    for name in list(weights):
        if packed := re.search(r"\.(qkv|kv)_proj\.", name):
            letters = packed.group(1)
            for letter, value in zip(letters, mx.split(weights.pop(name), len(letters)), strict=True):
                weights[name.replace(f".{letters}_proj.", f".{letter}_proj.")] = value


def _codec_weights(codec: Encodec) -> Weights:
    weights = flat_parameters(codec)
    for k, codebook in enumerate(weights.pop("quantizer.codebooks")):
        prefix = f"quantizer.layers.{k}.codebook."
        weights[f"{prefix}embed"] = codebook
        # Statistics of the training, not used in inference.
        weights[f"{prefix}embed_avg"] = codebook
        weights[f"{prefix}cluster_size"] = mx.zeros(codebook.shape[0])
        weights[f"{prefix}inited"] = mx.ones(1)
    for name in [name for name in weights if re.search(r"\.lstm\.\d+\.bias$", name)]:
        # torch's LSTM has two biases, which are only ever added.
        weights[name.replace(".bias", ".bias_hh")] = mx.zeros_like(weights[name])
    transposed = {
        f"{path}.conv.weight" for path, layer in codec.named_modules() if isinstance(layer, ConvTranspose1d)
    }
    for name in [name for name in weights if name.endswith(".conv.weight")]:
        weight = weights.pop(name).transpose((2, 0, 1) if name in transposed else (0, 2, 1))
        original = name.replace(".weight", ".parametrizations.weight.original")
        weights[f"{original}0"] = mx.sqrt((weight * weight).sum(axis=(1, 2), keepdims=True))
        weights[f"{original}1"] = weight
    return rename(
        weights,
        [
            (r"\.lstm\.(\d+)\.Wx$", r".lstm.weight_ih_l\1"),
            (r"\.lstm\.(\d+)\.Wh$", r".lstm.weight_hh_l\1"),
            (r"\.lstm\.(\d+)\.bias$", r".lstm.bias_ih_l\1"),
            (r"\.lstm\.(\d+)\.bias_hh$", r".lstm.bias_hh_l\1"),
        ],
    )
