"""PEFT's adapters: `adapter_config.json` and the low-rank changes of transformers' modules.

Read are LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024), as PEFT's
`tuners/lora` has them, with layers that were trained as a whole. What changes the model otherwise is refused
by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from audiocraft_mlx.checkpoints.adapter_changes import Change, LowRank, Target
from audiocraft_mlx.checkpoints.adapter_places import place_of_module, replacements
from audiocraft_mlx.checkpoints.module_patterns import ModulePatterns, PatternError
from audiocraft_mlx.configs import ConfigSection, Range, shown, shown_text
from audiocraft_mlx.networks.weights import Weights

BASE_KEY = "base_model_name_or_path"
TYPE_KEY = "peft_type"

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_[AB](?=\.weight$)|lora_embedding_[AB]$|lora_magnitude_vector(?=\.weight$|$))"
    r"(\.weight)?"
)
_Number = TypeVar("_Number", int, float)
_RANK = Range(1, 2**16)
_ALPHA = Range(-1e6, 1e6)
_MAX_NAME = 200

_A, _B, _MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
_EMBEDDING_A, _EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"

# How the matrices were begun. The other ways (pissa, olora, corda, loftq, lora_ga) change the model too.
_INITIALIZATIONS = ("gaussian", "eva", "orthogonal", "mica")
# Methods of other kinds, which must be absent, null, false or empty.
_UNSUPPORTED = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
    "loftq_config",
    "corda_config",
    "lora_ga_config",
    "lora_bias",
    "fan_in_fan_out",
)
# What doesn't change how the tensors are meant, or is read elsewhere.
_KNOWN = (
    *("alpha_pattern", "auto_mapping", "ensure_weight_tying", "eva_config", "exclude_modules"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "modules_to_save"),
    *("rank_pattern", "runtime_config", "target_modules", "use_dora", "use_rslora"),
)


@dataclass(frozen=True)
class _Settings:
    rank: int
    alpha: float
    ranks: ModulePatterns[int]
    alphas: ModulePatterns[float]
    rank_stabilized: bool
    has_magnitudes: bool

    def rank_of(self, module: str) -> int:
        return self.ranks.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_changes(config: ConfigSection, tensors: Weights, target: Target, faults: list[str]) -> list[Change]:
    """The changes that an adapter of this configuration and tensors makes in `target`.

    What has no place or doesn't fit is added to `faults`. Raises `CheckpointError`: it isn't supported.
    """
    settings = _read_settings(config)
    modules: dict[str, Weights] = {}
    whole: Weights = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(_PREFIX)
        match = _LOW_RANK.fullmatch(inner)
        if inner == name or len(name) > _MAX_NAME:
            faults.append(f"{shown_text(name)} is unexpected")
        elif match:
            modules.setdefault(match["module"], {})[match["kind"]] = tensor
        elif ".lora_" in inner:
            faults.append(f"{shown_text(name)} is of a kind that isn't supported")
        else:
            # Of a layer that was trained as a whole, and may have a low-rank change besides.
            whole[inner.replace(".base_layer.", ".")] = tensor
    changes = replacements(whole, target, faults)
    for module, parts in modules.items():
        change = _low_rank_change(module, parts, settings, target, faults)
        if change is not None:
            changes.append(change)
    return changes


def _low_rank_change(
    module: str, parts: Weights, settings: _Settings, target: Target, faults: list[str]
) -> Change | None:
    place = place_of_module(module, "weight", target)
    shape = None if place is None else target.shape_at(place)
    if place is None or shape is None or len(shape) != 2:
        faults.append(f"{shown_text(module)} is unexpected")
        return None
    (rows, columns), rank = shape, settings.rank_of(module)
    is_embedding = _EMBEDDING_A in parts or _EMBEDDING_B in parts
    if is_embedding:
        expected = {_EMBEDDING_A: [rank, rows], _EMBEDDING_B: [columns, rank]}
    else:
        expected = {_A: [rank, columns], _B: [rows, rank]}
    if settings.has_magnitudes:
        expected[_MAGNITUDE] = [columns if is_embedding else rows]
    found = len(faults)
    faults += [f"{module}.{kind} is missing" for kind in expected if kind not in parts]
    for kind, tensor in parts.items():
        if kind not in expected:
            faults.append(f"{module}.{kind} is unexpected")
        elif list(tensor.shape) != expected[kind]:
            faults.append(f"{module}.{kind} has shape {list(tensor.shape)} instead of {expected[kind]}")
    if len(faults) > found:
        return None
    up, down = (parts[_EMBEDDING_A].T, parts[_EMBEDDING_B].T) if is_embedding else (parts[_B], parts[_A])
    axis = 0 if is_embedding else 1
    return Change(place, LowRank(up, down, settings.scale_of(module), parts.get(_MAGNITUDE), axis))


def _read_settings(config: ConfigSection) -> _Settings:
    kind = config.string(TYPE_KEY)
    if kind != "LORA":
        raise config.error(TYPE_KEY, f"is {shown(kind)}; only LORA (with rsLoRA and DoRA) is supported")
    _refuse_other_methods(config)
    return _Settings(
        rank=config.integer("r", 8, _RANK),
        alpha=config.number("lora_alpha", 8, _ALPHA),
        ranks=_read_patterns(config, "rank_pattern", ConfigSection.integer, _RANK),
        alphas=_read_patterns(config, "alpha_pattern", ConfigSection.number, _ALPHA),
        rank_stabilized=config.boolean("use_rslora", False),
        has_magnitudes=config.boolean("use_dora", False),
    )


def _refuse_other_methods(config: ConfigSection) -> None:
    begun = config.value("init_lora_weights")
    if not (begun is None or isinstance(begun, bool) or begun in _INITIALIZATIONS):
        raise config.error(
            "init_lora_weights",
            f"is {shown(begun)}, which changed the model too; convert the adapter to plain LoRA with PEFT"
            " (save_pretrained with path_initial_model_for_weight_conversion)",
        )
    for key in config.keys:
        value = config.value(key)
        # Numbers and texts are settings of what another key switches on.
        is_switch = value is True or isinstance(value, (list, dict))
        if value and (key in _UNSUPPORTED or (is_switch and key not in _KNOWN)):
            raise config.error(key, f"is {shown(value)}, which isn't supported")


def _read_patterns(
    config: ConfigSection, key: str, read: Callable[..., _Number], within: Range
) -> ModulePatterns[_Number]:
    section = config.section(key)
    values = {pattern: read(section, pattern, within=within) for pattern in section.keys}
    try:
        return ModulePatterns(values)
    except PatternError as error:
        raise config.error(key, str(error)) from None
