"""Where a program for training puts a model's tensors in its file, and what it puts in front of their names.

- audiocraft's `checkpoint.th`: `best_state`, `fsdp_best_state`, `ema` and `model`, beside the state of the
  optimizer and the configuration. The best state is the moving average of the weights at the lowest loss in
  validation, `model` are the last ones. It is chosen as `audiocraft.utils.export` does.
- Lightning's: `state_dict`, each name behind that of the attribute which holds the model.
- Others: `model` alone, or the bare state dict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from audiocraft_mlx.checkpoints.build import StoredTensors
from audiocraft_mlx.checkpoints.inert_objects import GlobalRef
from audiocraft_mlx.checkpoints.tensors import read_state_dict
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError

CONFIG_KEY = "xp.cfg"
_BEST = "best_state"
_PLACES = (
    ("fsdp_best_state", "model"),
    (_BEST, "model"),
    (_BEST,),
    ("ema", "state", "model"),
    ("model",),
    ("state_dict",),
    ("model_state_dict",),
)
"""The first of these that has tensors is the model's state."""

# What torch.compile and FSDP put into names, at the beginning or anywhere, and what DistributedDataParallel
# and the attributes of Lightning's modules put in front of all.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
_PREFIXES = ("module.", "model.", "lm.")


def read_training_file(path: Path) -> object:
    """The content of a release's or a training's torch file, which `find_state` looks into.

    Entries with objects of unknown classes are left out, as `find_state` needs at most one of the others.
    Raises `CheckpointError`.
    """
    return read_torch_file(path, (CONFIG_KEY,))


def find_state(package: object, source: str) -> tuple[dict[str, Any], str] | None:
    """The state dict in a file's content, and where: `best_state.model`, or "" for the whole; or None.

    Raises `CheckpointError` if it would be in an entry with objects of an unknown class. (With FSDP, each
    process' part of the last state has some, and the best state hasn't.)
    """
    if not isinstance(package, dict):
        return None
    for place in _PLACES:
        value: Any = package
        entry = package.get(place[0])
        if isinstance(entry, GlobalRef):
            raise CheckpointError(
                f"{source} asks to run {shown_text(entry.name)} for its {place[0]!r}; a model never needs"
                " that, refusing it"
            )
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if has_tensors(value):
            return value, ".".join(place)
    return (package, "") if has_tensors(package) else None


def has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, LazyTensor) for item in value.values())


def read_trained_state(state: Any, source: str) -> StoredTensors:
    """The tensors of a state dict by the names of the model itself, without those of wrappers.

    Raises `CheckpointError`, also for an adapter.
    """
    if not isinstance(state, dict):
        return read_state_dict(state, source)
    return read_state_dict(unwrapped(state, source), source)


def unwrapped(state: dict[str, Any], source: str) -> dict[str, Any]:
    """`state` without what wrappers put into the names. Raises `CheckpointError` if two names become one."""
    names = {name: _without_infixes(name) if isinstance(name, str) else name for name in state}
    while (prefix := _common_prefix(names.values())) is not None:
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    twice = [short for short, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{source} has the tensor {shown_text(str(twice[0]))} twice, with and without the name of a"
            f" wrapper ({', '.join(_INFIXES)}); remove one of the two"
        )
    return {short: state[name] for name, short in names.items()}


def _without_infixes(name: str) -> str:
    for infix in _INFIXES:
        if infix in name:
            name = name.removeprefix(infix).replace(f".{infix}", ".")
    return name


def _common_prefix(names: Collection[Any]) -> str | None:
    for prefix in _PREFIXES:
        if names and all(isinstance(name, str) and name.startswith(prefix) for name in names):
            return prefix
    return None
