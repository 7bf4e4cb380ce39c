"""mlx-lm's adapters: `adapters.safetensors` with the names of our networks, and all of its arguments.

A name is that of a layer in a model's `lm`, or begins with a network: `lm.`, `t5.`, `output_proj.`,
`melody.`. Read are the fine-tune types lora, dora and full.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.adapter_changes import Change, LowRank, Place, Replacement, Target
from audiocraft_mlx.configs import ConfigSection, Range, shown, shown_text
from audiocraft_mlx.networks.weights import Weights

BASE_KEY = "model"

_RANK = Range(1, 2**16)
_SCALE = Range(-1e6, 1e6)
_A, _B, _MAGNITUDE = "lora_a", "lora_b", "m"


def read_changes(config: ConfigSection, tensors: Weights, target: Target, faults: list[str]) -> list[Change]:
    """As `peft.read_changes`."""
    kind = config.string("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise config.error("fine_tune_type", f"is {shown(kind)}; only lora, dora and full are supported")
    parameters = config.section("lora_parameters")
    layers: dict[str, Weights] = {}
    changes: list[Change] = []
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if kind != "full" and part in (_A, _B, _MAGNITUDE):
            layers.setdefault(layer, {})[part] = tensor
        else:
            change = _replacement(name, tensor, target, faults)
            if change is not None:
                changes.append(change)
    if layers:
        rank, scale = parameters.integer("rank", 8, _RANK), parameters.number("scale", 20.0, _SCALE)
        for layer, parts in layers.items():
            change = _low_rank_change(layer, parts, rank, scale, kind == "dora", target, faults)
            if change is not None:
                changes.append(change)
    return changes


def _place(name: str, target: Target) -> Place:
    network, _, rest = name.partition(".")
    return Place(network, rest) if network in target.networks and rest else Place("lm", name)


def _replacement(name: str, tensor: mx.array, target: Target, faults: list[str]) -> Change | None:
    place = _place(name, target)
    shape = target.shape_at(place)
    if shape is None:
        faults.append(f"{shown_text(name)} is unexpected")
    elif tensor.shape != shape:
        faults.append(f"{shown_text(name)} has shape {list(tensor.shape)} instead of {list(shape)}")
    else:
        return Change(place, Replacement(tensor))
    return None


def _low_rank_change(
    layer: str,
    parts: Weights,
    rank: int,
    scale: float,
    has_magnitude: bool,
    target: Target,
    faults: list[str],
) -> Change | None:
    place = _place(f"{layer}.weight", target)
    shape = target.shape_at(place)
    if shape is None or len(shape) != 2:
        faults.append(f"{shown_text(layer)} is unexpected")
        return None
    rows, columns = shape
    module = dict(target.networks[place.network].named_modules())[place.parameter.rpartition(".")[0]]
    is_embedding = isinstance(module, nn.Embedding)
    inputs, outputs = (rows, columns) if is_embedding else (columns, rows)
    expected = {_A: [inputs, rank], _B: [rank, outputs]}
    if has_magnitude:
        expected[_MAGNITUDE] = [rows]
    found = len(faults)
    faults += [f"{shown_text(layer)}.{part} is missing" for part in expected if part not in parts]
    for part, tensor in parts.items():
        if part not in expected:
            faults.append(f"{shown_text(layer)}.{part} is unexpected")
        elif list(tensor.shape) != expected[part]:
            faults.append(
                f"{shown_text(layer)}.{part} has shape {list(tensor.shape)} instead of {expected[part]}"
            )
    if len(faults) > found:
        return None
    up, down = (parts[_A], parts[_B]) if is_embedding else (parts[_B].T, parts[_A].T)
    return Change(place, LowRank(up, down, scale, parts.get(_MAGNITUDE)))
