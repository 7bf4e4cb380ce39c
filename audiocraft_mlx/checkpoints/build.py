"""A network with its weights, from an upstream state dict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights, check_weights, flat_parameters, load_strict

StoredTensors = dict[str, mx.array | LazyTensor]
"""Tensors that are still in their file: MLX's lazy arrays (safetensors), or places in a torch file."""

# Statistics of training and tables of constants are in files, too, and are dropped: at most about as much as
# the network itself, or this many elements.
_MAX_DROPPED = 2**24

_Network = TypeVar("_Network", bound=nn.Module)


def build_network(
    network_class: Callable[[Any], _Network],
    config: Any,
    tensors: StoredTensors,
    dtype: mx.Dtype,
    source: str,
) -> _Network:
    """`network_class(config)` with `tensors` under upstream's names, as `dtype`; `tensors` is emptied.

    Raises `CheckpointError`, naming `source`, if they don't fit; nothing is read then.
    """
    network = network_class(config)
    load_network_weights(network, tensors, dtype, source, network.sanitize)
    return network


def load_network_weights(
    network: nn.Module,
    tensors: StoredTensors,
    dtype: mx.Dtype,
    source: str,
    sanitize: Callable[[Weights], Weights] = lambda weights: weights,
) -> None:
    """Load `tensors`, renamed and packed by `sanitize`, into `network`; see `build_network`."""
    # What a new network has at random is never computed, but MLX's random state waits for all its keys: 5 KB
    # a layer, which a process that loads models again and again would keep.
    mx.eval(mx.random.state)

    def sanitized(weights: Weights) -> Weights:
        try:
            return sanitize(weights)
        except CheckpointError as error:
            raise CheckpointError(f"{source} doesn't fit its configuration: {error}") from error
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"{source} has tensors of a wrong shape: {error}") from error

    if any(isinstance(tensor, LazyTensor) for tensor in tensors.values()):
        # Zeros in place of the tensors, which are never computed: a file of a few MB may have one tensor
        # under thousands of names.
        outline = {name: mx.zeros(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        check_weights(network, sanitized(outline), source)
        needed = sum(parameter.size for parameter in flat_parameters(network).values())
        stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
        if stored > 2 * needed + _MAX_DROPPED:
            raise CheckpointError(
                f"{source} doesn't fit its configuration: it has {stored} elements, the network {needed}"
            )
    load_strict(network, sanitized(read_tensors(tensors)), dtype, source)


def read_tensors(tensors: StoredTensors) -> Weights:
    """The tensors as arrays; `tensors` is emptied. One that has several names is read once."""
    read: dict[LazyTensor, mx.array] = {}
    weights: Weights = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        if isinstance(tensor, LazyTensor):
            if tensor not in read:
                read[tensor] = tensor.load()
            tensor = read[tensor]
        weights[name] = tensor
    return weights
