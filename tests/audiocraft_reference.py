"""Write a model in transformers' format as an audiocraft release: the same weights, other names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np

from .torch_files import write_torch_file

LM_CONFIG = """
lm_model: transformer_lm
transformer_lm:
  {{dim: {hidden_size}, num_heads: {num_attention_heads}, num_layers: {num_hidden_layers},
    hidden_scale: {scale}, n_q: {num_codebooks}, card: {vocab_size}, norm_first: true,
    activation: gelu, causal: true, bias_attn: false, bias_ff: false, bias_proj: false}}
codebooks_pattern: {{modeling: delay, delay: {{delays: {delays}}}}}
conditioners: {{description: {{model: t5, t5: {{name: {t5}}}}}{self_wav}}}
fuser: {{cross: {cross}, sum: [], prepend: {prepend}, input_interpolate: []}}
dataset: {{segment_duration: {seconds}}}
"""
MELODY = {
    "self_wav": ", self_wav: {model: chroma_stem, chroma_stem:"
    " {sample_rate: 32000, n_chroma: 12, radix2_exp: 14, argmax: true}}",
    "cross": "[]",
    "prepend": "[self_wav, description]",
}
TEXT_ONLY = {"self_wav": "", "cross": "[description]", "prepend": "[]"}
CODEC_CONFIG = """
compression_model: encodec
encodec:
  {{autoencoder: seanet, quantizer: rvq, sample_rate: {sampling_rate}, channels: {audio_channels},
    causal: false, renormalize: false}}
seanet:
  {{dimension: {hidden_size}, n_filters: {num_filters}, n_residual_layers: {num_residual_layers},
    ratios: {upsampling_ratios}, kernel_size: {kernel_size}, last_kernel_size: {last_kernel_size},
    residual_kernel_size: {residual_kernel_size}, dilation_base: {dilation_growth_rate}, pad_mode: {pad_mode},
    compress: {compress}, lstm: {num_lstm_layers}, true_skip: true, decoder: {{final_activation: null}}}}
rvq: {{dimension: {hidden_size}, n_q: {num_codebooks}, bins: {codebook_size}}}
"""


def write_audiocraft_release(
    model: Path, release: Path, text_encoder: Path, t5_name: str, seconds: float
) -> None:
    """Write the folders `release` (state_dict.bin, …) and `text_encoder`, its T5."""
    config = json.loads((model / "config.json").read_text())
    weights = {name: np.array(value) for name, value in mx.load(str(model / "model.safetensors")).items()}
    decoder, codec = config["decoder"], config["audio_encoder"]
    release.mkdir()
    lm_config = LM_CONFIG.format(
        **decoder,
        scale=decoder["ffn_dim"] / decoder["hidden_size"],
        delays=list(range(decoder["num_codebooks"])),
        t5=t5_name,
        seconds=seconds,
        **(MELODY if config["model_type"] == "musicgen_melody" else TEXT_ONLY),
    )
    write_torch_file(release / "state_dict.bin", {"xp.cfg": lm_config, "best_state": lm_weights(weights)})
    codec_config = CODEC_CONFIG.format(**codec, num_codebooks=decoder["num_codebooks"])
    write_torch_file(
        release / "compression_state_dict.bin", {"xp.cfg": codec_config, "best_state": codec_weights(weights)}
    )
    text_encoder.mkdir()
    (text_encoder / "config.json").write_text(json.dumps({"model_type": "t5"} | config["text_encoder"]))
    (text_encoder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    mx.save_safetensors(
        str(text_encoder / "model.safetensors"),
        {name: mx.array(value) for name, value in with_prefix(weights, "text_encoder.").items()},
    )


def lm_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {
        f"condition_provider.conditioners.description.output_proj.{part}": value
        for part, value in with_prefix(weights, "enc_to_dec_proj.").items()
    } | {
        f"condition_provider.conditioners.self_wav.output_proj.{part}": value
        for part, value in with_prefix(weights, "audio_enc_to_dec_proj.").items()
    }
    projections: dict[str, dict[str, np.ndarray]] = {}
    for name, value in with_prefix(weights, "decoder.").items():
        name = re.sub(r"^model\.decoder\.layers\.", "transformer.layers.", name)
        name = re.sub(r"^model\.decoder\.embed_tokens\.", "emb.", name)
        name = re.sub(r"^model\.decoder\.layer_norm\.", "out_norm.", name)
        name = re.sub(r"^lm_heads\.", "linears.", name)
        name = name.replace(".self_attn_layer_norm.", ".norm1.").replace(".final_layer_norm.", ".norm2.")
        name = name.replace(".encoder_attn_layer_norm.", ".norm_cross.")
        name = name.replace(".encoder_attn.", ".cross_attention.")
        name = re.sub(r"\.fc([12])\.", r".linear\1.", name)
        part = re.fullmatch(r"(.*)\.([qkv])_proj\.weight", name)
        if part:
            projections.setdefault(f"{part[1]}.in_proj_weight", {})[part[2]] = value
        else:
            result[name] = value
    return result | {name: np.concatenate([p["q"], p["k"], p["v"]]) for name, p in projections.items()}


def codec_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {}
    for name, value in with_prefix(weights, "audio_encoder.").items():
        inner = "convtr.convtr" if is_transposed(name, weights) else "conv.conv"
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        name = name.replace(".parametrizations.weight.original1", ".weight_v")
        result[re.sub(r"\.conv\.(weight_[gv]|bias)$", rf".{inner}.\1", name)] = value
    return result


def is_transposed(name: str, weights: dict[str, np.ndarray]) -> bool:
    """Whether a tensor belongs to an upsampling layer of the codec: the decoder's layers 3, 6, 9, …"""
    layer = re.match(r"decoder\.layers\.(\d+)\.conv\.", name)
    last = max(
        int(n[1]) for key in weights if (n := re.match(r"audio_encoder\.decoder\.layers\.(\d+)\.", key))
    )
    return layer is not None and int(layer[1]) % 3 == 0 and 0 < int(layer[1]) < last


def with_prefix(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights whose names begin with `prefix`, which is removed."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
