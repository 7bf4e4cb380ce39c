"""From a checkpoint's files, in either upstream format, to the networks: the only code that knows formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints import native
from audiocraft_mlx.checkpoints.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    Checkpoint,
    fit_codec,
    lm_dtype,
    melody_conditioner,
    read_config,
    read_projection,
    read_tokenizer,
)
from audiocraft_mlx.checkpoints.hub import Source, open_source
from audiocraft_mlx.checkpoints.pickles import read_torch_file
from audiocraft_mlx.checkpoints.tensors import load_state_dict, read_json, read_transformers_weights
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.prepended import Listener
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import Section
from audiocraft_mlx.decoding.guidance import Guidance
from audiocraft_mlx.decoding.sampling import Sampling
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.models.encodec import Encodec, EncodecConfig
from audiocraft_mlx.models.lm import LM, LMConfig
from audiocraft_mlx.models.mert import MERT, MERTConfig
from audiocraft_mlx.models.quantization import quantize
from audiocraft_mlx.models.style import StyleConfig, StyleEncoder
from audiocraft_mlx.models.t5 import T5Config, T5Encoder
from audiocraft_mlx.models.weights import Weights, load_strict, take
from audiocraft_mlx.ops.blas import use_fast_blas

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
GENERATION_FILE = "generation_config.json"
LISTENING = ("chroma_stem", "style")
"""Kinds of conditions that are heard."""
MERT_NAME = "m-a-p/MERT-v1-95M"
T5_BASE = "t5-base"
"""The text encoder of every MusicGen; its tokenizer serves a folder that came without one."""
RELEASED_MAX_DURATION = 30.0

_Network = TypeVar("_Network", bound=nn.Module)


def load(name: str, revision: str | None = None, quantize_to: int | None = None) -> Checkpoint:
    """Load a model from the Hub (by its name or one of our short names) or from a folder.

    With `quantize_to` (4 or 8) its weights are quantized to so many bits while they are read.
    Raises `CheckpointError`, `DownloadError` or `UsageError`.
    """
    use_fast_blas()
    checkpoint = read(name, revision)
    if quantize_to is not None:
        quantize(checkpoint, quantize_to)
    checkpoint.evaluate()
    return checkpoint


def read(name: str, revision: str | None = None) -> Checkpoint:
    """As `load`, but the weights are only promised: what is done to them costs the memory of its result.

    An audiocraft release file is preferred where there are both upstream formats: it is half the bytes.
    """
    source = open_source(name, revision)
    if LM_FILE in source.files:
        return _read_audiocraft(source)
    if CONFIG_FILE in source.files:
        config = read_config(source)
        return (
            native.read(source, config) if native.recognizes(config) else _read_transformers(source, config)
        )
    raise CheckpointError(
        f"{source.name} has no MusicGen checkpoint: neither {LM_FILE} (audiocraft)"
        f" nor {CONFIG_FILE} (transformers, or our own format)"
    )


def _read_audiocraft(source: Source) -> Checkpoint:
    path = source.path(LM_FILE)
    config, weights = _audiocraft_package(read_torch_file(path), str(path))
    lm_config = LMConfig.from_audiocraft(config)
    t5_name = _audiocraft_text_encoder(config)
    projection = take(weights, "condition_provider.conditioners.description.output_proj.")
    listening = take(weights, "condition_provider.conditioners.self_wav.")
    lm = _build(LM, lm_config, weights, lm_dtype(), str(path))
    t5_source = open_source(t5_name)
    t5_config = T5Config.from_transformers(read_config(t5_source))
    t5_weights = read_transformers_weights(t5_source, T5Encoder.is_encoder_weight)
    codec = fit_codec(_audiocraft_codec(source, config), lm_config, *_audiocraft_stereo(config), str(path))
    listener, style = _audiocraft_listener(config, lm_config, listening, codec.sample_rate, str(path))
    return Checkpoint(
        lm=lm,
        codec=codec,
        conditioner=TextConditioner(
            read_tokenizer(t5_source),
            _build(T5Encoder, t5_config, t5_weights, mx.float32, t5_source.name),
            read_projection(t5_config, lm_config, projection, str(path)),
        ),
        max_duration=config.section("dataset").number("segment_duration", RELEASED_MAX_DURATION),
        sampling=Sampling(),
        guidance=Guidance(two_step=config.section("transformer_lm").boolean("two_step_cfg", False)),
        listener=listener,
        style=style,
        origin=source.origin,
    )


def _audiocraft_package(package: Any, where: str) -> tuple[Section, Weights]:
    """Configuration and tensors of a release file."""
    if (
        not isinstance(package, dict)
        or not isinstance(package.get("xp.cfg"), str)
        or "best_state" not in package
    ):
        raise CheckpointError(
            f"{where} is not an audiocraft release file: it needs 'xp.cfg' and 'best_state'"
        )
    return Section.from_yaml(package["xp.cfg"], where), load_state_dict(package["best_state"], where)


def _audiocraft_text_encoder(config: Section) -> str:
    """The Hub name of the T5 that a checkpoint asks for."""
    conditioners = config.section("conditioners")
    names = [name for name in conditioners.names if name != "args"]  # those are training's
    for name in names:
        kind = conditioners.section(name).text("model")
        if (name, kind) not in (("description", "t5"), *(("self_wav", kind) for kind in LISTENING)):
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
    return t5.text("name")


def _audiocraft_listener(
    config: Section, lm: LMConfig, weights: Weights, sample_rate: int, where: str
) -> tuple[Listener | None, StyleParams]:
    """What hears melodies or style, of the weights of `self_wav`, and how style is heard."""
    conditioners = config.section("conditioners")
    kind = conditioners.section("self_wav").text("model") if "self_wav" in conditioners else None
    if kind == "chroma_stem":
        weights.pop("chroma.spec.window", None)  # a constant, rounded
        chroma = ChromaConfig.from_audiocraft(config)
        return melody_conditioner(
            chroma, lm.dim, take(weights, "output_proj.") | weights, where
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
    source = open_source(MERT_NAME)
    config = MERTConfig.from_transformers(read_config(source))
    return _build(MERT, config, read_transformers_weights(source), mx.float32, source.name)


def _audiocraft_stereo(config: Section) -> tuple[bool, int | None]:
    """Whether the codebooks of two channels are interleaved, and how many of each channel's are used."""
    interleave = config.section("interleave_stereo_codebooks")
    interleave.require("per_timestep", False, False)
    used = config.integer("compression_model_n_q") if "compression_model_n_q" in config else None
    return interleave.boolean("use", False), used


def _audiocraft_codec(source: Source, config: Section) -> Encodec:
    """The codec beside the model, or else the one that its configuration names."""
    if CODEC_FILE in source.files:
        return _codec_from_release(source)
    name = config.text("compression_model_checkpoint", "")
    if not name.startswith("//pretrained/"):
        raise CheckpointError(
            f"{source.name} has no {CODEC_FILE}, and its configuration names no public codec"
            f" ({name!r}); put the codec's {CODEC_FILE} beside {LM_FILE}"
        )
    return _codec_by_name(name.removeprefix("//pretrained/"))


def _codec_by_name(name: str) -> Encodec:
    source = open_source(name)
    if CODEC_FILE in source.files:
        return _codec_from_release(source)
    return _codec_from_transformers(read_config(source), read_transformers_weights(source), source.name)


def _codec_from_release(source: Source) -> Encodec:
    path = source.path(CODEC_FILE)
    package = read_torch_file(path)
    if isinstance(package, dict) and isinstance(package.get("pretrained"), str):
        return _codec_by_name(package["pretrained"])
    config, weights = _audiocraft_package(package, str(path))
    return _build(Encodec, EncodecConfig.from_audiocraft(config), weights, mx.float32, str(path))


def _codec_from_transformers(config: Section, weights: Weights, where: str) -> Encodec:
    return _build(Encodec, EncodecConfig.from_transformers(config), weights, mx.float32, where)


def _read_transformers(source: Source, config: Section) -> Checkpoint:
    kind = config.text("model_type", "")
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
    tokenizer = read_tokenizer(source if TOKENIZER_FILE in source.files else open_source(T5_BASE))
    sampling, guidance, max_duration = _generation_defaults(source, codec.frame_rate)
    listener = None
    if kind == "musicgen_melody":
        listener = melody_conditioner(
            ChromaConfig.from_transformers(config),
            lm_config.dim,
            parts["audio_enc_to_dec_proj"],
            f"{where}, audio_enc_to_dec_proj",
        )
    return Checkpoint(
        lm=lm,
        codec=fit_codec(codec, lm_config, stereo, None, where),
        conditioner=TextConditioner(
            tokenizer,
            t5,
            read_projection(t5_config, lm_config, parts["enc_to_dec_proj"], f"{where}, enc_to_dec_proj"),
        ),
        max_duration=max_duration,
        sampling=sampling,
        guidance=guidance,
        listener=listener,
        origin=source.origin,
    )


def _generation_defaults(source: Source, frame_rate: float) -> tuple[Sampling, Guidance, float]:
    """How the model's makers want it sampled; what `generation_config.json` doesn't say is as in the paper.

    (Not as in transformers, whose own default of 50 for `top_k` is no decision about MusicGen.)
    """
    config = Section({}, source.name)
    if GENERATION_FILE in source.files:
        path = source.path(GENERATION_FILE)
        config = Section(read_json(path), str(path))
    released = Sampling()
    top_p = config.number("top_p", released.top_p)
    try:
        sampling = Sampling(
            use_sampling=config.boolean("do_sample", released.use_sampling),
            top_k=config.integer("top_k", released.top_k, least=0),
            top_p=0.0 if top_p == 1 else top_p,  # transformers' way of saying that all codes are kept
            temperature=config.number("temperature", released.temperature),
        )
        guidance = Guidance(coef=config.number("guidance_scale", Guidance().coef))
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


def _needed(config: Section, key: str) -> Section:
    if key not in config:
        raise config.error(key, "is missing")
    return config.section(key)
