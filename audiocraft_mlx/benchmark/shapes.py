"""The shapes of the released models, with random weights: speed doesn't depend on what the weights are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from audiocraft_mlx.checkpoints.bundle import ModelBundle, lm_dtype, read_config, select_codebooks
from audiocraft_mlx.checkpoints.model_files import DEMO, resolve_model
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import flat_parameters, load_strict

MAX_DURATION = 30.0

_SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096},
    "medium": {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "ffn_dim": 6144},
    "large": {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "ffn_dim": 8192},
}
T5_BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
ENCODEC_32KHZ = {
    "sampling_rate": 32000,
    "num_filters": 64,
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "codebook_size": 2048,
    "target_bandwidths": [2.2],
}

_NOISE = 65537
"""Random numbers that are drawn for a tensor and repeated to fill it. A prime: no two rows are the same."""


@dataclass(frozen=True)
class Shape:
    lm: LMConfig
    t5: T5Config
    codec: EncodecConfig
    stereo: bool


def shape(name: str) -> Shape:
    """The shape called `name`, one of `SHAPES`."""
    if name == DEMO:
        config = read_config(resolve_model(DEMO))
    else:
        # What these don't say is as transformers' classes have it, which are made after the small model.
        stereo = {"audio_channels": 2, "num_codebooks": 8} if name.startswith("stereo-") else {}
        size = _SIZES[name.removeprefix("stereo-")]
        values = {"decoder": size | stereo, "text_encoder": T5_BASE, "audio_encoder": ENCODEC_32KHZ}
        config = ConfigSection(values, name)
    decoder = config.section("decoder")
    return Shape(
        lm=LMConfig.from_transformers(decoder),
        t5=T5Config.from_transformers(config.section("text_encoder")),
        codec=EncodecConfig.from_transformers(config.section("audio_encoder")),
        stereo=decoder.integer("audio_channels", 1) == 2,
    )


def random_checkpoint(name: str) -> ModelBundle:
    """A model of the shape `name`, its weights always the same and only promised yet.

    Its tokenizer makes one token of each word.
    """
    wanted = shape(name)
    networks = (
        LM(wanted.lm),
        T5Encoder(wanted.t5),
        Encodec(wanted.codec),
        nn.Linear(wanted.t5.dim, wanted.lm.dim),
    )
    lm, t5, codec, projection = networks
    keys = mx.random.split(mx.random.key(0), len(networks))
    for network, key in zip(networks, keys, strict=True):
        _randomize(network, key, lm_dtype() if network is lm else mx.float32)
    tokenizer = Tokenizer(WordLevel({"<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return ModelBundle(
        lm=lm,
        codec=select_codebooks(codec, wanted.lm, wanted.stereo, None, name),
        text_conditioner=TextConditioner(tokenizer, t5, projection),
        max_duration=MAX_DURATION,
        sampling=SamplingParams(),
        guidance=GuidanceParams(),
    )


def _randomize(network: nn.Module, key: mx.array, dtype: mx.Dtype) -> None:
    weights = flat_parameters(network)
    keys = mx.random.split(key, len(weights))
    for (name, weight), own in zip(list(weights.items()), keys, strict=True):
        weights[name] = _random(name, weight.shape, own)
    load_strict(network, weights, dtype, "a random model")


def _random(name: str, wanted: tuple[int, ...], key: mx.array) -> mx.array:
    """Such that what goes through it neither grows nor vanishes; in half precision, as releases are."""
    size = math.prod(wanted)
    noise = mx.random.normal((min(size, _NOISE),), key=key)
    if len(wanted) == 1:
        noise = 0.01 * noise + (1 if name.endswith("weight") else 0)  # a norm's gain, or a bias
    elif "embed" not in name and "codebooks" not in name:
        noise = noise / math.sqrt(math.prod(wanted[1:]))
    noise = noise.astype(mx.float16)
    return mx.tile(noise, -(-size // _NOISE))[:size].reshape(wanted)
