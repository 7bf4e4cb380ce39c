"""From a checkpoint's files, in either upstream format, to the networks: the only code that knows formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints import mlx_format
from audiocraft_mlx.checkpoints.bundle import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    ModelBundle,
    lm_dtype,
    load_projection,
    melody_conditioner,
    read_config,
    read_tokenizer,
    select_codebooks,
)
from audiocraft_mlx.checkpoints.model_files import ModelFiles, resolve_model
from audiocraft_mlx.checkpoints.quantization import quantize
from audiocraft_mlx.checkpoints.tensors import load_state_dict, read_json, read_transformers_weights
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.prepend import AudioConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.mert import MERT, MERTConfig
from audiocraft_mlx.networks.style_encoder import StyleConfig, StyleEncoder
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import Weights, load_strict, pop_prefix
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
GENERATION_FILE = "generation_config.json"
AUDIO_CONDITIONERS = ("chroma_stem", "style")
"""Kinds of conditions that are heard."""
MERT_NAME = "m-a-p/MERT-v1-95M"
T5_BASE = "t5-base"
"""The text encoder of every MusicGen; its tokenizer serves a folder that came without one."""
RELEASED_MAX_DURATION = 30.0

_Network = TypeVar("_Network", bound=nn.Module)


def load(name: str, revision: str | None = None, quantize_to: int | None = None) -> ModelBundle:
    """Load a model from the Hub (by its name or one of our short names) or from a folder.

    With `quantize_to` (4 or 8) its weights are quantized to so many bits while they are read.
    Raises `CheckpointError`, `DownloadError` or `UsageError`.
    """
    patch_mlx_blas()
    checkpoint = read(name, revision)
    if quantize_to is not None:
        quantize(checkpoint, quantize_to)
    checkpoint.materialize()
    return checkpoint


def read(name: str, revision: str | None = None) -> ModelBundle:
    """As `load`, but the weights are only promised: what is done to them costs the memory of its result.

    An audiocraft release file is preferred where there are both upstream formats: it is half the bytes.
    """
    source = resolve_model(name, revision)
    if LM_FILE in source.files:
        return _read_audiocraft(source)
    if CONFIG_FILE in source.files:
        config = read_config(source)
        return (
            mlx_format.read(source, config)
            if mlx_format.is_mlx_format(config)
            else _read_transformers(source, config)
        )
    raise CheckpointError(
        f"{source.name} has no MusicGen checkpoint: neither {LM_FILE} (audiocraft)"
        f" nor {CONFIG_FILE} (transformers, or our own format)"
    )


def _read_audiocraft(source: ModelFiles) -> ModelBundle:
    path = source.local_path(LM_FILE)
    config, weights = _audiocraft_package(read_torch_file(path), str(path))
    lm_config = LMConfig.from_audiocraft(config)
    t5_name = _audiocraft_text_encoder(config)
    projection = pop_prefix(weights, "condition_provider.conditioners.description.output_proj.")
    listening = pop_prefix(weights, "condition_provider.conditioners.self_wav.")
    lm = _build(LM, lm_config, weights, lm_dtype(), str(path))
    t5_source = resolve_model(t5_name)
    t5_config = T5Config.from_transformers(read_config(t5_source))
    t5_weights = read_transformers_weights(t5_source, T5Encoder.is_encoder_weight)
    codec = select_codebooks(
        _audiocraft_codec(source, config), lm_config, *_audiocraft_stereo(config), str(path)
    )
    audio_conditioner, style_params = _audiocraft_audio_conditioner(
        config, lm_config, listening, codec.sample_rate, str(path)
    )
    return ModelBundle(
        lm=lm,
        codec=codec,
        text_conditioner=TextConditioner(
            read_tokenizer(t5_source),
            _build(T5Encoder, t5_config, t5_weights, mx.float32, t5_source.name),
            load_projection(t5_config, lm_config, projection, str(path)),
        ),
        max_duration=config.section("dataset").number("segment_duration", RELEASED_MAX_DURATION),
        sampling=SamplingParams(),
        guidance=GuidanceParams(two_step=config.section("transformer_lm").boolean("two_step_cfg", False)),
        audio_conditioner=audio_conditioner,
        style_params=style_params,
        source_repo=source.source_repo,
    )


def _audiocraft_package(package: Any, where: str) -> tuple[ConfigSection, Weights]:
    """Configuration and tensors of a release file."""
    if (
        not isinstance(package, dict)
        or not isinstance(package.get("xp.cfg"), str)
        or "best_state" not in package
    ):
        raise CheckpointError(
            f"{where} is not an audiocraft release file: it needs 'xp.cfg' and 'best_state'"
        )
    return ConfigSection.from_yaml(package["xp.cfg"], where), load_state_dict(package["best_state"], where)


def _audiocraft_text_encoder(config: ConfigSection) -> str:
    """The Hub name of the T5 that a checkpoint asks for."""
    conditioners = config.section("conditioners")
    names = [name for name in conditioners.keys if name != "args"]  # those are training's
    for name in names:
        kind = conditioners.section(name).string("model")
        if (name, kind) not in (("description", "t5"), *(("self_wav", kind) for kind in AUDIO_CONDITIONERS)):
            raise conditioners.error(
                name, f"is a {kind!r} condition; only text by T5, melody and style are supported"
            )
    if "description" not in names:
        raise conditioners.error("description", "is missing; only models that hear text are supported")
    fuser, listens = config.section("fuser"), "self_wav" in names
    fuser.require("cross", [] if listens else ["description"])
    fuser.require("prepend", ["self_wav", "description"] if listens else [], [])
    for way in ("sum", "input_interpolate"):
        fuser.require(way, [], [])
    fuser.require("cross_attention_pos_emb", False, False)
    t5 = conditioners.section("description").section("t5")
    t5.require("finetune", False, False)
    t5.require("normalize_text", False, False)
    return t5.string("name")


def _audiocraft_audio_conditioner(
    config: ConfigSection, lm: LMConfig, weights: Weights, sample_rate: int, where: str
) -> tuple[AudioConditioner | None, StyleParams]:
    """What hears melodies or style, of the weights of `self_wav`, and how style is heard."""
    conditioners = config.section("conditioners")
    kind = conditioners.section("self_wav").string("model") if "self_wav" in conditioners else None
    if kind == "chroma_stem":
        weights.pop("chroma.spec.window", None)  # a constant, rounded
        chroma = ChromaConfig.from_audiocraft(config)
        return melody_conditioner(
            chroma, lm.dim, pop_prefix(weights, "output_proj.") | weights, where
        ), StyleParams()
    if kind == "style":
        mert = _mert()
        style = StyleConfig.from_audiocraft(config, mert.config.dim)
        # A name of a size stands in the configuration; how many layers that is, the file knows.
        numbers = {int(name.split(".")[2]) for name in weights if name.startswith("transformer.layers.")}
        if numbers:
            style = replace(style, num_layers=max(numbers) + 1)
        encoder = _build(StyleEncoder, style, weights, mx.float32, where)
        return StyleConditioner(mert, encoder, sample_rate), StyleParams.from_audiocraft(config)
    if weights:
        raise CheckpointError(f"{where} doesn't fit its configuration: it has weights of self_wav")
    return None, StyleParams()


def _mert() -> MERT:
    source = resolve_model(MERT_NAME)
    config = MERTConfig.from_transformers(read_config(source))
    return _build(MERT, config, read_transformers_weights(source), mx.float32, source.name)


def _audiocraft_stereo(config: ConfigSection) -> tuple[bool, int | None]:
    """Whether the codebooks of two channels are interleaved, and how many of each channel's are used."""
    interleave = config.section("interleave_stereo_codebooks")
    interleave.require("per_timestep", False, False)
    used = config.integer("compression_model_n_q") if "compression_model_n_q" in config else None
    return interleave.boolean("use", False), used


def _audiocraft_codec(source: ModelFiles, config: ConfigSection) -> Encodec:
    """The codec beside the model, or else the one that its configuration names."""
    if CODEC_FILE in source.files:
        return _codec_from_release(source)
    name = config.string("compression_model_checkpoint", "")
    if not name.startswith("//pretrained/"):
        raise CheckpointError(
            f"{source.name} has no {CODEC_FILE}, and its configuration names no public codec"
            f" ({name!r}); put the codec's {CODEC_FILE} beside {LM_FILE}"
        )
    return _codec_by_name(name.removeprefix("//pretrained/"))


def _codec_by_name(name: str) -> Encodec:
    source = resolve_model(name)
    if CODEC_FILE in source.files:
        return _codec_from_release(source)
    return _codec_from_transformers(read_config(source), read_transformers_weights(source), source.name)


def _codec_from_release(source: ModelFiles) -> Encodec:
    path = source.local_path(CODEC_FILE)
    package = read_torch_file(path)
    if isinstance(package, dict) and isinstance(package.get("pretrained"), str):
        return _codec_by_name(package["pretrained"])
    config, weights = _audiocraft_package(package, str(path))
    return _build(Encodec, EncodecConfig.from_audiocraft(config), weights, mx.float32, str(path))


def _codec_from_transformers(config: ConfigSection, weights: Weights, where: str) -> Encodec:
    return _build(Encodec, EncodecConfig.from_transformers(config), weights, mx.float32, where)


def _read_transformers(source: ModelFiles, config: ConfigSection) -> ModelBundle:
    kind = config.string("model_type", "")
    if kind not in ("musicgen", "musicgen_melody"):
        raise config.error("model_type", f"is {kind!r}; only 'musicgen' and 'musicgen_melody' are supported")
    lm_config = LMConfig.from_transformers(_needed(config, "decoder"))
    t5_config = T5Config.from_transformers(_needed(config, "text_encoder"))
    codec_config = EncodecConfig.from_transformers(_needed(config, "audio_encoder"))
    weights = read_transformers_weights(source)
    parts: dict[str, Weights] = {
        "decoder": {},
        "text_encoder": {},
        "audio_encoder": {},
        "enc_to_dec_proj": {},
    }
    if kind == "musicgen_melody":
        parts["audio_enc_to_dec_proj"] = {}
    for name in list(weights):
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(f"{source.name} doesn't fit its configuration: {name} is unexpected")
        parts[part][rest] = weights.pop(name)
    where = source.name
    lm = _build(LM, lm_config, parts.pop("decoder"), lm_dtype(), f"{where}, decoder")
    t5 = _build(T5Encoder, t5_config, parts.pop("text_encoder"), mx.float32, f"{where}, text_encoder")
    codec = _build(Encodec, codec_config, parts.pop("audio_encoder"), mx.float32, f"{where}, audio_encoder")
    stereo = config.section("decoder").integer("audio_channels", 1) == 2
    tokenizer = read_tokenizer(source if TOKENIZER_FILE in source.files else resolve_model(T5_BASE))
    sampling, guidance, max_duration = _generation_defaults(source, codec.frame_rate)
    audio_conditioner = None
    if kind == "musicgen_melody":
        audio_conditioner = melody_conditioner(
            ChromaConfig.from_transformers(config),
            lm_config.dim,
            parts["audio_enc_to_dec_proj"],
            f"{where}, audio_enc_to_dec_proj",
        )
    return ModelBundle(
        lm=lm,
        codec=select_codebooks(codec, lm_config, stereo, None, where),
        text_conditioner=TextConditioner(
            tokenizer,
            t5,
            load_projection(t5_config, lm_config, parts["enc_to_dec_proj"], f"{where}, enc_to_dec_proj"),
        ),
        max_duration=max_duration,
        sampling=sampling,
        guidance=guidance,
        audio_conditioner=audio_conditioner,
        source_repo=source.source_repo,
    )


def _generation_defaults(
    source: ModelFiles, frame_rate: float
) -> tuple[SamplingParams, GuidanceParams, float]:
    """How the model's makers want it sampled; what `generation_config.json` doesn't say is as in the paper.

    (Not as in transformers, whose own default of 50 for `top_k` is no decision about MusicGen.)
    """
    config = ConfigSection({}, source.name)
    if GENERATION_FILE in source.files:
        path = source.local_path(GENERATION_FILE)
        config = ConfigSection(read_json(path), str(path))
    released = SamplingParams()
    top_p = config.number("top_p", released.top_p)
    try:
        sampling = SamplingParams(
            use_sampling=config.boolean("do_sample", released.use_sampling),
            top_k=config.integer("top_k", released.top_k, minimum=0),
            top_p=0.0 if top_p == 1 else top_p,  # transformers' way of saying that all codes are kept
            temperature=config.number("temperature", released.temperature),
        )
        guidance = GuidanceParams(coef=config.number("guidance_scale", GuidanceParams().coef))
    except UsageError as error:
        raise CheckpointError(f"{source.name}: {error} in {GENERATION_FILE}") from error
    if "max_length" not in config:
        return sampling, guidance, RELEASED_MAX_DURATION
    return sampling, guidance, float(config.integer("max_length") // frame_rate) or RELEASED_MAX_DURATION


def _build(
    network: Callable[[Any], _Network], config: Any, weights: Weights, dtype: mx.Dtype, where: str
) -> _Network:
    """A network with its weights; `weights` is emptied."""
    module = network(config)
    try:
        # The names and layouts of the network, from those of either upstream.
        own = module.sanitize(weights)
    except ValueError as error:
        raise CheckpointError(f"{where} has tensors of a wrong shape: {error}") from error
    load_strict(module, own, dtype, where)
    return module


def _needed(config: ConfigSection, key: str) -> ConfigSection:
    if key not in config:
        raise config.error(key, "is missing")
    return config.section(key)
