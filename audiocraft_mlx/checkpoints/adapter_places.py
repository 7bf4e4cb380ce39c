"""transformers' names of MusicGen's modules and parameters → places in our networks."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlx.core as mx

from audiocraft_mlx.checkpoints.adapter_changes import Change, Place, Replacement, Target
from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights, pop_prefix

_LM, _T5 = "lm", "t5"
_QKV = {"q": 0, "k": 1, "v": 2}
_INDEX = r"(\d{1,4})"
_DECODER, _ENCODER = r"decoder\.model\.decoder\.", r"text_encoder\.encoder\."
_LAYER, _BLOCK = rf"{_DECODER}layers\.{_INDEX}\.", rf"{_ENCODER}block\.{_INDEX}\.layer\."
# Whole layers: network, and our name of it.
_WHOLE = [
    (rf"{_LAYER}self_attn\.out_proj", _LM, r"layers.\1.self_attn.out_proj"),
    (rf"{_LAYER}encoder_attn\.(q|out)_proj", _LM, r"layers.\1.cross_attn.\2_proj"),
    (rf"{_LAYER}fc([12])", _LM, r"layers.\1.linear\2"),
    (rf"{_BLOCK}0\.SelfAttention\.o", _T5, r"layers.\1.attention.out_proj"),
    (rf"{_BLOCK}1\.DenseReluDense\.wi", _T5, r"layers.\1.ff_in"),
    (rf"{_BLOCK}1\.DenseReluDense\.wo", _T5, r"layers.\1.ff_out"),
    (rf"{_ENCODER}block\.0\.layer\.0\.SelfAttention\.relative_attention_bias", _T5, "relative_bias"),
    (rf"{_ENCODER}embed_tokens", _T5, "embed"),
    (r"enc_to_dec_proj", "output_proj", ""),
    (r"audio_enc_to_dec_proj", "melody", ""),
]
_PACKED = [
    (rf"{_LAYER}self_attn\.([qkv])_proj", _LM, "layers.{}.self_attn.qkv_proj"),
    (rf"{_BLOCK}0\.SelfAttention\.([qkv])", _T5, "layers.{}.attention.qkv_proj"),
]
_CROSS_KV = re.compile(rf"{_LAYER}encoder_attn\.([kv])_proj")
_CODEBOOK = re.compile(rf"decoder\.(model\.decoder\.embed_tokens|lm_heads)\.{_INDEX}")
_PARTS = {"decoder.": "lm", "text_encoder.": "t5", "audio_encoder.": "codec"}
"""The networks whose other parameters their own `sanitize` finds."""


def place_of_module(module: str, parameter: str, target: Target) -> Place | None:
    """The place of a module's `weight` or `bias`; None for a module that no low-rank change can be of."""
    for pattern, network, name in _WHOLE:
        match = re.fullmatch(pattern, module)
        if match:
            return Place(network, ".".join(filter(None, (match.expand(name), parameter))))
    for pattern, network, name in _PACKED:
        match = re.fullmatch(pattern, module)
        if match:
            return Place(network, f"{name.format(match[1])}.{parameter}", _QKV[match[2]], 3)
    match = _CROSS_KV.fullmatch(module)
    if match:
        return Place(_LM, f"layers.{match[1]}.cross_attn.kv_proj.{parameter}", _QKV[match[2]] - 1, 2)
    match = _CODEBOOK.fullmatch(module)
    count = target.num_codebooks
    if match and int(match[2]) < count:
        name = "lm_heads" if match[1] == "lm_heads" else "embed"
        return Place(_LM, f"{name}.{parameter}", int(match[2]), count)
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
