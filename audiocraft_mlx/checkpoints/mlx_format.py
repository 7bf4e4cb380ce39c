"""Our own format: a folder that loads at once, with the weights as the networks want them.

`config.json` has everything that it takes to build the networks; `lm.safetensors`, `text_encoder.safetensors`
(T5 and its projection), `codec.safetensors` and, where melody or style is heard, `listener.safetensors` have
their weights under the networks' own names, and `tokenizer.json` is T5's. An entry `quantization` in the
configuration, as mlx-lm has it, says that the linear layers are in MLX's affine layout.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.bundle import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    ModelBundle,
    lm_dtype,
    load_projection,
    melody_conditioner,
    read_tokenizer,
    select_codebooks,
)
from audiocraft_mlx.checkpoints.model_card import model_card
from audiocraft_mlx.checkpoints.model_files import ModelFiles
from audiocraft_mlx.checkpoints.quantization import Quantization, quantization_of, quantize_layers
from audiocraft_mlx.checkpoints.tensors import read_safetensors
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.prepend import AudioConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig, InterleavedStereoCodec
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.mert import MERT, MERTConfig
from audiocraft_mlx.networks.style_encoder import StyleConfig, StyleEncoder
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import (
    Weights,
    dtype_name,
    flat_parameters,
    load_strict,
    pop_prefix,
    quantized_parameters,
)

FORMAT = "musicgen-mlx"
VERSION = 1
LM_FILE = "lm.safetensors"
TEXT_FILE = "text_encoder.safetensors"
CODEC_FILE = "codec.safetensors"
AUDIO_CONDITIONER_FILE = "listener.safetensors"
README_FILE = "README.md"

_T5_PREFIX, _PROJECTION_PREFIX = "t5.", "output_proj."
_MERT_PREFIX, _STYLE_PREFIX = "mert.", "style."
_Config = TypeVar("_Config")


def is_mlx_format(config: ConfigSection) -> bool:
    """Whether a `config.json` is of this format, of any version."""
    return "format" in config


def read(source: ModelFiles, config: ConfigSection) -> ModelBundle:
    """The model in `source`, whose `config.json` is `config`; see `load_strict` for when weights are read.

    Raises `CheckpointError` or `DownloadError`.
    """
    config.require("format", FORMAT)
    if config.integer("format_version") > VERSION:
        raise config.error(
            "format_version", f"is newer than this program knows ({VERSION}); update musicgen-mlx"
        )
    lm_config = _read_lm_config(config.section("lm"))
    t5_config = _read_t5_config(config.section("text_encoder"))
    codec_config = _read_codec_config(config.section("codec"))
    max_duration = config.number("max_duration")
    if not 0 < max_duration < math.inf:
        raise config.error("max_duration", f"is {max_duration:g}, not a number of seconds")

    lm, t5, codec = LM(lm_config), T5Encoder(t5_config), Encodec(codec_config)
    if "quantization" in config:
        section = config.section("quantization")
        quantization = _read_dataclass(Quantization, section)
        try:
            quantize_layers(lm, t5, quantization)
        except UsageError as error:
            raise section.error("group_size", f"doesn't fit: {error}") from error

    lm_path, text_path, codec_path = (source.local_path(name) for name in (LM_FILE, TEXT_FILE, CODEC_FILE))
    load_strict(lm, read_safetensors(lm_path), lm_dtype(), str(lm_path))
    text = read_safetensors(text_path)
    projection = pop_prefix(text, _PROJECTION_PREFIX)
    t5_weights = pop_prefix(text, _T5_PREFIX)
    load_strict(t5, t5_weights | text, mx.float32, str(text_path))
    load_strict(codec, read_safetensors(codec_path), mx.float32, str(codec_path))
    stereo = config.boolean("stereo")
    fitted = select_codebooks(codec, lm_config, stereo, None, source.name)
    audio_conditioner, style_params = _read_audio_conditioner(source, config, lm_config, fitted.sample_rate)
    return ModelBundle(
        lm=lm,
        codec=fitted,
        text_conditioner=TextConditioner(
            read_tokenizer(source), t5, load_projection(t5_config, lm_config, projection, str(text_path))
        ),
        max_duration=max_duration,
        sampling=_read_dataclass(SamplingParams, config.section("sampling")),
        guidance=_read_dataclass(GuidanceParams, config.section("guidance")),
        audio_conditioner=audio_conditioner,
        style_params=style_params,
        source_repo=config.string("origin") if "origin" in config else source.source_repo,
    )


def _read_audio_conditioner(
    source: ModelFiles, config: ConfigSection, lm: LMConfig, sample_rate: int
) -> tuple[AudioConditioner | None, StyleParams]:
    if "melody" in config:
        chroma = _read_chroma_config(config.section("melody"))
        path = source.local_path(AUDIO_CONDITIONER_FILE)
        return melody_conditioner(chroma, lm.dim, read_safetensors(path), str(path)), StyleParams()
    if "style" not in config:
        return None, StyleParams()
    style = config.section("style")
    mert = MERT(_read_dataclass(MERTConfig, style.section("mert")))
    encoder = StyleEncoder(_read_dataclass(StyleConfig, style.section("encoder")))
    path = source.local_path(AUDIO_CONDITIONER_FILE)
    weights = read_safetensors(path)
    own = pop_prefix(weights, _STYLE_PREFIX)
    load_strict(mert, pop_prefix(weights, _MERT_PREFIX) | weights, mx.float32, str(path))
    load_strict(encoder, own, mx.float32, str(path))
    params = _read_dataclass(StyleParams, style.section("params"))
    return StyleConditioner(mert, encoder, sample_rate), params


def check_folder(folder: Path) -> None:
    """Make sure, before anything is loaded, that `write` can make `folder`.

    Raises:
        OutputError: it has something in it, is no folder, or there is no folder that it could be in.
    """
    try:
        parent = folder.resolve().parent
        if not parent.is_dir():
            raise OutputError(f"{folder} can't be written: there is no folder {parent}; create it")
        if folder.is_dir():
            if any(folder.iterdir()):
                raise OutputError(f"{folder} is not empty; choose another folder, or remove it first")
        elif os.path.lexists(folder):
            raise OutputError(f"{folder} is a file; choose another name for the folder")
        probe = _temporary_beside(folder)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _not_written(folder, error) from error


def write(checkpoint: ModelBundle, folder: Path, dtype: mx.Dtype) -> int:
    """Write a model as a new folder, which appears complete or not at all, and return its size in bytes.

    What isn't quantized is stored as `dtype` and the checkpoint's networks take it on, so that there are
    never two copies of all weights; the codec is stored as float32 or float16 (docs/QUANTIZATION.md).

    Raises:
        OutputError: the folder can't be written.
        UsageError: `dtype` can't hold a weight.
    """
    check_folder(folder)
    temporary = _temporary_beside(folder)
    codec_dtype = mx.float32 if dtype == mx.float32 else mx.float16
    conditioner = checkpoint.text_conditioner
    try:
        temporary.mkdir()
        _save(temporary / LM_FILE, _stored("", checkpoint.lm, dtype))
        text = _stored(_T5_PREFIX, conditioner.t5, dtype)
        if conditioner.output_proj is not None:
            text |= _stored(_PROJECTION_PREFIX, conditioner.output_proj, dtype)
        _save(temporary / TEXT_FILE, text)
        _save(temporary / CODEC_FILE, _stored("", checkpoint.mono_codec, codec_dtype))
        if checkpoint.audio_conditioner is not None:
            _save(
                temporary / AUDIO_CONDITIONER_FILE,
                _audio_conditioner_weights(checkpoint.audio_conditioner, dtype),
            )
        (temporary / TOKENIZER_FILE).write_text(conditioner.tokenizer.to_str(), encoding="utf-8")
        card = model_card(
            folder.resolve().name, checkpoint.source_repo, quantization_of(checkpoint.lm), dtype
        )
        (temporary / README_FILE).write_text(card, encoding="utf-8")
        # The last one: without it, the rest isn't taken for a model.
        (temporary / CONFIG_FILE).write_text(
            json.dumps(_config(checkpoint), indent=2) + "\n", encoding="utf-8"
        )
        size = sum(file.stat().st_size for file in temporary.iterdir())
        os.replace(temporary, folder.resolve())
    except BaseException as error:  # an interruption leaves nothing either
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _not_written(folder, error) from error
        raise
    return size


def _config(checkpoint: ModelBundle) -> dict[str, Any]:
    quantization = quantization_of(checkpoint.lm)
    config: dict[str, Any] = {"format": FORMAT, "format_version": VERSION}
    if checkpoint.source_repo is not None:
        config["origin"] = checkpoint.source_repo
    if quantization is not None:
        config["quantization"] = dataclasses.asdict(quantization)
    listener = checkpoint.audio_conditioner
    if isinstance(listener, MelodyConditioner):
        config["melody"] = dataclasses.asdict(listener.config)
    elif listener is not None:
        config["style"] = {
            "mert": dataclasses.asdict(listener.mert.config),
            "encoder": dataclasses.asdict(listener.encoder.config),
            "params": _without_none(checkpoint.style_params),
        }
    return config | {
        "max_duration": checkpoint.max_duration,
        "sampling": dataclasses.asdict(checkpoint.sampling),
        "guidance": _without_none(checkpoint.guidance),
        "stereo": isinstance(checkpoint.codec, InterleavedStereoCodec),
        "lm": dataclasses.asdict(checkpoint.lm.config),
        "text_encoder": dataclasses.asdict(checkpoint.text_conditioner.t5.config),
        "codec": dataclasses.asdict(checkpoint.mono_codec.config),
    }


def _without_none(parameters: GuidanceParams | StyleParams) -> dict[str, Any]:
    """What isn't None."""
    return {name: value for name, value in dataclasses.asdict(parameters).items() if value is not None}


def _audio_conditioner_weights(listener: AudioConditioner, dtype: mx.Dtype) -> Weights:
    if isinstance(listener, MelodyConditioner):
        return _stored("", listener.output_proj, dtype)
    return _stored(_MERT_PREFIX, listener.mert, dtype) | _stored(_STYLE_PREFIX, listener.encoder, dtype)


def _stored(prefix: str, network: nn.Module, dtype: mx.Dtype) -> Weights:
    """A network's weights as they are stored, computed one at a time; the network takes them on."""
    weights, quantized = flat_parameters(network), quantized_parameters(network)
    stored: Weights = {}
    for name in list(weights):
        weight = weights.pop(name)
        if name not in quantized:
            weight = weight.astype(dtype)
            network.load_weights([(name, weight)], strict=False)  # nothing refers to the wider one now
        mx.eval(weight)
        if name not in quantized and dtype != mx.float32 and not mx.isfinite(weight).all():
            raise UsageError(
                f"{prefix}{name} has values that {dtype_name(dtype)} can't hold; convert to float32"
            )
        stored[prefix + name] = weight
    return stored


def _save(path: Path, weights: Weights) -> None:
    try:
        mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    except RuntimeError as error:  # MLX doesn't say why
        raise OSError(errno.EIO, f"{path.name} could be written only in part") from error


def _read_chroma_config(section: ConfigSection) -> ChromaConfig:
    config = _read_dataclass(ChromaConfig, section)
    for key, most in (("n_chroma", 128), ("n_fft", 2**20), ("hop_length", config.n_fft), ("length", 2**16)):
        if getattr(config, key) > most:
            raise section.error(key, f"is {getattr(config, key)}; at most {most} is supported")
    return config


def _read_lm_config(section: ConfigSection) -> LMConfig:
    config = _read_dataclass(LMConfig, section)
    if config.dim % config.num_heads or config.dim // config.num_heads % 2:
        raise section.error("num_heads", f"doesn't divide {config.dim} into heads of even size")
    if len(config.delays) != config.num_codebooks or list(config.delays) != sorted(config.delays):
        raise section.error("delays", f"is not one rising delay for each of {config.num_codebooks} codebooks")
    return config


def _read_t5_config(section: ConfigSection) -> T5Config:
    config = _read_dataclass(T5Config, section)
    if config.num_buckets < 4 or config.max_distance <= config.num_buckets // 4:
        raise section.error("num_buckets", f"is {config.num_buckets}, which doesn't fit max_distance")
    return config


def _read_codec_config(section: ConfigSection) -> EncodecConfig:
    config = _read_dataclass(EncodecConfig, section)
    if config.pad_mode not in ("reflect", "constant"):
        raise section.error(
            "pad_mode", f"is {config.pad_mode!r}; only 'reflect' and 'constant' are supported"
        )
    if not config.ratios or 0 in config.ratios:
        raise section.error("ratios", f"is {list(config.ratios)}, not factors of at least 1")
    return config


_MAY_BE_ZERO = {"top_k", "num_residual_layers", "num_lstm_layers"}


def _read_dataclass(kind: type[_Config], section: ConfigSection) -> _Config:
    """A frozen dataclass of numbers, truths and texts; every key must be a field, and of its type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in section.keys:
        if name not in fields:
            raise section.error(name, "is unknown")
    readers: dict[str, Callable[[str], Any]] = {
        "int": lambda name: section.integer(name, minimum=0 if name in _MAY_BE_ZERO else 1),
        "float": section.number,
        "int | None": section.integer,
        "float | None": section.number,
        "bool": section.boolean,
        "str": section.string,
        "tuple[int, ...]": section.integers,
    }
    values = {
        name: readers[str(field.type)](name)
        for name, field in fields.items()
        # What a later version of the program adds, it must be able to do without.
        if name in section.keys or field.default is dataclasses.MISSING
    }
    try:
        return kind(**values)
    except UsageError as error:
        raise section.error(", ".join(values), f"can't be: {error}") from error


def _temporary_beside(folder: Path) -> Path:
    return folder.resolve().parent / f".musicgen-{secrets.token_hex(8)}.part"


def _not_written(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} can't be written: {error.strerror or error}; free some space or choose another folder"
    )
