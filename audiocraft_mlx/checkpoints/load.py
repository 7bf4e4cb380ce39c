"""A model's name → its networks, whichever format its files have."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import mlx.core as mx

from audiocraft_mlx.checkpoints.adapters import (
    adapter_alone,
    merge_adapters,
    resolve_adapter,
    resolve_base,
)
from audiocraft_mlx.checkpoints.bundle import CONFIG_FILE, ModelBundle, lm_dtype, read_config
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import ModelFiles, resolve_model
from audiocraft_mlx.checkpoints.quantization import quantize
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
from audiocraft_mlx.ops.device import require_mlx_threads

# The files that tell the formats: each has a module of its own, which is imported when it is chosen.
_AUDIOCRAFT_FILE = "state_dict.bin"
# Names that programs for training give to their files.
_WEIGHTS = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")


def load(
    name: str,
    revision: str | None = None,
    quantize_to: int | None = None,
    lazy: bool = False,
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
        lora: adapters that are merged into the weights, one after the other.

    Raises:
        CheckpointError, DownloadError, UsageError: one line that says what is wrong.
        MusicGenError: in a process that was forked after a model was used.
    """
    require_mlx_threads()
    if not lazy:
        patch_mlx_blas()
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
    bundle = _load_files(model_files, mx.float32 if precise else lm_dtype(), lazy)
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


def _load_files(model_files: ModelFiles, dtype: mx.Dtype, lazy: bool) -> ModelBundle:
    # audiocraft's file is preferred where a folder has both: it is half the size.
    if _AUDIOCRAFT_FILE in model_files.files:
        from audiocraft_mlx.checkpoints import audiocraft, transformers

        try:
            return audiocraft.load_model(model_files, dtype)
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
        return f"; its {weights[0]} needs the {CONFIG_FILE} of the model that it was trained from"
    if weights:
        return (
            f"; its {weights[0]} may be a checkpoint of a training: export it with"
            f" audiocraft.utils.export.export_lm as {_AUDIOCRAFT_FILE}"
        )
    return ""


def _load_config(model_files: ModelFiles, dtype: mx.Dtype, lazy: bool) -> ModelBundle:
    config = read_config(model_files)
    if "format" in config:  # ours, in any version
        from audiocraft_mlx.checkpoints import mlx_format

        return mlx_format.load_model(model_files, config, dtype, lazy)
    from audiocraft_mlx.checkpoints import transformers

    return transformers.load_model(model_files, config, dtype)
