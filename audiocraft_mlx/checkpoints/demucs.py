"""htdemucs, the network for source separation, from the files that Demucs publishes."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import safe_open

from audiocraft_mlx.checkpoints.build import StoredTensors, build_network
from audiocraft_mlx.checkpoints.hub_client import shown_endpoint
from audiocraft_mlx.checkpoints.inert_objects import GlobalRef
from audiocraft_mlx.checkpoints.model_files import ALTERNATIVES, check_readable, read_error, resolve_model
from audiocraft_mlx.checkpoints.tensors import read_safetensors, read_state_dict
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.conditioning.melody import MELODIC_STEMS
from audiocraft_mlx.configs import ConfigSection, shown
from audiocraft_mlx.errors import CheckpointError, DownloadError
from audiocraft_mlx.networks.htdemucs import HTDemucs, HTDemucsConfig

# Where Demucs 4.1 and later gets its weights from; the file is named after their training run.
HTDEMUCS_REPO = "adefossez/HTDemucs"
HTDEMUCS_FILE = "955717e8.safetensors"
ENV_VAR = "MUSICGEN_MLX_DEMUCS"
"""Environment variable: a file to use instead, `.safetensors` or, as before version 4.1, `.th`."""

_CLASS = "demucs.htdemucs.HTDemucs"


def load_htdemucs() -> HTDemucs:
    """htdemucs from the file that `MUSICGEN_MLX_DEMUCS` names, else the released one, downloaded if need be.

    Raises `CheckpointError` or `DownloadError`.
    """
    path = _find_file()
    arguments, weights = (_read_safetensors if path.suffix == ".safetensors" else _read_torch)(path)
    section = ConfigSection(arguments, str(path))
    config = HTDemucsConfig.from_demucs(section)
    missing = [name for name in MELODIC_STEMS if name not in config.sources]
    if missing:
        raise section.error("sources", f"lacks {' and '.join(missing)}")
    return build_network(HTDemucs, config, weights, mx.float32, str(path))


def _find_file() -> Path:
    named = os.environ.get(ENV_VAR)
    if named:
        path = Path(named)
        try:
            if path.is_file():
                check_readable(path)
                return path
        except PermissionError as error:  # of a folder above it
            raise read_error(path, error) from error
        raise CheckpointError(
            f"{named}: no such file; {ENV_VAR} must name a file with the weights of htdemucs"
        )
    try:
        return resolve_model(HTDEMUCS_REPO).local_path(HTDEMUCS_FILE)
    except (CheckpointError, DownloadError) as error:
        # Another model is no way out: stems and melodies need this one with each.
        reason = str(error).replace(f", {ALTERNATIVES}", "")
        raise type(error)(
            f"{reason}; source separation needs HTDemucs, which is downloaded once, from"
            f" {shown_endpoint()}/{HTDEMUCS_REPO}; or set {ENV_VAR} to a file with the weights of htdemucs"
        ) from error


def _read_torch(path: Path) -> tuple[dict[str, Any], StoredTensors]:
    """The arguments of the network's class, and its tensors."""
    match read_torch_file(path):
        case {"klass": GlobalRef(name), "args": (), "kwargs": dict(arguments), "state": state}:
            return _arguments(path, name, arguments), read_state_dict(state, str(path))
    raise _unsupported_file(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], StoredTensors]:
    weights: StoredTensors = {**read_safetensors(path)}
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        values = {key: json.loads(metadata[key]) for key in ("args", "kwargs")}
    except (KeyError, ValueError, RecursionError) as error:
        raise _unsupported_file(path) from error
    match values:
        case {"args": [], "kwargs": dict(arguments)}:
            return _arguments(path, metadata.get("klass", ""), arguments), weights
    raise _unsupported_file(path)


def _arguments(path: Path, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name != _CLASS:
        raise CheckpointError(f"{path} holds a {shown(name)}; only {_CLASS} is supported")
    return {key: _without_fraction(value) for key, value in arguments.items()}


def _without_fraction(value: Any) -> Any:
    """A fraction (Demucs stores the seconds of a segment as one) as a float; other values as they are."""
    match value:
        case {"_type": "fraction", "numerator": int(top), "denominator": int(bottom)} if bottom:
            value = Fraction(top, bottom)
    if isinstance(value, Fraction):
        return value.numerator / value.denominator if abs(value) < 2**31 else None
    return value


def _unsupported_file(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a Demucs checkpoint (a class, its arguments and its tensors); download it again"
    )
