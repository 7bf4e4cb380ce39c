"""Loads a model of whatever class its checkpoint is."""

from __future__ import annotations

from typing import Any

from audiocraft_mlx.models.genmodel import GenModel, OtherModelClass


def load_model(model_class: type[GenModel], name: str, **options: Any) -> GenModel:
    """As `model_class.get_pretrained`, but a MAGNeT's checkpoint gives a MAGNeT.

    Raises what `get_pretrained` does.
    """
    try:
        return model_class.get_pretrained(name, **options)
    except OtherModelClass as error:
        from audiocraft_mlx.models.magnet import MAGNeT

        return MAGNeT(error.name, error.bundle, error.cache_bits)
