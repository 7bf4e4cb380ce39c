"""From the files of htdemucs, as Demucs publishes them, to the network that takes music apart."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import safe_open

from audiocraft_mlx.checkpoints.model_files import resolve_model
from audiocraft_mlx.checkpoints.tensors import load_state_dict, read_safetensors
from audiocraft_mlx.checkpoints.torch_pickle import GlobalRef, read_torch_file
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.errors import CheckpointError, DownloadError
from audiocraft_mlx.networks.htdemucs import HTDemucs, HTDemucsConfig
from audiocraft_mlx.networks.weights import Weights, load_strict

# Where Demucs gets its weights from since its version 4.1, and the file named after their training.
REPOSITORY = "adefossez/HTDemucs"
FILE = "955717e8.safetensors"
VARIABLE = "MUSICGEN_MLX_DEMUCS"
"""Environment variable: a file to use instead, `.safetensors` or, as before version 4.1, `.th`."""

_CLASS = "demucs.htdemucs.HTDemucs"


def load_htdemucs() -> HTDemucs:
    """The released htdemucs, downloaded at first, or the one in the file that `MUSICGEN_MLX_DEMUCS` names.

    Raises `CheckpointError` or `DownloadError`.
    """
    path = _find()
    arguments, weights = (_read_safetensors if path.suffix == ".safetensors" else _read_torch)(path)
    where = str(path)
    network = HTDemucs(HTDemucsConfig.from_demucs(ConfigSection(arguments, where)))
    try:
        own = network.sanitize(weights)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{where} has tensors of a wrong shape: {error}") from error
    load_strict(network, own, mx.float32, where)
    return network


def _find() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise CheckpointError(f"{named}: no such file; {VARIABLE} must name one with htdemucs' weights")
        return path
    try:
        return resolve_model(REPOSITORY).local_path(FILE)
    except (CheckpointError, DownloadError) as error:
        raise type(error)(f"{error}; or set {VARIABLE} to a file with htdemucs' weights") from error


def _read_torch(path: Path) -> tuple[dict[str, Any], Weights]:
    """The arguments that the network was built with, and its tensors."""
    match read_torch_file(path):
        case {"klass": GlobalRef(name), "args": (), "kwargs": dict(arguments), "state": state}:
            return _arguments(path, name, arguments), load_state_dict(state, str(path))
    raise _unsupported_file(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Weights]:
    weights = read_safetensors(path)
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
        raise CheckpointError(f"{path} holds a {name[:100]!r}; only {_CLASS} is supported")
    return {key: _without_fraction(value) for key, value in arguments.items()}


def _without_fraction(value: Any) -> Any:
    """The seconds of a segment, which Demucs has as a fraction, as a float; other values as they are."""
    match value:
        case {"_type": "fraction", "numerator": int(top), "denominator": int(bottom)} if bottom:
            value = Fraction(top, bottom)
    if isinstance(value, Fraction):
        return value.numerator / value.denominator if abs(value) < 2**31 else None
    return value


def _unsupported_file(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a file of Demucs' (a class, its arguments and its tensors); download it again"
    )
