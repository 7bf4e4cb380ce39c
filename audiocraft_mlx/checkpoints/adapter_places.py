"""Where the modules of transformers' MusicGen lie in our networks: for adapters that are read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.checkpoints.adapter_changes import Change, Place, Replacement, Target
from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights, pop_prefix

_LM, _T5, PROJECTION = "lm", "t5", "output_proj"
_LAYER, _BLOCK = "decoder.model.decoder.layers.{}", "text_encoder.encoder.block.{}.layer"
_QKV = ("q", "k", "v")


@dataclass(frozen=True)
class LayerModules:
    """A layer of one of our networks, and the modules of transformers' that it is.

    Attributes:
        network: as `ModelBundle.networks` names it.
        path: of our layer, in the network; empty for a network of a single layer.
        modules: one for each of the equal parts of its rows.
    """

    network: str
    path: str
    modules: tuple[str, ...]

    def at(self, number: int) -> LayerModules:
        """That of block `number`, of names with `{}` in its place."""
        modules = tuple(module.format(number) for module in self.modules)
        return LayerModules(self.network, self.path.format(number), modules)


# `{}` is the number of a block.
_SELF_ATTENTION = (
    LayerModules(
        _LM, "layers.{}.self_attn.qkv_proj", tuple(f"{_LAYER}.self_attn.{part}_proj" for part in _QKV)
    ),
    LayerModules(_LM, "layers.{}.self_attn.out_proj", (f"{_LAYER}.self_attn.out_proj",)),
)
_CROSS_ATTENTION = (
    LayerModules(_LM, "layers.{}.cross_attn.q_proj", (f"{_LAYER}.encoder_attn.q_proj",)),
    LayerModules(
        _LM, "layers.{}.cross_attn.kv_proj", tuple(f"{_LAYER}.encoder_attn.{part}_proj" for part in _QKV[1:])
    ),
    LayerModules(_LM, "layers.{}.cross_attn.out_proj", (f"{_LAYER}.encoder_attn.out_proj",)),
)
_FEED_FORWARD = (
    LayerModules(_LM, "layers.{}.linear1", (f"{_LAYER}.fc1",)),
    LayerModules(_LM, "layers.{}.linear2", (f"{_LAYER}.fc2",)),
)
_TEXT_ENCODER = (
    LayerModules(
        _T5, "layers.{}.attention.qkv_proj", tuple(f"{_BLOCK}.0.SelfAttention.{part}" for part in _QKV)
    ),
    LayerModules(_T5, "layers.{}.attention.out_proj", (f"{_BLOCK}.0.SelfAttention.o",)),
    LayerModules(_T5, "layers.{}.ff_in", (f"{_BLOCK}.1.DenseReluDense.wi",)),
    LayerModules(_T5, "layers.{}.ff_out", (f"{_BLOCK}.1.DenseReluDense.wo",)),
    LayerModules(
        _T5, "relative_bias", ("text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias",)
    ),
    LayerModules(_T5, "embed", ("text_encoder.encoder.embed_tokens",)),
)
_PROJECTIONS = (
    LayerModules(PROJECTION, "", ("enc_to_dec_proj",)),
    LayerModules("melody", "", ("audio_enc_to_dec_proj",)),
)
# `{}` is the number of a codebook: a part of our layer.
_CODEBOOKS = {"embed": "decoder.model.decoder.embed_tokens.{}", "lm_heads": "decoder.lm_heads.{}"}
_PATTERNS = [
    (re.compile(re.escape(module).replace(r"\{\}", r"(\d{1,4})")), layer, part)
    for layer in (*_SELF_ATTENTION, *_CROSS_ATTENTION, *_FEED_FORWARD, *_TEXT_ENCODER, *_PROJECTIONS)
    for part, module in enumerate(layer.modules)
]
_CODEBOOK_PATTERNS = [
    (re.compile(re.escape(module).replace(r"\{\}", r"(\d{1,4})")), path)
    for path, module in _CODEBOOKS.items()
]
_PARTS = {"decoder.": "lm", "text_encoder.": "t5", "audio_encoder.": "codec"}
"""The networks whose other parameters their own `sanitize` finds."""


def lm_places(num_layers: int, num_codebooks: int, cross_attention: bool) -> Iterator[LayerModules]:
    """The linear layers of a `networks.lm.LM`, in its order."""
    block = (*_SELF_ATTENTION, *(_CROSS_ATTENTION if cross_attention else ()), *_FEED_FORWARD)
    for number in range(num_layers):
        for layer in block:
            yield layer.at(number)
    heads = _CODEBOOKS["lm_heads"]
    yield LayerModules(_LM, "lm_heads", tuple(heads.format(k) for k in range(num_codebooks)))


def projection_place() -> LayerModules:
    """The projection of T5's states to the LM's dimension."""
    return _PROJECTIONS[0]


def place_of_module(module: str, parameter: str, target: Target) -> Place | None:
    """The place of a module's `weight` or `bias`; None for a module that no low-rank change can be of."""
    for pattern, layer, part in _PATTERNS:
        match = pattern.fullmatch(module)
        if match:
            path = layer.path.format(*match.groups())
            name = f"{path}.{parameter}" if path else parameter
            return Place(layer.network, name, part, len(layer.modules))
    for pattern, path in _CODEBOOK_PATTERNS:
        match = pattern.fullmatch(module)
        if match and int(match[1]) < target.num_codebooks:
            return Place(_LM, f"{path}.{parameter}", int(match[1]), target.num_codebooks)
    return None


def replacements(tensors: Weights, target: Target, faults: list[str]) -> list[Change]:
    """The changes by tensors that were trained as a whole; those that don't fit are added to `faults`."""
    placed: list[tuple[str, Place, mx.array]] = []
    rest: Weights = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.rpartition(".")
        place = place_of_module(module, parameter, target)
        if place is None:
            rest[name] = tensor
        else:
            placed.append((name, place, tensor))
    for prefix, network in _PARTS.items():
        sanitize: Callable[[Weights], Weights] = target.networks[network].sanitize
        try:
            own = sanitize(pop_prefix(rest, prefix))
        except (CheckpointError, ValueError, IndexError) as error:
            faults.append(str(error))
            continue
        placed += [(f"{prefix}{name}", Place(network, name), tensor) for name, tensor in own.items()]
    faults += [f"{shown_text(name)} is unexpected" for name in rest]
    changes = []
    for name, place, tensor in placed:
        shape = target.shape_at(place)
        if shape is None:
            faults.append(f"{shown_text(name)} is unexpected")
        elif tensor.shape != shape:
            faults.append(f"{shown_text(name)} has shape {list(tensor.shape)} instead of {list(shape)}")
        else:
            changes.append(Change(place, Replacement(tensor)))
    return changes
