"""The tensors of a checkpoint's files: torch's and safetensors, single or sharded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from audiocraft_mlx.checkpoints.build import StoredTensors
from audiocraft_mlx.checkpoints.model_files import ModelFiles, check_readable, read_error
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
from audiocraft_mlx.configs import shown, shown_text
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights
from audiocraft_mlx.ops.cpu.extension import map_tensors

# Far above what any model has.
_MAX_JSON_BYTES = 32 * 2**20
_MAX_TENSORS = 100_000
_MAX_NAME_LENGTH = 1024

_DTYPES = {
    "U32": mx.uint32,
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
}
"""Of the tensors in files that this program writes."""

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


MERGE = (
    "give its folder, with adapter_config.json and adapter_model.safetensors, to --lora, or merge it into its"
    " model (`merge_and_unload`, then `save_pretrained`) and give that folder"
)
"""What to do with an adapter in place of a model."""


def read_transformers_weights(
    model_files: ModelFiles, is_wanted: Callable[[str], bool] = lambda name: True
) -> StoredTensors:
    """All tensors of a transformers repository whose name `is_wanted`. Raises `CheckpointError`."""
    for layout in TRANSFORMERS_WEIGHTS:
        if layout in model_files.files:
            break
    else:
        raise CheckpointError(f"{model_files.name} has no weights: none of {', '.join(TRANSFORMERS_WEIGHTS)}")
    files = _shards(model_files, layout, is_wanted) if layout.endswith(".json") else {layout: set()}
    stored: StoredTensors = {}
    for name, expected in files.items():
        path = model_files.local_path(name)
        tensors: StoredTensors = (
            {**read_safetensors(path)}
            if name.endswith(".safetensors")
            else read_state_dict(read_torch_file(path), name)
        )
        missing = sorted(expected - tensors.keys())
        if missing:
            names = ", ".join(map(shown_text, missing[:5]))
            raise CheckpointError(f"{path} lacks {names}, which {layout} lists in it")
        _check_not_wrapped(tensors, str(path))
        stored |= {key: tensor for key, tensor in tensors.items() if is_wanted(key)}
    return stored


def read_state_dict(state: Any, source: str) -> StoredTensors:
    """The tensors of a network's state dict from `read_torch_file`.

    Raises `CheckpointError` for any other value.
    """
    tensors = _tensors_of(state, source)
    _check_not_wrapped(tensors, source)
    return tensors


def read_adapter_tensors(path: Path) -> StoredTensors:
    """All tensors of an adapter's file, safetensors or torch's. Raises `CheckpointError`."""
    if path.suffix == ".safetensors":
        return {**read_safetensors(path)}
    return _tensors_of(read_torch_file(path), str(path))


def _tensors_of(state: Any, source: str) -> StoredTensors:
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{source} doesn't hold a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise CheckpointError(f"{source}: {shown(str(name))} in its state dict is not a tensor")
    return dict(state)


def is_adapter(names: Iterable[object]) -> bool:
    """Whether tensors of these names are, or have among them, low-rank changes of a model (LoRA)."""
    return any(isinstance(name, str) and ("lora_A" in name or "lora_B" in name) for name in names)


def _check_not_wrapped(names: Collection[str], source: str) -> None:
    """Refuse an adapter, and a network that was saved inside of a wrapper, whose name is in each tensor's."""
    if is_adapter(names):
        raise CheckpointError(f"{source} is a LoRA adapter, not a whole model; {MERGE}")
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
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too long")
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
        names = ", ".join(map(shown_text, unknown[:5]))
        raise CheckpointError(f"{model_files.name} lacks {names}, which {index} lists")
    return files


def read_safetensors(path: Path) -> Weights:
    """All tensors of a file, lazy: their data is read when it is first used. Raises `CheckpointError`."""
    check_readable(path)
    try:
        _check_header(path)
        tensors = mx.load(str(path), format="safetensors")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _incomplete(path, error) from error
    return cast(Weights, tensors)


def map_safetensors(path: Path) -> Weights:
    """The same tensors, where this machine can, as the file's own memory: nothing is copied.

    For files that are written by this program, as a whole and once: the tensors change with their file.
    """
    check_readable(path)
    try:
        _check_header(path)
        header, start = _read_header(path)
        places = [
            (start + entry["data_offsets"][0], entry["shape"], _DTYPES[entry["dtype"]])
            for entry in header.values()
            if entry["dtype"] in _DTYPES
        ]
        # Files of older versions aren't aligned.
        if len(places) == len(header) and all(offset % dtype.size == 0 for offset, _, dtype in places):
            tensors = map_tensors(str(path), places)
            if tensors is not None:
                return dict(zip(header, tensors, strict=True))
    except (SafetensorError, OSError, ValueError) as error:
        raise _incomplete(path, error) from error
    except RuntimeError:  # a file system that can't map files, or a limit of the address space
        pass
    return read_safetensors(path)


def _check_header(path: Path) -> None:
    """Raise an error unless the header is valid and the data complete: those who read it don't look."""
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        if len(names) > _MAX_TENSORS or any(len(name) > _MAX_NAME_LENGTH for name in names):
            raise ValueError("too many tensors, or too long names")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a valid file, and where its data begins."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _incomplete(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete safetensors file ({shown_text(str(error))}); download it again"
    )
