"""A network with its weights, from an upstream state dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights, load_strict

_Network = TypeVar("_Network", bound=nn.Module)


def build_network(
    network_class: Callable[[Any], _Network], config: Any, weights: Weights, dtype: mx.Dtype, source: str
) -> _Network:
    """`network_class(config)` with `weights` under upstream's names, as `dtype`; `weights` is emptied.

    Raises `CheckpointError`, naming `source`, if they don't fit.
    """
    network = network_class(config)
    try:
        sanitized = network.sanitize(weights)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{source} has tensors of a wrong shape: {error}") from error
    load_strict(network, sanitized, dtype, source)
    return network
