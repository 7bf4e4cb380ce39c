"""LoRA adapters: a name → its files → changes that are merged into a model's weights.

Read are PEFT's format and mlx-lm's. Merging is in float32, before the weights are quantized or arranged: then
an adapter costs nothing while music is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from audiocraft_mlx.checkpoints import mlx_lm, peft
from audiocraft_mlx.checkpoints.adapter_changes import Change, Target, apply_changes
from audiocraft_mlx.checkpoints.build import read_tensors
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.finite import all_finite
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import ModelFiles, resolve_model
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.checkpoints.tensors import (
    TRANSFORMERS_WEIGHTS,
    read_adapter_tensors,
    read_json,
)
from audiocraft_mlx.configs import ConfigSection, shown, shown_text
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.networks.weights import FLOATS, Weights, dtype_name
from audiocraft_mlx.ops.cpu.extension import cpu_extension

CONFIG_FILE = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MLX_LM_FILE = "adapters.safetensors"
_CHECKPOINT = re.compile(r"(checkpoint-(\d{1,12})/)adapter_config\.json")
"""A folder that a training left, which may be all that there is."""
_SHOWN_FAULTS = 5


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter, in a folder of `files` (with its '/', or empty)."""

    files: ModelFiles
    folder: str

    @property
    def name(self) -> str:
        return self.files.name

    def config(self) -> ConfigSection:
        path = self.files.local_path(self.folder + CONFIG_FILE)
        return ConfigSection(read_json(path), str(path))

    def is_peft(self, config: ConfigSection) -> bool:
        """Whether it has PEFT's format; else mlx-lm's, whose configuration has no type."""
        return peft.TYPE_KEY in config or self.folder + MLX_LM_FILE not in self.files.files

    def has_weights(self) -> bool:
        return any(self.folder + name in self.files.files for name in (*PEFT_FILES, MLX_LM_FILE))

    def weights_path(self, names: Sequence[str]) -> Path:
        for name in names:
            if self.folder + name in self.files.files:
                return self.files.local_path(self.folder + name)
        raise CheckpointError(f"{self.name} has {CONFIG_FILE}, but no weights: none of {', '.join(names)}")


def find_adapter(files: ModelFiles) -> AdapterFiles | None:
    """The adapter among a model's files: at their root, or the last `checkpoint-N` of a training."""
    if CONFIG_FILE in files.files:
        return AdapterFiles(files, "")
    found = [match for name in files.files if (match := _CHECKPOINT.fullmatch(name))]
    return AdapterFiles(files, max(found, key=lambda match: int(match[2]))[1]) if found else None


def adapter_alone(files: ModelFiles) -> AdapterFiles | None:
    """The adapter, if `files` are one and no whole model.

    Beside an adapter there may be the `config.json` of its model.
    """
    adapter = find_adapter(files)
    if adapter is None:
        return None
    return None if _has_model(files) and (adapter.folder or not adapter.has_weights()) else adapter


def _has_model(files: ModelFiles) -> bool:
    return any(name in files.files for name in (*TRANSFORMERS_WEIGHTS, "state_dict.bin", "lm.safetensors"))


def resolve_adapter(spec: LoraSpec) -> AdapterFiles:
    """Find an adapter by its name. Raises what `resolve_model` does."""
    files = resolve_model(spec.name)
    adapter = find_adapter(files)
    if adapter is None:
        raise CheckpointError(
            f"{files.name} is no LoRA adapter: it has no {CONFIG_FILE}; give the folder or the repository of"
            " one (a model is given with -m)"
        )
    if adapter.folder and _has_model(files):
        # Of a training of all weights: what is meant is hardly an earlier state than the model's.
        raise CheckpointError(
            f"{files.name} is a model, not an adapter; give it with -m (or the folder of a checkpoint in it"
            " with --lora)"
        )
    return adapter


def resolve_base(adapter: AdapterFiles) -> ModelFiles:
    """The files of the model that an adapter says it was trained from.

    Raises `CheckpointError` or `DownloadError`: it doesn't say, or there is no such model here.
    """
    config = adapter.config()
    key = peft.BASE_KEY if adapter.is_peft(config) else mlx_lm.BASE_KEY
    give = f"give the model with -m MODEL --lora {adapter.name}"
    name = config.value(key)
    if not name:
        raise CheckpointError(f"{adapter.name} is an adapter that doesn't name its model ({key}); {give}")
    name = config.name(key)
    revision = config.name("revision") if config.value("revision") and not Path(name).is_dir() else None
    try:
        files = resolve_model(name, revision)
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(
            f"{adapter.name} is an adapter of the model {name!r}, which is not here"
            f" ({str(error).partition(';')[0]}); {give}"
        ) from error
    if adapter_alone(files) is not None:
        raise CheckpointError(f"{adapter.name} is an adapter of {name!r}, which is one itself; {give}")
    return files


def merge_adapters(
    bundle: ModelBundle, adapters: Sequence[tuple[AdapterFiles, LoraSpec]], keep_halves: bool
) -> ModelBundle:
    """`bundle` with the changes of the adapters in its lazy weights, one after the other.

    With `keep_halves`, and where that makes it faster, weights that were halves are rounded to halves again.

    Raises:
        CheckpointError: an adapter is damaged, isn't supported, or doesn't fit the model.
        UsageError: the model is quantized.
    """
    quantization = quantization_of(bundle.lm)
    if quantization is not None:
        original = "the model that it was quantized from"
        if bundle.unchanged_repo is not None:
            original += f" ({bundle.unchanged_repo})"
        raise UsageError(
            f"--lora: the model is quantized to {quantization.bits} bits, and adapters are merged into"
            f" precise weights; give {original}, and quantize it with the adapter: -q {quantization.bits}"
        )
    target = Target(bundle)
    changes = [
        (change, spec.weight) for adapter, spec in adapters for change in _read_changes(adapter, target)
    ]
    apply_changes(bundle, changes, keep_halves and cpu_extension() is not None)
    return replace(bundle, lora=(*bundle.lora, *(spec for _, spec in adapters)))


def _read_changes(adapter: AdapterFiles, target: Target) -> list[Change]:
    config = adapter.config()
    faults: list[str] = []
    if adapter.is_peft(config):
        path, base_key, read = adapter.weights_path(PEFT_FILES), peft.BASE_KEY, peft.read_changes
    else:
        path, base_key, read = adapter.weights_path([MLX_LM_FILE]), mlx_lm.BASE_KEY, mlx_lm.read_changes
    changes = read(config, _read_tensors(path), target, faults)
    if faults:
        more = f" and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        base = config.value(base_key)
        trained = f", {shown(base)}" if isinstance(base, str) and base else ""
        raise CheckpointError(
            f"the adapter {adapter.name} doesn't fit the model: {'; '.join(faults[:_SHOWN_FAULTS])}{more};"
            f" give the model that it was trained from{trained}"
        )
    return changes


def _read_tensors(path: Path) -> Weights:
    """The tensors of an adapter, which are floats and finite. Raises `CheckpointError`."""
    stored = read_adapter_tensors(path)
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {shown_text(name)} is of type {dtype_name(tensor.dtype)} instead of float32"
            )
    # A small torch file may have one number as all elements of a huge tensor.
    if sum(math.prod(tensor.shape) for tensor in stored.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} has tensors with more elements than the file has bytes; save it again")
    if not stored:
        raise CheckpointError(f"{path} has no tensors; save the adapter again")
    weights = read_tensors(stored)
    finite = {name: all_finite(weight) for name, weight in weights.items() if weight.size}
    mx.eval(finite)
    for name, value in finite.items():
        if not value.item():
            raise CheckpointError(
                f"{path}: {shown_text(name)} has values that are NaN or infinite: the adapter is damaged, or"
                " its training diverged"
            )
    return weights
