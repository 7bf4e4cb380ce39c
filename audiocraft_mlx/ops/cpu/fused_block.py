"""Most of a transformer block's step as one operation: the native extension's, on a CPU.

An operation costs MLX some microseconds to start, and one by one a step has hundreds of them.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension

FusedBlockStep = Callable[[mx.array, mx.array, mx.array, mx.array | None, int, mx.array | None], mx.array]
"""From what the self-attention asks for to the block's end: `x` `[B, 1, dim]`; queries, keys and values in
one `[B, 1, 3 * dim]`; the cache `[B, 2 * heads, capacity, head_dim]` and, if it is in 8 bits, its scales; how
many of its positions are looked at, the step's own included; bool `[B, length]`, False where it may not look,
or None."""


def make_fused_step(
    layer: nn.Module, rows: int, context: tuple[mx.array, mx.array] | None, context_mask: mx.array | None
) -> FusedBlockStep | None:
    """Single steps of `rows` rows through `layer`, a `models.lm.Block`; None where there is no such thing.

    `context` are keys and values of the cross-attention, `context_mask` is bool `[B, 1, 1, T]`.
    """
    kernels = extension.cpu_extension()
    linears = [layer.self_attn.out_proj, layer.linear1, layer.linear2]
    if context is not None:
        linears += [layer.cross_attn.q_proj, layer.cross_attn.out_proj]
    weights = [extension.weights(linear, rows) for linear in linears]
    if kernels is None or layer.norm2.weight.dtype != mx.float32 or None in weights:
        return None

    def norm(own: nn.LayerNorm) -> object:
        return kernels.FusedNorm(own.weight, own.bias, own.eps)

    out, linear1, linear2, *of_context = (kernels.FusedLinear(**own) for own in weights if own is not None)
    cross = None
    if context is not None:
        mask = None if context_mask is None else context_mask.reshape(rows, -1)
        cross = kernels.FusedCrossAttention(norm(layer.norm_cross), *of_context, *context, mask)
    rest: FusedBlockStep = kernels.FusedBlockStep(
        layer.self_attn.num_heads, out, cross, norm(layer.norm2), linear1, linear2
    )
    return rest


def write_kv(cache: mx.array, asked: mx.array, position: int) -> mx.array:
    """`cache`, or an int8 cache's scales, with a step's keys and values in it; see `FusedBlockStep`."""
    kernels = extension.load_extension()
    assert kernels is not None
    written: mx.array = kernels.write_kv(cache, asked, position)
    return written
