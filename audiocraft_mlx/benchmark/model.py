"""The model to measure: a checkpoint, or random weights in the shape of a released model.

Speed doesn't depend on the values of the weights, so random ones need no download.
"""

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
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_files import DEMO, resolve_model
from audiocraft_mlx.checkpoints.quantization import enable_int8_activations, quantize
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import flat_parameters, load_strict
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas

MAX_DURATION = 30.0
"""Seconds, of the models with random weights."""

_LM_SIZES: dict[str, dict[str, Any]] = {
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

_NOISE_LENGTH = 65537
"""Random numbers drawn for a tensor, and repeated to fill it. A prime: no two rows are the same."""


@dataclass(frozen=True)
class BenchmarkModel:
    """The name of what is measured; small enough to be sent to another process."""

    name: str
    """Of a model, as `load` takes it; or of a shape, one of `SHAPES`."""
    random: bool
    """Whether it is a shape, with random weights."""

    def read(self) -> ModelBundle:
        """The model with lazy weights. Raises `MusicGenError`."""
        return random_bundle(self.name) if self.random else load(self.name, lazy=True)

    def load(self, bits: int | None, int8_activations: bool = False) -> ModelBundle:
        """The model, its weights in memory.

        Args:
            bits: quantize the weights to 4 or 8 bits; None: leave them as they are.
            int8_activations: as in `MusicGen.get_pretrained`.

        Raises:
            MusicGenError: the model can't be read or quantized, or isn't quantized though
                `int8_activations` needs it; or it is a MAGNeT.
        """
        if self.random:
            patch_mlx_blas()
            bundle = self.read()
            if bits is not None:
                quantize(bundle, bits)
            bundle.materialize()
        else:
            bundle = load(self.name, quantize_to=bits)
            if not bundle.lm.config.causal:
                raise UsageError(f"{self.name} is a MAGNeT; only step-by-step models are measured")
        if int8_activations:
            enable_int8_activations(bundle.lm)
        return bundle


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model's networks."""

    lm: LMConfig
    t5: T5Config
    codec: EncodecConfig
    stereo: bool


def model_shape(name: str) -> ModelShape:
    """The shape called `name`, one of `SHAPES`."""
    if name == DEMO:
        config = read_config(resolve_model(DEMO))
    else:
        # The other values are the defaults of transformers' config classes, which match the small model.
        stereo = {"audio_channels": 2, "num_codebooks": 8} if name.startswith("stereo-") else {}
        size = _LM_SIZES[name.removeprefix("stereo-")]
        values = {"decoder": size | stereo, "text_encoder": T5_BASE, "audio_encoder": ENCODEC_32KHZ}
        config = ConfigSection(values, name)
    decoder = config.section("decoder")
    return ModelShape(
        lm=LMConfig.from_transformers(decoder),
        t5=T5Config.from_transformers(config.section("text_encoder")),
        codec=EncodecConfig.from_transformers(config.section("audio_encoder")),
        stereo=decoder.integer("audio_channels", 1) == 2,
    )


def random_bundle(name: str) -> ModelBundle:
    """A model of the shape `name` with lazy random weights, always the same ones.

    Its tokenizer makes one token of each word.
    """
    shape = model_shape(name)
    networks = (
        LM(shape.lm),
        T5Encoder(shape.t5),
        Encodec(shape.codec),
        nn.Linear(shape.t5.dim, shape.lm.dim),
    )
    lm, t5, codec, projection = networks
    keys = mx.random.split(mx.random.key(0), len(networks))
    for network, key in zip(networks, keys, strict=True):
        _randomize(network, key, lm_dtype() if network is lm else mx.float32)
    tokenizer = Tokenizer(WordLevel({"<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return ModelBundle(
        lm=lm,
        codec=select_codebooks(codec, shape.lm, shape.stereo, None, name),
        text_conditioner=TextConditioner(tokenizer, t5, projection),
        max_duration=MAX_DURATION,
        sampling=SamplingParams(),
        guidance=GuidanceParams(),
    )


def _randomize(network: nn.Module, key: mx.array, dtype: mx.Dtype) -> None:
    weights = flat_parameters(network)
    keys = mx.random.split(key, len(weights))
    for (name, weight), weight_key in zip(list(weights.items()), keys, strict=True):
        weights[name] = _random_weight(name, weight.shape, weight_key)
    load_strict(network, weights, dtype, "a random model")


def _random_weight(name: str, shape: tuple[int, ...], key: mx.array) -> mx.array:
    """Scaled for activations that neither grow nor vanish; float16, as the released weights are."""
    size = math.prod(shape)
    noise = mx.random.normal((min(size, _NOISE_LENGTH),), key=key)
    if len(shape) == 1:
        noise = 0.01 * noise + (1 if name.endswith("weight") else 0)  # a norm's gain, or a bias
    elif "embed" not in name and "codebooks" not in name:
        noise = noise / math.sqrt(math.prod(shape[1:]))
    noise = noise.astype(mx.float16)
    return mx.tile(noise, -(-size // _NOISE_LENGTH))[:size].reshape(shape)
