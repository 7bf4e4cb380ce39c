"""Our own format, in mlx-lm's way: a folder whose weights have the names and layouts of our networks.

`config.json` holds the networks' configurations and the defaults for generation; `lm.safetensors`,
`text_encoder.safetensors` (T5 and its projection), `codec.safetensors` and, for models conditioned on melody
or style, `audio_conditioner.safetensors` hold the weights; `tokenizer.json` is T5's. With an entry
`quantization` in the configuration, as mlx-lm's, the linear layers are in MLX's affine layout. Where that is
possible 16 of their outputs lie side by side (`TiledQuantizedLinear`): as the extension for CPUs reads them,
so that it can use the file's own memory.

Version 4 is that of models which fill masks (MAGNeT), with `masked` in the configuration; others are still
written as version 3, which programs before it read. In version 2 no outputs lie side by side. Version 1 also
differs in three names, which are mapped when it is read: the file `listener.safetensors`, the key `origin`,
and the LM's layer `heads`.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from audiocraft_mlx.checkpoints.bundle import (
    CONFIG_FILE,
    ModelBundle,
    load_projection,
    melody_conditioner,
    select_codebooks,
)
from audiocraft_mlx.checkpoints.evaluation import evaluate_beside, second_stream
from audiocraft_mlx.checkpoints.finite import all_finite, not_finite_error
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_card import model_card
from audiocraft_mlx.checkpoints.model_files import ModelFiles
from audiocraft_mlx.checkpoints.quantization import quantization_of, use_quantized_layers
from audiocraft_mlx.checkpoints.quantization_config import Quantization
from audiocraft_mlx.checkpoints.tensors import map_safetensors
from audiocraft_mlx.checkpoints.tokenizer import TOKENIZER_FILE, read_tokenizer
from audiocraft_mlx.conditioning.chroma import LENGTH, N_CHROMA, N_FFT, ChromaConfig
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.prepend import AudioConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import (
    CARDINALITY,
    CHANNELS,
    CODEBOOKS,
    DS_FACTOR,
    HEADS,
    HIDDEN_WIDTH,
    KERNEL,
    LAYERS,
    NORM_EPS,
    SAMPLE_RATE,
    SEGMENT_SECONDS,
    VOCABULARY,
    WIDTH,
    ConfigSection,
    Range,
)
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.masked import MaskedParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import write_folder, write_into_folder
from audiocraft_mlx.networks.encodec import (
    DILATION_BASE,
    FEW_LAYERS,
    RATIOS,
    Encodec,
    EncodecConfig,
    InterleavedStereoCodec,
    read_pad_mode,
    read_ratios,
)
from audiocraft_mlx.networks.lm import (
    DELAYS,
    DIM,
    LM,
    SPAN_LENGTH,
    SUBCODES_CONTEXT,
    LMConfig,
    read_delays,
    read_num_heads,
)
from audiocraft_mlx.networks.t5 import BUCKETS, HEAD_DIM, MAX_DISTANCE, T5Config, T5Encoder, read_buckets
from audiocraft_mlx.networks.weights import (
    Weights,
    dtype_name,
    flat_parameters,
    load_strict,
    pop_prefix,
    quantized_parameters,
    rename,
)
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.ops.linear import tile_quantized_layers

if TYPE_CHECKING:
    from audiocraft_mlx.networks.style_encoder import StyleConfig

FORMAT = "musicgen-mlx"
VERSION = 4
_VERSION_WITHOUT_MASKS = 3
LM_FILE = "lm.safetensors"
TEXT_FILE = "text_encoder.safetensors"
CODEC_FILE = "codec.safetensors"
AUDIO_CONDITIONER_FILE = "audio_conditioner.safetensors"
SOURCE_REPO_KEY = "source_repo"
WEIGHTS_FILE_KEY = "weights_file"
LORA_KEY = "lora"
"""The adapters whose changes are in the weights."""
README_FILE = "README.md"

_UNSIGNED = {2: mx.uint16, 4: mx.uint32}
_T5_PREFIX, _PROJECTION_PREFIX = "t5.", "output_proj."
_MERT_PREFIX, _STYLE_PREFIX = "mert.", "style."
_Config = TypeVar("_Config")

# Of version 1.
_V1_AUDIO_CONDITIONER_FILE = "listener.safetensors"
_V1_SOURCE_REPO_KEY = "origin"
_V1_LM_NAMES = [(r"^heads\.", "lm_heads.")]


def load_model(model_files: ModelFiles, config: ConfigSection, dtype: mx.Dtype, lazy: bool) -> ModelBundle:
    """The lazy model in `model_files`, whose `config.json` is `config`, its LM's weights as `dtype`.

    Unless `lazy`, its codec's weights are begun with: they are computed beside the rest of the loading.

    Raises `CheckpointError` or `DownloadError`.
    """
    config.require("format", FORMAT)
    version = config.integer("format_version")
    if version > VERSION:
        raise config.error(
            "format_version", f"is newer than this program knows ({VERSION}); update musicgen-mlx"
        )
    lm_config = _read_lm_config(config.section("lm"))
    t5_config = _read_t5_config(config.section("text_encoder"))
    codec_config = _read_codec_config(config.section("codec"))
    max_duration = config.number("max_duration", within=SEGMENT_SECONDS)
    lm_path, text_path, codec_path = (
        model_files.local_path(name) for name in (LM_FILE, TEXT_FILE, CODEC_FILE)
    )
    codec = Encodec(codec_config)
    with second_stream():
        # The encoder, which text to music never uses, is made float32 by its first use.
        codec_weights = map_safetensors(codec_path)
        load_strict(codec, codec_weights, mx.float32, str(codec_path), as_stored=("encoder.",))
        if not lazy:
            evaluate_beside(list(flat_parameters(codec).values()))
    lm, t5 = LM(lm_config), T5Encoder(t5_config)
    if "quantization" in config:
        section = config.section("quantization")
        quantization = _read_dataclass(Quantization, section)
        try:
            use_quantized_layers(lm, t5, quantization)
        except UsageError as error:
            raise section.error("group_size", f"doesn't fit the model: {error}") from error
        if version >= 3:
            tile_quantized_layers(lm)
            tile_quantized_layers(t5)

    lm_weights = map_safetensors(lm_path)
    if version == 1:
        lm_weights = rename(lm_weights, _V1_LM_NAMES)
    # A step takes a few rows of the embeddings: converting those is cheaper.
    load_strict(lm, lm_weights, dtype, str(lm_path), as_stored=() if on_gpu() else ("embed.",))
    with second_stream():
        text = map_safetensors(text_path)
        projection = pop_prefix(text, _PROJECTION_PREFIX)
        t5_weights = pop_prefix(text, _T5_PREFIX)
        load_strict(t5, t5_weights | text, mx.float32, str(text_path))
        output_proj = load_projection(t5_config, lm_config, {**projection}, str(text_path))
    masked = None if lm_config.causal else _read_masked_params(config.required_section("masked"), lm_config)
    selected = select_codebooks(codec, lm_config, config.boolean("stereo"), None, model_files.name)
    audio_conditioner, style_params = _read_audio_conditioner(
        model_files,
        _V1_AUDIO_CONDITIONER_FILE if version == 1 else AUDIO_CONDITIONER_FILE,
        config,
        lm_config,
        selected.sample_rate,
    )
    source_repo_key = _V1_SOURCE_REPO_KEY if version == 1 else SOURCE_REPO_KEY
    return ModelBundle(
        lm=lm,
        codec=selected,
        text_conditioner=TextConditioner(read_tokenizer(model_files, t5_config.vocab_size), t5, output_proj),
        max_duration=max_duration,
        sampling=_read_dataclass(SamplingParams, config.section("sampling")),
        guidance=_read_dataclass(GuidanceParams, config.section("guidance")),
        masked=masked,
        audio_conditioner=audio_conditioner,
        style_params=style_params,
        source_repo=config.name(source_repo_key) if source_repo_key in config else model_files.source_repo,
        weights_file=config.name(WEIGHTS_FILE_KEY) if WEIGHTS_FILE_KEY in config else None,
        lora=_read_lora(config),
    )


def _read_lora(config: ConfigSection) -> tuple[LoraSpec, ...]:
    try:
        return tuple(LoraSpec.parse(text) for text in config.strings(LORA_KEY, ()))
    except UsageError as error:
        raise config.error(LORA_KEY, f"is wrong: {error}") from error


def _read_audio_conditioner(
    model_files: ModelFiles, filename: str, config: ConfigSection, lm: LMConfig, sample_rate: int
) -> tuple[AudioConditioner | None, StyleParams]:
    if "melody" in config:
        chroma = _read_chroma_config(config.section("melody"))
        path = model_files.local_path(filename)
        return melody_conditioner(chroma, lm.dim, {**map_safetensors(path)}, str(path)), StyleParams()
    if "style" not in config:
        return None, StyleParams()
    # Imported here: only the style model has them.
    from audiocraft_mlx.networks.mert import MERT, MERTConfig
    from audiocraft_mlx.networks.style_encoder import StyleEncoder

    style = config.section("style")
    mert_section, encoder_section = style.section("mert"), style.section("encoder")
    mert = MERT(_read_dataclass(MERTConfig, mert_section).checked(mert_section))
    encoder = StyleEncoder(_read_style_config(encoder_section, mert.config.dim, lm.dim))
    path = model_files.local_path(filename)
    weights = map_safetensors(path)
    encoder_weights = pop_prefix(weights, _STYLE_PREFIX)
    load_strict(mert, pop_prefix(weights, _MERT_PREFIX) | weights, mx.float32, str(path))
    load_strict(encoder, encoder_weights, mx.float32, str(path))
    params = _read_dataclass(StyleParams, style.section("params"))
    return StyleConditioner(mert, encoder, sample_rate), params


def save_model(bundle: ModelBundle, folder: Path, dtype: mx.Dtype) -> int:
    """Write a model as a new folder, atomically, and return its size in bytes.

    Weights that aren't quantized are stored as `dtype`. They replace those of `bundle`'s networks, so that
    there are never two copies of all of them. The codec is stored as float32 or float16
    (docs/QUANTIZATION.md).

    Raises:
        CheckpointError: weights are NaN or infinite.
        OutputError: the folder can't be written; see `files.check_new_folder`.
        UsageError: `dtype` can't hold a weight, or the model wasn't loaded with `lazy=True`.
    """
    bundle.require_file_layout("saving")
    size = 0

    def write_files(temporary: Path) -> None:
        nonlocal size
        _write_files(bundle, temporary, folder.resolve().name, dtype)
        size = sum(file.stat().st_size for file in temporary.iterdir())

    write_folder(folder, write_files)
    return size


def save_model_into(bundle: ModelBundle, folder: Path, dtype: mx.Dtype) -> None:
    """`save_model` into a folder that has other things in it, each file atomically and `config.json` last."""
    bundle.require_file_layout("saving")
    write_into_folder(
        folder,
        lambda temporary: _write_files(bundle, temporary, folder.resolve().name, dtype),
        last=CONFIG_FILE,
    )


def _write_files(bundle: ModelBundle, folder: Path, name: str, dtype: mx.Dtype) -> None:
    codec_dtype = mx.float32 if dtype == mx.float32 else mx.float16
    text_conditioner = bundle.text_conditioner
    for network in (bundle.lm, text_conditioner.t5):
        tile_quantized_layers(network)
    _save(folder / LM_FILE, _cast_weights("", bundle.lm, dtype, "lm."))
    text = _cast_weights(_T5_PREFIX, text_conditioner.t5, dtype)
    if text_conditioner.output_proj is not None:
        text |= _cast_weights(_PROJECTION_PREFIX, text_conditioner.output_proj, dtype)
    _save(folder / TEXT_FILE, text)
    _save(folder / CODEC_FILE, _cast_weights("", bundle.mono_codec, codec_dtype, "codec."))
    if bundle.audio_conditioner is not None:
        _save(folder / AUDIO_CONDITIONER_FILE, _audio_conditioner_weights(bundle.audio_conditioner, dtype))
    (folder / TOKENIZER_FILE).write_text(text_conditioner.tokenizer.to_str(), encoding="utf-8")
    card = model_card(
        name, bundle.source_repo, quantization_of(bundle.lm), dtype, bundle.weights_file, bundle.lora
    )
    (folder / README_FILE).write_text(card, encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(_config(bundle), indent=2) + "\n", encoding="utf-8")


def _config(bundle: ModelBundle) -> dict[str, Any]:
    quantization = quantization_of(bundle.lm)
    version = _VERSION_WITHOUT_MASKS if bundle.masked is None else VERSION
    config: dict[str, Any] = {"format": FORMAT, "format_version": version}
    if bundle.source_repo is not None:
        config[SOURCE_REPO_KEY] = bundle.source_repo
    if bundle.weights_file is not None:
        config[WEIGHTS_FILE_KEY] = bundle.weights_file
    if bundle.lora:
        config[LORA_KEY] = [str(spec.without_folder()) for spec in bundle.lora]
    if quantization is not None:
        config["quantization"] = dataclasses.asdict(quantization)
    if bundle.masked is not None:
        config["masked"] = dataclasses.asdict(bundle.masked)
    conditioner = bundle.audio_conditioner
    if isinstance(conditioner, MelodyConditioner):
        config["melody"] = dataclasses.asdict(conditioner.config)
    elif conditioner is not None:
        config["style"] = {
            "mert": dataclasses.asdict(conditioner.mert.config),
            "encoder": dataclasses.asdict(conditioner.encoder.config),
            "params": _without_none(bundle.style_params),
        }
    return config | {
        "max_duration": bundle.max_duration,
        "sampling": dataclasses.asdict(bundle.sampling),
        "guidance": _without_none(bundle.guidance),
        "stereo": isinstance(bundle.codec, InterleavedStereoCodec),
        "lm": _lm_config(bundle.lm.config),
        "text_encoder": dataclasses.asdict(bundle.text_conditioner.t5.config),
        "codec": dataclasses.asdict(bundle.mono_codec.config),
    }


def _lm_config(config: LMConfig) -> dict[str, Any]:
    """Without what only models that fill masks have, for the others."""
    own = {"causal", "subcodes_context", "span_len"} if config.causal else set()
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in own}


def _without_none(params: GuidanceParams | StyleParams) -> dict[str, Any]:
    """The fields that aren't None: an absent key is read as None."""
    return {name: value for name, value in dataclasses.asdict(params).items() if value is not None}


def _audio_conditioner_weights(conditioner: AudioConditioner, dtype: mx.Dtype) -> Weights:
    if isinstance(conditioner, MelodyConditioner):
        return _cast_weights("", conditioner.output_proj, dtype, "melody.")
    return _cast_weights(_MERT_PREFIX, conditioner.mert, dtype) | _cast_weights(
        _STYLE_PREFIX, conditioner.encoder, dtype
    )


def _cast_weights(prefix: str, network: nn.Module, dtype: mx.Dtype, label: str | None = None) -> Weights:
    """A network's weights as they are stored, computed one at a time; they replace the network's own.

    `label` stands in front of their names in messages, by default `prefix`, which does in the file.
    """
    label = prefix if label is None else label
    weights, quantized = flat_parameters(network), quantized_parameters(network)
    stored: Weights = {}
    for name in list(weights):
        weight = source = weights.pop(name)
        if name not in quantized:
            weight = weight.astype(dtype)
            network.load_weights([(name, weight)], strict=False)  # frees the wider one, after `source`
        mx.eval(weight)
        if not all_finite(weight).item():
            if name in quantized or not all_finite(source).item():
                raise not_finite_error(label + name, source)
            raise UsageError(
                f"{label}{name} has values that {dtype_name(dtype)} can't hold; convert to float32"
            )
        stored[prefix + name] = weight
    return stored


def _save(path: Path, weights: Weights) -> None:
    # Of types without an equal in NumPy the bytes: the library takes addresses. It aligns tensors, as
    # `map_safetensors` needs them.
    arrays = {
        name: np.ascontiguousarray(weight.view(_UNSIGNED[weight.dtype.size]))
        for name, weight in weights.items()
    }
    specs = {
        name: TensorSpec(
            dtype=dtype_name(weights[name].dtype),
            shape=weights[name].shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    path.touch()
    mode = path.stat().st_mode  # the library's own is 0600
    try:
        serialize_file(specs, path, metadata={"format": "mlx"})
        path.chmod(mode)
    except SafetensorError as error:  # it says why in words only: most often the disk is full
        raise OSError(errno.ENOSPC, f"{path.name} could be written only in part") from error


def _read_chroma_config(section: ConfigSection) -> ChromaConfig:
    config = _read_dataclass(ChromaConfig, section)
    if config.hop_length > config.n_fft:
        raise section.error("hop_length", f"is {config.hop_length}; at most {config.n_fft} is supported")
    return config


def _read_lm_config(section: ConfigSection) -> LMConfig:
    config = _read_dataclass(LMConfig, section)
    read_num_heads(section, "num_heads", config.num_heads, config.dim)
    if config.dim not in DIM:
        raise section.error("dim", f"is {config.dim}, not {DIM}")
    read_delays(section, "delays", config.num_codebooks)
    return config


def _read_masked_params(section: ConfigSection, lm: LMConfig) -> MaskedParams:
    params = _read_dataclass(MaskedParams, section)
    try:
        params.require_codebooks(lm.num_codebooks)
    except UsageError as error:
        raise section.error("decoding_steps", f"is invalid: {error}") from error
    return params


def _read_t5_config(section: ConfigSection) -> T5Config:
    config = _read_dataclass(T5Config, section)
    read_buckets(section, "num_buckets", "max_distance")
    return config


def _read_codec_config(section: ConfigSection) -> EncodecConfig:
    read_ratios(section, "ratios")
    config = _read_dataclass(EncodecConfig, section)
    read_pad_mode(section)
    return config.checked(section)


def _read_style_config(section: ConfigSection, feature_dim: int, output_dim: int) -> StyleConfig:
    from audiocraft_mlx.networks.style_encoder import StyleConfig

    config = _read_dataclass(StyleConfig, section)
    for key, value, expected in (
        ("feature_dim", config.feature_dim, feature_dim),
        ("output_dim", config.output_dim, output_dim),
    ):
        if value != expected:
            raise section.error(key, f"is {value}, not {expected}, as the network's that it belongs to")
    read_num_heads(section, "num_heads", config.num_heads, config.dim)
    return config


# MaskedParams has the same, and checks them; here they are read.
_DECODING_STEPS = Range(1, 10_000)
# The range of each field, in all of the networks' configurations. The classes of parameters check theirs.
_RANGES = {
    "num_codebooks": CODEBOOKS,
    "cardinality": CARDINALITY,
    "dim": WIDTH,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "hidden_dim": HIDDEN_WIDTH,
    "delays": DELAYS,
    "subcodes_context": SUBCODES_CONTEXT,
    "span_len": SPAN_LENGTH,
    "decoding_steps": _DECODING_STEPS,
    "vocab_size": VOCABULARY,
    "head_dim": HEAD_DIM,
    "num_buckets": BUCKETS,
    "max_distance": MAX_DISTANCE,
    "norm_eps": NORM_EPS,
    "sample_rate": SAMPLE_RATE,
    "channels": CHANNELS,
    "dimension": WIDTH,
    "num_filters": WIDTH,
    "num_residual_layers": FEW_LAYERS,
    "ratios": RATIOS,
    "kernel_size": KERNEL,
    "last_kernel_size": KERNEL,
    "residual_kernel_size": KERNEL,
    "dilation_base": DILATION_BASE,
    "compress": WIDTH,
    "num_lstm_layers": FEW_LAYERS,
    "n_chroma": N_CHROMA,
    "n_fft": N_FFT,
    "hop_length": N_FFT,
    "length": LENGTH,
    "conv_dims": WIDTH,
    "conv_kernels": KERNEL,
    "conv_strides": KERNEL,
    "position_kernel": KERNEL,
    "position_groups": WIDTH,
    "feature_dim": WIDTH,
    "output_dim": WIDTH,
    "ds_factor": DS_FACTOR,
}
_MAX_ENTRIES = 256
_INTEGER = Range(0, 2**31 - 1)
_FLOAT = Range(-1e9, 1e9)


def _read_dataclass(kind: type[_Config], section: ConfigSection) -> _Config:
    """A frozen dataclass of numbers, booleans and strings; every key must be a field, and of its type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in section.keys:
        if name not in fields:
            raise section.error(name, "is unknown")
    readers: dict[str, Callable[[str], Any]] = {
        "int": lambda name: section.integer(name, within=_RANGES.get(name, _INTEGER)),
        "float": lambda name: section.number(name, within=_RANGES.get(name, _FLOAT)),
        "int | None": lambda name: section.integer(name, within=_RANGES.get(name, _INTEGER)),
        "float | None": lambda name: section.number(name, within=_RANGES.get(name, _FLOAT)),
        "bool": section.boolean,
        "str": section.string,
        "tuple[int, ...]": lambda name: section.integers(name, within=_RANGES[name], most=_MAX_ENTRIES),
    }
    values = {
        name: readers[str(field.type)](name)
        for name, field in fields.items()
        # A field with a default may be absent: files written before it was added don't have it.
        if name in section.keys or field.default is dataclasses.MISSING
    }
    try:
        return kind(**values)
    except UsageError as error:
        raise section.error(", ".join(values), f"are invalid: {error}") from error
