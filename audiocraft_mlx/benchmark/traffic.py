"""The bytes that a step of the code transformer has to read: what the memory's bandwidth sets a limit to."""

from __future__ import annotations

from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.weights import flat_parameters


def weight_bytes(lm: LM, rows: int) -> int:
    """Of the weights, in a step of `rows` sequences."""
    weights = flat_parameters(lm)
    table = weights["embed.weight"]
    # One line of each codebook's table. The context's keys and values were made before the first step.
    read = [
        weight
        for name, weight in weights.items()
        if name != "embed.weight" and ".cross_attn.kv_proj." not in name
    ]
    gathered = rows * lm.config.num_codebooks * table.shape[1] * table.itemsize
    return sum(weight.nbytes for weight in read) + gathered


def cache_bytes(state: DecoderState, positions: int) -> int:
    """Of the keys and values of both attentions, in a step that looks at `positions` positions."""
    capacity = state.positions.shape[0]
    allocated = sum(cache.nbytes for cache in state.caches)
    contexts = sum(array.nbytes for context in state.contexts if context is not None for array in context)
    return allocated * positions // capacity + contexts
