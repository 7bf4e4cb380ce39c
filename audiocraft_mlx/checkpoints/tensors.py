"""The tensors of a checkpoint's files: torch's and safetensors, single or sharded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from audiocraft_mlx.checkpoints.model_files import ModelFiles, check_readable, read_error
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights

TRANSFORMERS_WEIGHTS = (
    # In order of preference: safetensors are read lazily.
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


# What wrappers put in front of tensors' names; what begins with an underscore also into them.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning",
}


def read_transformers_weights(
    model_files: ModelFiles, is_wanted: Callable[[str], bool] = lambda name: True
) -> Weights:
    """All tensors of a transformers repository whose name `is_wanted`. Raises `CheckpointError`."""
    for layout in TRANSFORMERS_WEIGHTS:
        if layout in model_files.files:
            break
    else:
        raise CheckpointError(f"{model_files.name} has no weights: none of {', '.join(TRANSFORMERS_WEIGHTS)}")
    files = _shards(model_files, layout, is_wanted) if layout.endswith(".json") else {layout: set()}
    weights: Weights = {}
    for name, expected in files.items():
        path = model_files.local_path(name)
        tensors: Mapping[str, mx.array | LazyTensor]
        tensors = (
            read_safetensors(path)
            if name.endswith(".safetensors")
            else _lazy_tensors(read_torch_file(path), name)
        )
        missing = sorted(expected - tensors.keys())
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing[:5])}, which {layout} lists in it")
        _check_not_wrapped(tensors, str(path))
        for key, tensor in tensors.items():
            if is_wanted(key):
                weights[key] = tensor.load() if isinstance(tensor, LazyTensor) else tensor
    return weights


def load_state_dict(state: Any, source: str) -> Weights:
    """The tensors of a state dict from `read_torch_file`. Raises `CheckpointError` for any other value."""
    tensors = _lazy_tensors(state, source)
    _check_not_wrapped(tensors, source)
    return {name: tensor.load() for name, tensor in tensors.items()}


def _check_not_wrapped(names: Iterable[str], source: str) -> None:
    """Refuse a network that was saved inside of a wrapper, whose name stands in each tensor's."""
    for name in names:
        for part, wrapper in _WRAPPERS.items():
            if name.startswith(part) or (part[0] == "_" and f".{part}" in name):
                raise CheckpointError(
                    f"{source} was saved inside of {wrapper}, so that its tensors have other names; remove"
                    f" {part!r} from each, and save it again"
                )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises `CheckpointError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} doesn't hold a JSON object; download it again")
    return value


def _shards(model_files: ModelFiles, index: str, is_wanted: Callable[[str], bool]) -> dict[str, set[str]]:
    weight_map = read_json(model_files.local_path(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{model_files.name}: {index} has no usable 'weight_map'; download it again")
    files: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        if is_wanted(key):
            files.setdefault(name, set()).add(key)
    unknown = sorted(files.keys() - model_files.files)
    if unknown:
        raise CheckpointError(f"{model_files.name} lacks {', '.join(unknown[:5])}, which {index} lists")
    return files


def read_safetensors(path: Path) -> Weights:
    """All tensors of a file, lazy: their data is read when it is first used. Raises `CheckpointError`."""
    check_readable(path)
    try:
        # MLX reads the data; the library checks that the header is valid and that the data is complete.
        with safe_open(path, framework="numpy"):
            pass
        tensors = mx.load(str(path), format="safetensors")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); download it again"
        ) from error
    return cast(Weights, tensors)


def _lazy_tensors(state: Any, source: str) -> dict[str, LazyTensor]:
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{source} doesn't hold a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise CheckpointError(f"{source}: {str(name)[:80]!r} in its state dict is not a tensor")
    return state
