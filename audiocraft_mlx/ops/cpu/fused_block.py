"""A decoding step through most of a transformer block as one operation of the native extension.

An operation costs MLX some microseconds to start, and one by one a step has hundreds of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension

FusedBlockStep = Callable[
    [mx.array, mx.array, mx.array, mx.array | None, Sequence[int], Sequence[int]], mx.array
]
"""From a block's queries, keys and values to its output.

Its arguments: `x` `[B, 1, dim]`; `qkv` `[B, 1, 3 * dim]`; the cache `[slots, 2 * heads, capacity, head_dim]`
and, if it is int8, its scales; and of each row the positions that it attends to, from the first number to
before the second, the step's own included.
"""


class FusedLayers:
    """All layers of a `networks.lm.LM` for single steps. It writes into the caches that it is given."""

    def __init__(self, layers: Sequence[nn.Module], steps: Sequence[FusedBlockStep]) -> None:
        self._layers = layers
        self._steps = steps

    def __call__(
        self, x: mx.array, caches: Sequence[Any], starts: Sequence[int], ends: Sequence[int]
    ) -> mx.array:
        """`[B, 1, dim]` → the same shape. `caches` are `KVCache`s; see `FusedBlockStep` for the rest."""
        places = [end - 1 for end in ends]
        for layer, cache, step in zip(self._layers, caches, self._steps, strict=True):
            qkv = extension.linear(layer.self_attn.qkv_proj, x, norm=layer.norm1)
            assert qkv is not None  # `fuse_layers` has looked
            cache.keys_values = write_kv(cache.keys_values, qkv, places)
            if cache.scales is not None:
                cache.scales = write_kv(cache.scales, qkv, places)
            x = step(x, qkv, cache.keys_values, cache.scales, starts, ends)
        return x


def fuse_layers(
    layers: Sequence[nn.Module],
    rows: int,
    cross_kv: Sequence[tuple[mx.array, mx.array]],
    cross_mask: mx.array | None,
) -> FusedLayers | None:
    """Single steps of `rows` rows through `layers`, `networks.lm.Block`s without RoPE.

    None where the extension can't compute all of them: it isn't there, a layer is in training mode or of
    another type (an adapter, say). For `cross_kv` and `cross_mask` see `networks.cache.DecoderState`.
    """
    kernels = extension.cpu_extension()
    if kernels is None:
        return None
    steps = []
    for index, layer in enumerate(layers):
        step = _fuse_block(kernels, layer, rows, cross_kv[index] if cross_kv else None, cross_mask)
        if step is None:
            return None
        steps.append(step)
    return FusedLayers(layers, steps)


def _fuse_block(
    kernels: Any,
    layer: nn.Module,
    rows: int,
    cross_kv: tuple[mx.array, mx.array] | None,
    cross_mask: mx.array | None,
) -> FusedBlockStep | None:
    linears = [layer.self_attn.qkv_proj, layer.self_attn.out_proj, layer.linear1, layer.linear2]
    if cross_kv is not None:
        linears += [layer.cross_attn.q_proj, layer.cross_attn.out_proj]
    weights = [extension.weights(linear, rows) for linear in linears]
    if layer.training or layer.norm2.weight.dtype != mx.float32 or None in weights:
        return None

    def norm(own: nn.LayerNorm) -> object:
        return kernels.FusedNorm(own.weight, own.bias, own.eps)

    out, linear1, linear2, *of_cross = (kernels.FusedLinear(**own) for own in weights[1:] if own is not None)
    cross = None
    if cross_kv is not None:
        mask = None if cross_mask is None else cross_mask.reshape(rows, -1)
        cross = kernels.FusedCrossAttention(norm(layer.norm_cross), *of_cross, *cross_kv, mask)
    step: FusedBlockStep = kernels.FusedBlockStep(
        layer.self_attn.num_heads, out, cross, norm(layer.norm2), linear1, linear2
    )
    return step


def write_kv(cache: mx.array, qkv: mx.array, positions: Sequence[int]) -> mx.array:
    """`cache`, or an int8 cache's scales, with a step's keys and values in it; see `FusedBlockStep`.

    `positions` are where those of each row come.
    """
    kernels = extension.load_extension()
    assert kernels is not None
    written: mx.array = kernels.write_kv(cache, qkv, positions)
    return written
