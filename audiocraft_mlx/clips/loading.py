"""Loads the model that makes clips."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN, CommandDefaults

if TYPE_CHECKING:
    from audiocraft_mlx.clips.requests import ModelOptions
    from audiocraft_mlx.models.genmodel import GenModel

_CLASSES = {
    MUSICGEN: ("audiocraft_mlx.models.musicgen", "MusicGen"),
    AUDIOGEN: ("audiocraft_mlx.models.audiogen", "AudioGen"),
}


def load_clip_model(program: CommandDefaults, options: ModelOptions) -> GenModel:
    """Raises what `GenModel.get_pretrained` does."""
    from audiocraft_mlx.models.loading import load_model

    module, name = _CLASSES[program]
    return load_model(
        getattr(import_module(module), name),
        options.name,
        revision=options.revision,
        quantize=options.quantize,
        int8_activations=options.int8_activations,
        cache_bits=options.cache_bits,
        weights=options.weights,
        lora=options.lora,
    )
