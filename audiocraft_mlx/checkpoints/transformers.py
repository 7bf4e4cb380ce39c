"""transformers' format: `config.json`, safetensors or torch files, generation defaults and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.build import StoredTensors, build_network
from audiocraft_mlx.checkpoints.bundle import (
    CONFIG_FILE,
    ModelBundle,
    load_projection,
    melody_conditioner,
    read_config,
    select_codebooks,
)
from audiocraft_mlx.checkpoints.model_files import ModelFiles, resolve_part
from audiocraft_mlx.checkpoints.tensors import TRANSFORMERS_WEIGHTS, read_json, read_transformers_weights
from audiocraft_mlx.checkpoints.tokenizer import TOKENIZER_FILE, read_tokenizer
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import SEGMENT_SECONDS, ConfigSection, Range, shown, shown_text
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import CheckpointError, MusicGenError, UsageError
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder

NETWORK_FILES = ((CONFIG_FILE,), TRANSFORMERS_WEIGHTS)
"""What a model or a single network in this format consists of; of each tuple of names, one file."""
GENERATION_FILE = "generation_config.json"
T5_BASE_REPO = "t5-base"
"""The text encoder of every MusicGen; its tokenizer serves a folder that came without one."""
RELEASED_MAX_DURATION = 30.0
MAX_DURATION_KEY = "max_duration"
"""Our own key in `config.json`, for a model that was trained on clips of another length; in seconds."""

_Network = TypeVar("_Network", bound=nn.Module)


def load_model(model_files: ModelFiles, config: ConfigSection, dtype: mx.Dtype) -> ModelBundle:
    """The lazy model in `model_files`, whose `config.json` is `config`, its LM's weights as `dtype`.

    Raises `CheckpointError` or `DownloadError`.
    """
    kind = config.string("model_type", "")
    if kind not in ("musicgen", "musicgen_melody"):
        raise config.error(
            "model_type", f"is {shown(kind)}; only 'musicgen' and 'musicgen_melody' are supported"
        )
    lm_config = LMConfig.from_transformers(config.required_section("decoder"))
    t5_config = T5Config.from_transformers(config.required_section("text_encoder"))
    codec_config = EncodecConfig.from_transformers(config.required_section("audio_encoder"))
    parts: dict[str, StoredTensors] = {
        "decoder": {},
        "text_encoder": {},
        "audio_encoder": {},
        "enc_to_dec_proj": {},
    }
    if kind == "musicgen_melody":
        parts["audio_enc_to_dec_proj"] = {}
    weights = read_transformers_weights(model_files)
    for name in list(weights):
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{model_files.name} doesn't fit its configuration: {shown_text(name)} is unexpected"
            )
        parts[part][rest] = weights.pop(name)
    source = model_files.name

    def build(network_class: Callable[[Any], _Network], config: Any, part: str, dtype: mx.Dtype) -> _Network:
        return build_network(network_class, config, parts[part], dtype, f"{source}, {part}")

    lm = build(LM, lm_config, "decoder", dtype)
    t5 = build(T5Encoder, t5_config, "text_encoder", mx.float32)
    codec = build(Encodec, codec_config, "audio_encoder", mx.float32)
    stereo = config.section("decoder").integer("audio_channels", 1) == 2
    tokenizer = read_tokenizer(_find_tokenizer(model_files), t5_config.vocab_size)
    sampling, guidance = _generation_defaults(model_files)
    audio_conditioner = None
    if kind == "musicgen_melody":
        audio_conditioner = melody_conditioner(
            ChromaConfig.from_transformers(config),
            lm_config.dim,
            parts["audio_enc_to_dec_proj"],
            f"{source}, audio_enc_to_dec_proj",
        )
    return ModelBundle(
        lm=lm,
        codec=select_codebooks(codec, lm_config, stereo, None, source),
        text_conditioner=TextConditioner(
            tokenizer,
            t5,
            load_projection(t5_config, lm_config, parts["enc_to_dec_proj"], f"{source}, enc_to_dec_proj"),
        ),
        max_duration=_max_duration(config),
        sampling=sampling,
        guidance=guidance,
        audio_conditioner=audio_conditioner,
        source_repo=model_files.source_repo,
    )


def _find_tokenizer(model_files: ModelFiles) -> ModelFiles:
    if TOKENIZER_FILE in model_files.files:
        return model_files
    try:
        return resolve_part(T5_BASE_REPO, [(TOKENIZER_FILE,)])
    except MusicGenError as error:
        raise type(error)(f"{model_files.name} has no {TOKENIZER_FILE}, and {error}") from error


def load_network(
    model_files: ModelFiles,
    network_class: Callable[[Any], _Network],
    read_network_config: Callable[[ConfigSection], Any],
    is_wanted: Callable[[str], bool] = lambda name: True,
) -> _Network:
    """The one float32 network in `model_files` (a T5, an EnCodec, a MERT), of the tensors that are wanted.

    Raises `CheckpointError` or `DownloadError`.
    """
    config = read_network_config(read_config(model_files))
    weights = read_transformers_weights(model_files, is_wanted)
    return build_network(network_class, config, weights, mx.float32, model_files.name)


def _max_duration(config: ConfigSection) -> float:
    """Seconds that the model was trained on.

    `max_length` in `generation_config.json` doesn't tell: it is how much is generated by default, and whoever
    saves a model with another default (transformers' documentation has 256) hasn't trained it anew.
    """
    return config.number(MAX_DURATION_KEY, RELEASED_MAX_DURATION, SEGMENT_SECONDS)


def _generation_defaults(model_files: ModelFiles) -> tuple[SamplingParams, GuidanceParams]:
    """Sampling and guidance by `generation_config.json`; keys that are absent or null are as in the paper.

    (Not as in transformers, whose own default of 50 for `top_k` is no decision about MusicGen.)
    """
    config = ConfigSection({}, model_files.name)
    if GENERATION_FILE in model_files.files:
        path = model_files.local_path(GENERATION_FILE)
        values = {name: value for name, value in read_json(path).items() if value is not None}
        config = ConfigSection(values, str(path))
    released = SamplingParams()
    top_p = config.number("top_p", released.top_p)
    try:
        sampling = SamplingParams(
            use_sampling=config.boolean("do_sample", released.use_sampling),
            top_k=config.integer("top_k", released.top_k, Range(0, 2**31 - 1)),
            top_p=0.0 if top_p == 1 else top_p,  # 1 keeps all codes; ours is 0, as audiocraft's
            temperature=config.number("temperature", released.temperature),
        )
        guidance = GuidanceParams(coef=config.number("guidance_scale", GuidanceParams().coef))
    except UsageError as error:
        raise CheckpointError(f"{model_files.name}: {error} in {GENERATION_FILE}") from error
    return sampling, guidance
