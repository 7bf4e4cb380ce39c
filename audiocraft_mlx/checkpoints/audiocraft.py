"""audiocraft's formats: `state_dict.bin` and `compression_state_dict.bin`, as by its `utils/export.py`, and
`checkpoint.th`, as by its training.

The text encoder, MERT and sometimes the codec are only named there; they come from their own repositories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from audiocraft_mlx.checkpoints.build import StoredTensors, build_network
from audiocraft_mlx.checkpoints.bundle import (
    CONFIG_FILE,
    ModelBundle,
    load_projection,
    melody_conditioner,
    read_config,
    select_codebooks,
)
from audiocraft_mlx.checkpoints.model_files import CODEC_FILE, ModelFiles, resolve_part
from audiocraft_mlx.checkpoints.state_dicts import (
    CONFIG_KEY,
    find_state,
    has_tensors,
    read_trained_state,
    read_training_file,
)
from audiocraft_mlx.checkpoints.tensors import MERGE, TRANSFORMERS_WEIGHTS, is_adapter, read_state_dict
from audiocraft_mlx.checkpoints.tokenizer import TOKENIZER_FILE, read_tokenizer
from audiocraft_mlx.checkpoints.transformers import NETWORK_FILES, RELEASED_MAX_DURATION, load_network
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.prepend import AudioConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import CODEBOOKS, LAYERS, SEGMENT_SECONDS, ConfigSection, Range, shown
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.masked import MaskedParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, UsageError
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.mert import MERT, MERTConfig
from audiocraft_mlx.networks.style_encoder import StyleConfig, StyleEncoder
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import pop_prefix

LM_FILE = "state_dict.bin"
_CONDITIONERS = "condition_provider.conditioners."
T5_PREFIX = f"{_CONDITIONERS}description.t5."
"""Of the text encoder's tensors, which are there if it was trained with the rest."""
PROJECTION_PREFIX = f"{_CONDITIONERS}description.output_proj."
SELF_WAV_PREFIX = f"{_CONDITIONERS}self_wav."
AUDIO_CONDITIONERS = ("chroma_stem", "style")
"""audiocraft's names of the conditioners on audio that are supported: melody and style."""
MERT_REPO = "m-a-p/MERT-v1-95M"

_NEEDS_BASE = "give the model that it was trained from: -m BASE --weights FILE"
_EXPORT_CODEC = "export it with audiocraft.utils.export.export_encodec"
_PRETRAINED = "//pretrained/"
_MAX_HOPS = 3
"""Codecs that name another one."""
_STYLE_LAYER = re.compile(r"transformer\.layers\.([0-9]{1,3})\.")


class UnavailablePart(Exception):
    """A part of the model, which its file only names, can't be had for this `reason`."""

    def __init__(self, reason: MusicGenError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def load_model(model_files: ModelFiles, dtype: mx.Dtype, file: str = LM_FILE) -> ModelBundle:
    """The lazy model in `model_files`, its LM's weights as `dtype`.

    `file` is a release's, or a training's. Raises `CheckpointError`, `DownloadError` or `UnavailablePart`.
    """
    path = model_files.local_path(file)
    source = str(path)
    config, weights = _parse_package(read_training_file(path), source, _NEEDS_BASE)
    lm_config = LMConfig.from_audiocraft(config)
    sampling, masked = _generation_defaults(config, lm_config)
    t5_weights = pop_prefix(weights, T5_PREFIX)
    # The parts first: it takes a while to load the weights, and that is for nothing if a part is missing.
    t5_files = _resolve(
        _read_text_encoder_name(config, bool(t5_weights)),
        source,
        "text encoder (conditioners.description.t5.name)",
        [(CONFIG_FILE,) if t5_weights else needed for needed in NETWORK_FILES] + [(TOKENIZER_FILE,)],
    )
    t5 = (
        build_network(
            T5Encoder, T5Config.from_transformers(read_config(t5_files)), t5_weights, mx.float32, source
        )
        if t5_weights
        else load_network(t5_files, T5Encoder, T5Config.from_transformers, T5Encoder.is_encoder_weight)
    )
    codec = select_codebooks(_find_codec(model_files, config), lm_config, *_read_stereo(config), source)
    projection = pop_prefix(weights, PROJECTION_PREFIX)
    self_wav = pop_prefix(weights, SELF_WAV_PREFIX)
    lm = build_network(LM, lm_config, weights, dtype, source)
    audio_conditioner, style_params = _load_audio_conditioner(
        config, lm_config, self_wav, codec.sample_rate, source
    )
    return ModelBundle(
        lm=lm,
        codec=codec,
        text_conditioner=TextConditioner(
            read_tokenizer(t5_files, t5.config.vocab_size),
            t5,
            load_projection(t5.config, lm_config, projection, source),
        ),
        max_duration=config.section("dataset").number(
            "segment_duration", RELEASED_MAX_DURATION, SEGMENT_SECONDS
        ),
        sampling=sampling,
        guidance=GuidanceParams(two_step=config.section("transformer_lm").boolean("two_step_cfg", False)),
        masked=masked,
        audio_conditioner=audio_conditioner,
        style_params=style_params,
        source_repo=model_files.source_repo,
    )


def _generation_defaults(config: ConfigSection, lm: LMConfig) -> tuple[SamplingParams, MaskedParams | None]:
    """How codes are drawn by default, and how a MAGNeT's masks are filled.

    A MAGNeT's are those of its own evaluation, `generate.lm`, where it has some, else those of audiocraft's
    class. (That class has the same for all models.)
    """
    if lm.causal:
        return SamplingParams(), None
    if "self_wav" in config.section("conditioners"):
        raise config.error("lm_model", "is a MAGNeT with a melody or style; only text is supported there")
    own, masked = config.section("generate").section("lm"), MaskedParams()
    try:
        sampling = SamplingParams(
            use_sampling=own.boolean("use_sampling", True),
            top_k=own.integer("top_k", 0, Range(0, 2**31 - 1)),
            top_p=own.number("top_p", 0.9),
            temperature=own.number("temp", 3.0),
        )
        masked = MaskedParams(
            max_cfg_coef=own.number("max_cfg_coef", masked.max_cfg_coef),
            min_cfg_coef=own.number("min_cfg_coef", masked.min_cfg_coef),
            decoding_steps=own.integers("decoding_steps", masked.decoding_steps),
            span_arrangement=own.string("span_arrangement", masked.span_arrangement),
        )
        masked.require_codebooks(lm.num_codebooks)
    except UsageError as error:
        raise config.error("generate.lm", f"is invalid: {error}") from error
    return sampling, masked


def _parse_package(package: Any, source: str, remedy: str) -> tuple[ConfigSection, StoredTensors]:
    """Configuration and tensors of a release's or a training's file.

    `remedy` is what to do with a file that can't be used. Raises `CheckpointError`.
    """
    config = package.get(CONFIG_KEY) if isinstance(package, dict) else None
    if isinstance(config, str) and _is_state_dict(package.get("best_state")):
        return ConfigSection.from_yaml(config, source), read_state_dict(package["best_state"], source)
    found = find_state(package, source)
    if not isinstance(config, (str, dict)) or found is None or not found[1]:
        raise CheckpointError(f"{source} {_describe_other(package, found, remedy)}")
    # Before the configuration, which may have little to do with an adapter.
    weights = read_trained_state(found[0], source)
    if isinstance(config, str):
        return ConfigSection.from_yaml(config, source), weights
    return ConfigSection.from_mapping(config, source), weights


def _is_state_dict(value: Any) -> bool:
    """Whether it may be a release's state dict: the loader names what is wrong in it."""
    return isinstance(value, dict) and not isinstance(value.get("model"), dict)


def _describe_other(package: Any, found: tuple[Any, str] | None, remedy: str) -> str:
    """What a file is that can't be used, and what to do about it: the rest of a sentence.

    `found` is what `find_state` found in it.
    """
    needed = "a release file has 'xp.cfg', its configuration as YAML, and 'best_state', its tensors"
    if not isinstance(package, dict):
        return f"holds a {type(package).__name__}, not a model; {needed}"
    if is_adapter(package) or any(is_adapter(value) for value in package.values() if isinstance(value, dict)):
        return f"is a LoRA adapter, not a whole model; {MERGE}"
    place = found[1] if found else next((str(key) for key in package if has_tensors(package[key])), None)
    if place:
        return (
            f"is a training checkpoint, whose tensors are in {place[:50]!r}, without the configuration"
            f" ({CONFIG_KEY!r}); {remedy}"
        )
    if found:
        return f"is a bare state dict, without the configuration; {remedy}"
    return f"is not an audiocraft release file; {needed}"


def _resolve(
    name: str, source: str, part: str, needed: Sequence[tuple[str, ...]] = NETWORK_FILES
) -> ModelFiles:
    """The files of a part that comes from elsewhere. Raises `UnavailablePart`.

    Messages say where the name comes from, which the user never typed: it is the `part` of the model in
    `source`.
    """
    try:
        return resolve_part(name, needed)
    except DownloadError as error:
        raise UnavailablePart(error) from error
    except MusicGenError as error:
        reason = "neither a folder nor a repository" if isinstance(error, UsageError) else str(error)
        refused = CheckpointError(
            f"{source} names {name[:200]!r} as its {part}: {reason.partition(';')[0]}; put the files there,"
            " or write a repository's name (t5-base, facebook/encodec_32khz, ...) into the file instead"
        )
        raise UnavailablePart(refused) from error


def _read_text_encoder_name(config: ConfigSection, has_weights: bool) -> str:
    """The Hub name of the model's T5, after a check that its conditioners and their fusion are supported.

    `has_weights`: the model's own file has the weights of its T5.
    """
    conditioners = config.section("conditioners")
    names = [name for name in conditioners.keys if name != "args"]  # `args` is for training
    for name in names:
        kind = conditioners.section(name).string("model")
        if (name, kind) not in (("description", "t5"), *(("self_wav", kind) for kind in AUDIO_CONDITIONERS)):
            raise conditioners.error(
                name, f"is a {shown(kind)} condition; only text by T5, melody and style are supported"
            )
    if "description" not in names:
        raise conditioners.error("description", "is missing; only models conditioned on text are supported")
    fuser, has_audio = config.section("fuser"), "self_wav" in names
    fuser.require("cross", [] if has_audio else ["description"])
    fuser.require("prepend", ["self_wav", "description"] if has_audio else [], [])
    for method in ("sum", "input_interpolate"):
        fuser.require(method, [], [])
    fuser.require("cross_attention_pos_emb", False, False)
    t5 = conditioners.section("description").section("t5")
    if t5.boolean("finetune", False) and not has_weights:
        raise t5.error(
            "finetune",
            "is true: its text encoder was trained with the rest, and the file lacks its weights"
            f" ({T5_PREFIX}...); save them too, or train with finetune: false, which keeps the released one",
        )
    t5.require("normalize_text", False, False)
    return t5.name("name")


def _load_audio_conditioner(
    config: ConfigSection, lm: LMConfig, weights: StoredTensors, sample_rate: int, source: str
) -> tuple[AudioConditioner | None, StyleParams]:
    """The conditioner on melody or style, of `self_wav`'s weights, and the default style parameters."""
    conditioners = config.section("conditioners")
    kind = conditioners.section("self_wav").string("model") if "self_wav" in conditioners else None
    if kind == "chroma_stem":
        weights.pop("chroma.spec.window", None)  # a constant, rounded
        chroma = ChromaConfig.from_audiocraft(config)
        return melody_conditioner(
            chroma, lm.dim, pop_prefix(weights, "output_proj.") | weights, source
        ), StyleParams()
    if kind == "style":
        mert = _load_mert()
        style = StyleConfig.from_audiocraft(config, mert.config.dim)
        # The configuration names a size only; the weights show how many layers that is.
        layers = {match[1] for name in weights if (match := _STYLE_LAYER.match(name))}
        if layers:
            style = replace(style, num_layers=min(len(layers), int(LAYERS.maximum)))
        encoder = build_network(StyleEncoder, style, weights, mx.float32, source)
        return StyleConditioner(mert, encoder, sample_rate), StyleParams.from_audiocraft(config)
    if weights:
        raise CheckpointError(f"{source} doesn't fit its configuration: it has weights of self_wav")
    return None, StyleParams()


def _load_mert() -> MERT:
    return load_network(
        _resolve(MERT_REPO, "a style model", "features of music"), MERT, MERTConfig.from_transformers
    )


def _read_stereo(config: ConfigSection) -> tuple[bool, int | None]:
    """Whether the codebooks of two channels are interleaved, and how many are used per channel."""
    interleave = config.section("interleave_stereo_codebooks")
    interleave.require("per_timestep", False, False)
    used = (
        config.integer("compression_model_n_q", within=CODEBOOKS)
        if "compression_model_n_q" in config
        else None
    )
    return interleave.boolean("use", False), used


def _find_codec(model_files: ModelFiles, config: ConfigSection) -> Encodec:
    """The codec beside the model, or else the one that its configuration names."""
    if CODEC_FILE in model_files.files:
        return _load_codec(model_files)
    name = config.name("compression_model_checkpoint", "")
    if not name.startswith(_PRETRAINED):
        raise CheckpointError(
            f"{model_files.name} has no {CODEC_FILE}, and its configuration names no public codec"
            f" ({name!r}); put the codec's {CODEC_FILE} beside {LM_FILE}"
        )
    return _load_codec_by_name(name.removeprefix(_PRETRAINED), model_files.name, 1)


def _load_codec_by_name(name: str, source: str, hops: int) -> Encodec:
    """The codec that `source` names; it was found by following this many names."""
    if hops > _MAX_HOPS:
        raise CheckpointError(
            f"{source} names a codec that names another, and so on; give a model with its own"
        )
    model_files = _resolve(name, source, "codec", [(CODEC_FILE, *TRANSFORMERS_WEIGHTS)])
    if CODEC_FILE in model_files.files:
        return _load_codec(model_files, hops)
    return load_network(model_files, Encodec, EncodecConfig.from_transformers)


def _load_codec(model_files: ModelFiles, hops: int = 0) -> Encodec:
    path = model_files.local_path(CODEC_FILE)
    package = read_training_file(path)
    if isinstance(package, dict) and isinstance(package.get("pretrained"), str):
        name = ConfigSection(package, str(path)).name("pretrained")
        return _load_codec_by_name(name, str(path), hops + 1)
    config, weights = _parse_package(package, str(path), _EXPORT_CODEC)
    return build_network(Encodec, EncodecConfig.from_audiocraft(config), weights, mx.float32, str(path))
