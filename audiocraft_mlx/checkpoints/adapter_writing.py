"""What a training leaves: an adapter in PEFT's format, or all weights in mlx-lm's; and read again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx

from audiocraft_mlx.checkpoints.adapters import CONFIG_FILE, MLX_LM_FILE, PEFT_FILES
from audiocraft_mlx.files import write_file, write_text
from audiocraft_mlx.networks.weights import Weights

PEFT_FILE = PEFT_FILES[0]
_NAME = "base_model.model.{}.lora_{}.weight"
_PATTERN = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class LowRankMatrices:
    """Of a module: the change is `scale * b @ a`.

    Attributes:
        a: float32 `[rank, inputs]`.
        b: float32 `[outputs, rank]`.
    """

    a: mx.array
    b: mx.array


@dataclass(frozen=True)
class PeftConfig:
    """What `adapter_config.json` says beside what is the same for all of our adapters.

    Attributes:
        base_model: the model's name, on the Hub if it is there.
        revision: its branch, tag or commit there.
        targets: names of transformers' modules, or what they end in.
    """

    base_model: str
    revision: str | None
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As PEFT writes it: of a whole number an integer."""
        alpha = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha
        return {
            "alpha_pattern": {},
            "auto_mapping": None,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "revision": self.revision,
            "target_modules": list(self.targets),
            "task_type": None,
            "use_dora": False,
            "use_rslora": False,
        }


def write_peft_adapter(folder: Path, config: PeftConfig, matrices: Mapping[str, LowRankMatrices]) -> None:
    """Write an adapter of transformers' modules into `folder`, each file atomically.

    Raises `OutputError`.
    """
    tensors = {
        _NAME.format(module, part): matrix
        for module, own in sorted(matrices.items())
        for part, matrix in (("A", own.a), ("B", own.b))
    }
    # The configuration last: without it there is no adapter.
    write_tensors(folder / PEFT_FILE, tensors)
    _write_json(folder / CONFIG_FILE, config.to_json())


def read_peft_matrices(folder: Path) -> dict[str, LowRankMatrices]:
    """What `write_peft_adapter` wrote there. Raises `ValueError` or `KeyError` for other files."""
    tensors = read_tensors(folder / PEFT_FILE)
    parts: dict[str, dict[str, mx.array]] = {}
    for name, tensor in tensors.items():
        match = _PATTERN.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} is unexpected")
        parts.setdefault(match[1], {})[match[2]] = tensor
    return {module: LowRankMatrices(own["A"], own["B"]) for module, own in parts.items()}


def write_full_weights(folder: Path, base_model: str, weights: Weights) -> None:
    """Write weights that take the place of a model's, in mlx-lm's format, into `folder`.

    Their names are those of our networks, with the network in front. Raises `OutputError`.
    """
    write_tensors(folder / MLX_LM_FILE, weights)
    _write_json(folder / CONFIG_FILE, {"fine_tune_type": "full", "model": base_model})


def write_tensors(path: Path, tensors: Weights, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, atomically. Raises `OutputError`."""
    mx.eval(tensors)

    def save(stream: BinaryIO) -> None:
        mx.save_safetensors(stream, tensors, {"format": "pt", **(metadata or {})})

    write_file(path, save)


def read_tensors(path: Path) -> Weights:
    """Raises `ValueError`: it isn't there, or isn't a safetensors file."""
    try:
        with path.open("rb") as stream:
            loaded = mx.load(stream, format="safetensors")
            mx.eval(loaded)
    except (OSError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} has no named tensors")
    return loaded


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
