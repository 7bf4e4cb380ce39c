"""A decoding step through most of a transformer block as one operation of the native extension.

An operation costs MLX some microseconds to start, and one by one a step has hundreds of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension

FusedBlockStep = Callable[[mx.array, mx.array, mx.array, mx.array | None, int, mx.array | None], mx.array]
"""From a block's queries, keys and values to its output.

Its arguments: `x` `[B, 1, dim]`; `qkv` `[B, 1, 3 * dim]`; the cache `[B, 2 * heads, capacity, head_dim]` and,
if it is int8, its scales; the number of its positions to attend to, the step's own included; and bool
`[B, length]`, False where it may not attend to, or None.
"""


class FusedLayers:
    """All layers of a `networks.lm.LM` for single steps. It writes into the caches that it is given."""

    def __init__(self, layers: Sequence[nn.Module], steps: Sequence[FusedBlockStep]) -> None:
        self._layers = layers
        self._steps = steps

    def __call__(self, x: mx.array, mask: mx.array | None, caches: Sequence[Any]) -> mx.array:
        """`[B, 1, dim]` → the same shape. `mask` is that of the self-attention, `caches` are `KVCache`s."""
        visible = None if mask is None else mask.reshape(len(x), -1)
        for layer, cache, step in zip(self._layers, caches, self._steps, strict=True):
            qkv = extension.linear(layer.self_attn.qkv_proj, x, norm=layer.norm1)
            assert qkv is not None  # `fuse_layers` has looked
            position = cache.advance(1) - 1
            cache.keys_values = write_kv(cache.keys_values, qkv, position)
            if cache.scales is not None:
                cache.scales = write_kv(cache.scales, qkv, position)
            x = step(x, qkv, cache.keys_values, cache.scales, position + 1, visible)
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


def write_kv(cache: mx.array, qkv: mx.array, position: int) -> mx.array:
    """`cache`, or an int8 cache's scales, with a step's keys and values in it; see `FusedBlockStep`."""
    kernels = extension.load_extension()
    assert kernels is not None
    written: mx.array = kernels.write_kv(cache, qkv, position)
    return written
