"""A model's name → its networks, whichever format its files have."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from audiocraft_mlx.checkpoints.adapters import (
    adapter_alone,
    merge_adapters,
    resolve_adapter,
    resolve_base,
)
from audiocraft_mlx.checkpoints.bundle import CONFIG_FILE, ModelBundle, lm_dtype, read_config
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import LocalFile, ModelFiles, resolve_model
from audiocraft_mlx.checkpoints.quantization import quantize
from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
from audiocraft_mlx.ops.device import require_mlx_threads

if TYPE_CHECKING:
    from audiocraft_mlx.checkpoints.weights_file import TrainedWeights

# The files that tell the formats: each has a module of its own, which is imported when it is chosen.
_AUDIOCRAFT_FILE = "state_dict.bin"
# Those of trainings: audiocraft's own, and of the trainer on Replicate.
_TRAINING_FILES = ("checkpoint.th", "trained_model.tar")
# Names that programs for training give to their files.
_WEIGHTS = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")


def load(
    name: str,
    revision: str | None = None,
    quantize_to: int | None = None,
    lazy: bool = False,
    weights: str | Path | None = None,
    lora: Sequence[LoraSpec] = (),
) -> ModelBundle:
    """Load a model from the Hub or from a folder.

    Args:
        name: a repository on the Hub, one of our short names, or a folder. Of an adapter the model that it
            names is loaded, with the adapter merged into it.
        revision: a branch, tag or commit on the Hub; None for its main branch.
        quantize_to: 4 or 8: quantize the linear layers to that many bits while they are read.
        lazy: leave the weights lazy and precise, for a conversion: each is read and computed when it is first
            used, so that it takes only the memory of the result, and the language model's are float32 on a
            GPU too. `ModelBundle.materialize` computes them.
        weights: a file whose weights take the place of the model's (`weights_file`).
        lora: adapters that are merged into the weights, one after the other.

    Raises:
        CheckpointError, DownloadError, UsageError: one line that says what is wrong.
        MusicGenError: in a process that was forked after a model was used.
    """
    require_mlx_threads()
    if not lazy:
        patch_mlx_blas()
    trained = None if weights is None else _read_weights(Path(weights))
    model_files = resolve_model(name, revision)
    adapters = [(resolve_adapter(spec), spec) for spec in lora]
    alone = adapter_alone(model_files)
    if alone is not None:
        model_files = resolve_base(alone)
        warnings.warn(
            f"{name} is a LoRA adapter; it is merged into its model, {model_files.name}", stacklevel=2
        )
        adapters.insert(0, (alone, LoraSpec(name)))
    # float32 holds all that a file may have; what is converted, merged or quantized isn't rounded before.
    precise = lazy or quantize_to is not None or bool(adapters)
    dtype = mx.float32 if precise else lm_dtype()
    bundle = _load_files(model_files, dtype, lazy)
    if trained is not None:
        trained.load_into(bundle, model_files.name, dtype)
        bundle = replace(bundle, weights_file=shown_text(trained.path.name))
    if adapters:
        bundle = merge_adapters(bundle, adapters, keep_halves=not lazy and quantize_to is None)
    if quantize_to is not None:
        quantize(bundle, quantize_to)
    if precise and not lazy and lm_dtype() != mx.float32:
        bundle.lm.set_dtype(lm_dtype())
    if lazy:
        bundle.use_plain_layout()
    else:
        bundle.materialize()
    return bundle


def _read_weights(path: Path) -> TrainedWeights:
    from audiocraft_mlx.checkpoints.weights_file import read_weights_file

    return read_weights_file(path)


def _load_files(model_files: ModelFiles, dtype: mx.Dtype, lazy: bool) -> ModelBundle:
    audiocraft_file = _audiocraft_file(model_files)
    if audiocraft_file is not None:
        from audiocraft_mlx.checkpoints import audiocraft, transformers

        try:
            return audiocraft.load_model(model_files, dtype, audiocraft_file)
        except (audiocraft.UnavailablePart, DownloadError) as error:
            reason = error.reason if isinstance(error, audiocraft.UnavailablePart) else error
            # transformers' layout, where a folder or the cache has that too, has all parts in its own files.
            if not model_files.has(transformers.NETWORK_FILES, local=True):
                raise reason from reason.__cause__
            try:
                return _load_config(model_files, dtype, lazy)
            except MusicGenError as other:
                raise type(reason)(
                    f"{reason}. {model_files.name} also has {CONFIG_FILE}, transformers' layout, which can't"
                    f" be used instead: {other}"
                ) from error
    if CONFIG_FILE not in model_files.files:
        raise CheckpointError(
            f"{model_files.name} has no MusicGen checkpoint: neither {_AUDIOCRAFT_FILE} (audiocraft)"
            f" nor {CONFIG_FILE} (transformers, or our own format){_describe_others(model_files.files)}"
        )
    return _load_config(model_files, dtype, lazy)


def _audiocraft_file(model_files: ModelFiles) -> str | None:
    """The file in one of audiocraft's formats, if there is one and it is preferred."""
    if isinstance(model_files, LocalFile):
        return model_files.main_file
    # A release's is preferred where a folder has transformers' files too: it is half the size.
    if _AUDIOCRAFT_FILE in model_files.files:
        return _AUDIOCRAFT_FILE
    if CONFIG_FILE in model_files.files:
        return None
    return next((name for name in _TRAINING_FILES if name in model_files.files), None)


def _describe_others(files: frozenset[str]) -> str:
    """What a folder without a checkpoint has instead, and what to do about it: the end of a sentence."""
    inside = sorted(
        {
            name.partition("/")[0]
            for name in files
            if name.endswith((f"/{CONFIG_FILE}", f"/{_AUDIOCRAFT_FILE}"))
        }
    )
    if inside:
        return f"; give the folder in it that has one: {', '.join(inside[:5])}"
    weights = sorted(name for name in files if name.endswith(_WEIGHTS))
    if any(name.endswith(".safetensors") for name in weights):
        return (
            f"; its {weights[0]} needs the {CONFIG_FILE} of the model that it was trained from: put"
            " that beside it, or give that model and the file: -m BASE --weights FILE"
        )
    if weights:
        return (
            f"; its {weights[0]} may be a checkpoint of a training: give the file itself if it has"
            " audiocraft's configuration in it (-m FILE), else also the model that it was trained from"
            " (-m BASE --weights FILE)"
        )
    return ""


def _load_config(model_files: ModelFiles, dtype: mx.Dtype, lazy: bool) -> ModelBundle:
    config = read_config(model_files)
    if "format" in config:  # ours, in any version
        from audiocraft_mlx.checkpoints import mlx_format

        return mlx_format.load_model(model_files, config, dtype, lazy)
    from audiocraft_mlx.checkpoints import transformers

    return transformers.load_model(model_files, config, dtype)
