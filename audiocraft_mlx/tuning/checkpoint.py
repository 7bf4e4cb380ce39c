"""`checkpoint-N`: all that a training needs to go on exactly, and an adapter that can be used as it is.

In the folder are the adapter in PEFT's format (all weights, if all are trained, in mlx-lm's), the optimizer's
state, and `training.json` with the options, what tells data and model apart, and the losses so far.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audiocraft_mlx.checkpoints.adapter_writing import (
    PeftConfig,
    read_peft_matrices,
    read_tensors,
    write_full_weights,
    write_peft_adapter,
    write_tensors,
)
from audiocraft_mlx.checkpoints.adapters import MLX_LM_FILE
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.files import write_folder, write_text
from audiocraft_mlx.networks.weights import Weights
from audiocraft_mlx.tuning.codes import EncodedDataset
from audiocraft_mlx.tuning.history import History
from audiocraft_mlx.tuning.lora import lora_matrices, peft_targets, set_lora_matrices
from audiocraft_mlx.tuning.options import TrainingOptions, option_name
from audiocraft_mlx.tuning.trainable import Trainable

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training.json"
_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{1,9})")
KEPT = 3
"""Checkpoints that stay."""
# They say when something is written, and don't change the weights.
_FREE_OPTIONS = frozenset({"save_every", "sample_every", "steps_per_eval"})


@dataclass(frozen=True)
class Identity:
    """What a training's weights depend on, beside its steps.

    Attributes:
        options: by their names, of JSON's types.
        data: how many crops and texts there are, and a digest of all.
        model: a digest of the weights that it began with.
    """

    options: Mapping[str, Any]
    data: Mapping[str, Any]
    model: str

    def require_same(self, before: Identity, folder: Path) -> None:
        """Raise `UsageError` that says what differs from the training `before`, in `folder`."""
        differing = [
            f"{option_name(name)} was {_shown(before.options.get(name))} and is {_shown(value)}"
            for name, value in self.options.items()
            if name not in _FREE_OPTIONS and before.options.get(name) != value
        ]
        if differing:
            raise UsageError(
                f"--resume: {'; '.join(differing)}: give the options that the training in {folder} began"
                " with, or another --output"
            )
        if self.model != before.model:
            raise UsageError(
                f"--resume: the model isn't the one that the training in {folder} began with; give that one,"
                " or another --output"
            )
        if self.data != before.data:
            counts = [
                f"{before.data.get(name)} {name.replace('_', ' ')} were there, now {value}"
                for name, value in self.data.items()
                if name != "digest" and before.data.get(name) != value
            ]
            what = ", ".join(counts) or "other audio or captions"
            raise UsageError(
                f"--resume: the data aren't those that the training in {folder} began with ({what}); bring"
                " them back, or give another --output"
            )


def options_as_json(options: TrainingOptions, **others: Any) -> dict[str, Any]:
    """The options by their names on the command line."""
    values = asdict(options)
    lora = values.pop("lora")
    values["full"] = lora is None
    return json.loads(json.dumps(values | (lora or {}) | others))  # tuples become lists


def data_identity(encoded: EncodedDataset) -> dict[str, Any]:
    total = hashlib.sha256()
    for split in (encoded.train, encoded.validation):
        total.update(f"{len(split)}".encode())
        for crop in split:
            total.update(f"{crop.codes.shape} {crop.text}".encode() + crop.codes.tobytes())
    for text in encoded.texts:
        total.update(f"{text.shape}".encode() + text.tobytes())
    return {
        "crops_to_train": len(encoded.train),
        "crops_to_validate": len(encoded.validation),
        "texts": len(encoded.texts),
        "digest": total.hexdigest(),
    }


def write_weights(folder: Path, trainable: Trainable, options: TrainingOptions) -> None:
    """The adapter, or all trained weights in mlx-lm's format, into `folder`. Raises `OutputError`."""
    if options.lora is None:
        write_full_weights(folder, trainable.base_model, trainable.trained_weights)
        return
    matrices = lora_matrices(trainable.network, trainable.places)
    config = PeftConfig(
        trainable.base_model,
        trainable.revision,
        options.lora.rank,
        options.lora.alpha,
        options.lora.dropout,
        peft_targets(options.lora, matrices),
    )
    write_peft_adapter(folder, config, matrices)


def write_state(folder: Path, step: int, identity: Identity, history: History) -> None:
    """`training.json`. Raises `OutputError`."""
    value = {"format_version": _VERSION, "step": step, **asdict(identity), "history": history.to_json()}
    write_text(folder / STATE_FILE, json.dumps(value) + "\n")


def save_checkpoint(
    folder: Path,
    step: int,
    trainable: Trainable,
    options: TrainingOptions,
    optimizer: Weights,
    identity: Identity,
    history: History,
) -> Path:
    """Write `checkpoint-{step}` into `folder`, whole or not at all, and remove old ones.

    Raises `OutputError`.
    """
    target = folder / f"checkpoint-{step}"

    def write(temporary: Path) -> None:
        write_weights(temporary, trainable, options)
        write_tensors(temporary / OPTIMIZER_FILE, optimizer)
        write_state(temporary, step, identity, history)

    write_folder(target, write)
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """From the first to the last."""
    found = {
        int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    }
    return [found[step] for step in sorted(found)]


@dataclass(frozen=True)
class SavedState:
    """`training.json`."""

    step: int
    identity: Identity
    history: History


def read_state(folder: Path) -> SavedState:
    """Raises `CheckpointError` if it isn't whole."""
    path = folder / STATE_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format_version"] != _VERSION:
            raise ValueError(f"format_version {value['format_version']}")
        identity = Identity(dict(value["options"]), dict(value["data"]), str(value["model"]))
        return SavedState(int(value["step"]), identity, History.from_json(value["history"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def load_weights(folder: Path, trainable: Trainable, options: TrainingOptions) -> Weights:
    """Put the weights of a checkpoint into the network; the optimizer's state.

    Raises `CheckpointError` if it isn't whole.
    """
    try:
        if options.lora is None:
            weights = read_tensors(folder / MLX_LM_FILE)
            if {name: weight.shape for name, weight in weights.items()} != {
                name: weight.shape for name, weight in trainable.trained_weights.items()
            }:
                raise ValueError("it has other weights")
            trainable.network.load_weights(list(weights.items()), strict=False)
        else:
            set_lora_matrices(trainable.network, trainable.places, read_peft_matrices(folder))
        return read_tensors(folder / OPTIMIZER_FILE)
    except (ValueError, KeyError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return CheckpointError(
        f"{folder} isn't a whole checkpoint ({reason}); remove it to go on from the one before"
    )


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "on", False: "off"}[value]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
