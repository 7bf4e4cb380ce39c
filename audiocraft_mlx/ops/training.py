"""Operations with gradients, for training: MLX's own on a GPU, faster or smaller equivalents on a CPU.

Each keeps what its gradient needs and not more, and computes the rest once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import on_gpu

QUERY_BLOCK = 256
"""Queries whose scores are in memory at the same time, where MLX computes attention on a CPU."""

Gradients = tuple[mx.array, ...]


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None) -> mx.array:
    """`ops.attention.attention`, differentiable, without ever `[B, heads, S, T]` in memory on a CPU.

    A query that may attend to nothing has no gradient.
    """
    if on_gpu():
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)
    fast = q.dtype == k.dtype == v.dtype == mx.float32
    kernels = extension.cpu_extension() if fast else None
    pair = _blocked_attention(mask) if kernels is None else _native_attention(kernels, mask)
    return _with_gradient(*pair)(q, k, v)[0]


def gelu(x: mx.array) -> mx.array:
    """The exact GELU, with erf."""
    if on_gpu():
        return nn.gelu(x)
    kernels = extension.float32_extension(x)
    if kernels is None:
        return _with_gradient(_gelu, lambda inputs, dy, _: (dy * _gelu_derivative(*inputs),))(x)
    return _with_gradient(kernels.gelu_forward, lambda inputs, dy, _: (kernels.gelu_gradient(*inputs, dy),))(
        x
    )


def layer_norm(norm: nn.LayerNorm, x: mx.array) -> mx.array:
    """`norm(x)`, over the last axis."""
    kernels = extension.float32_extension(x)
    if on_gpu() or kernels is None or "bias" not in norm or norm.weight.dtype != mx.float32:
        y: mx.array = norm(x)
        return y

    def gradient(inputs: Gradients, dy: mx.array, _: object) -> Gradients:
        x, weight, _bias = inputs
        # These two are computed only if the norm is trained.
        axes = tuple(range(x.ndim - 1))
        normal = mx.fast.layer_norm(x, None, None, norm.eps)
        d_weight, d_bias = (dy * normal).sum(axis=axes), dy.sum(axis=axes)
        return kernels.layer_norm_gradient(x, weight, dy, norm.eps), d_weight, d_bias

    return _with_gradient(lambda *inputs: kernels.layer_norm(*inputs, norm.eps), gradient)(
        x, norm.weight, norm.bias
    )


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Of logits `[..., size]` and targets int `[...]`, each below `size`: float32 `[...]`."""
    logits, targets = logits.astype(mx.float32), targets.astype(mx.int32)
    kernels = extension.cpu_extension()
    if kernels is None:
        return nn.losses.cross_entropy(logits, targets)

    def gradient(inputs: Gradients, d_losses: Any, outputs: Any) -> Gradients:
        return (kernels.cross_entropy_gradient(*inputs, targets, outputs[1], d_losses[0]),)

    function = _with_gradient(lambda logits: tuple(kernels.cross_entropy(logits, targets)), gradient)
    losses: mx.array = function(logits)[0]
    return losses


def random_key() -> mx.array:
    """A key for `dropout`, uint32 `[2]`, from MLX's global random state, which is advanced."""
    return mx.random.randint(0, 2**32 - 1, (2,), mx.uint32)


def dropout(x: mx.array, p: float, key: mx.array) -> mx.array:
    """`x / (1 - p)`, but 0 with the probability `p`; of which elements depends on `key`."""
    kernels, key = extension.float32_extension(x), mx.stop_gradient(key)
    if kernels is None:
        return mx.where(mx.random.bernoulli(1 - p, x.shape, key), x * (1 / (1 - p)), 0)

    def apply(x: mx.array) -> mx.array:
        y: mx.array = kernels.dropout(x, key, p)
        return y

    # The gradient goes through the same elements, whose places the key tells.
    return _with_gradient(apply, lambda _inputs, dy, _outputs: (apply(dy),))(x)


def _with_gradient(function: Callable[..., Any], gradient: Callable[..., Gradients]) -> Callable[..., Any]:
    """`function` with a gradient, called with its inputs, its output's gradient and its output."""
    own = mx.custom_function(function)

    @own.vjp
    def vjp(inputs: Any, cotangents: Any, outputs: Any) -> Any:
        inputs = (inputs,) if isinstance(inputs, mx.array) else tuple(inputs)
        gradients = gradient(inputs, cotangents, outputs)
        return gradients[0] if len(inputs) == 1 else gradients

    return own


@partial(mx.compile, shapeless=True)
def _gelu(x: mx.array) -> mx.array:
    return x * _cumulative_normal(x, _exp(-0.5 * mx.square(x)))


@partial(mx.compile, shapeless=True)
def _gelu_derivative(x: mx.array) -> mx.array:
    e = _exp(-0.5 * mx.square(x))
    return _cumulative_normal(x, e) + x * (e / math.sqrt(2 * math.pi))


def _exp(x: mx.array) -> mx.array:
    # On x86 MLX's power takes half the time of its exp.
    return mx.power(math.e, x)


_ERFC = (
    0.225622624,
    0.226636484,
    0.200537294,
    0.198566869,
    0.0678322837,
    0.104936726,
    0.0693790019,
    -0.133349374,
    0.0398381539,
)
"""erfc(z) is exp(-z^2) times the polynomial of t = 1 / (1 + 0.4 z) whose coefficients these are, from t on:
within 2.3e-7 of its value in float32. MLX's own erf takes several times as long on CPUs."""


def _cumulative_normal(x: mx.array, e: mx.array) -> mx.array:
    """The normal distribution's cumulative probability of `x`; `e` is exp(-x^2 / 2)."""
    t = 1 / (1 + (0.4 * 0.5**0.5) * mx.abs(x))
    p: Any = 0.0
    for coefficient in reversed(_ERFC):
        p = p * t + coefficient
    below = 0.5 * e * p * t
    return mx.where(x < 0, below, 1 - below)


def _native_attention(kernels: Any, mask: mx.array | str | None) -> tuple[Callable, Callable]:
    causal, visible = mask == "causal" if isinstance(mask, str) else False, None
    if mask is not None and not isinstance(mask, str):
        visible = mask if mask.ndim == 4 else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)

    def forward(q: mx.array, k: mx.array, v: mx.array) -> Gradients:
        return tuple(kernels.attention_forward(q, k, v, q.shape[-1] ** -0.5, causal, visible))

    def backward(inputs: Gradients, cotangents: Any, outputs: Any) -> Gradients:
        scale = inputs[0].shape[-1] ** -0.5
        return tuple(kernels.attention_backward(*inputs, *outputs, cotangents[0], scale, causal, visible))

    return forward, backward


def _after(x: mx.array, others: list[mx.array]) -> mx.array:
    """`x`, but not before the `others` are computed."""
    return mx.depends([x], others)[0] if others else x


def _blocked_attention(mask: mx.array | str | None) -> tuple[Callable, Callable]:
    """By blocks of queries, with the keys that they see: of causal attention half of the products.

    As in FlashAttention, the backward pass computes the scores once more, and takes the logarithm of the
    softmax's sum of each query from the forward pass.
    """
    causal = isinstance(mask, str)

    def blocks(queries: int, length: int) -> list[tuple[slice, slice]]:
        starts = range(0, queries, QUERY_BLOCK)
        seen = [min(length, length - queries + start + QUERY_BLOCK) if causal else length for start in starts]
        return [
            (slice(start, start + QUERY_BLOCK), slice(0, end))
            for start, end in zip(starts, seen, strict=True)
        ]

    def scores(q: mx.array, k: mx.array, rows: slice, keys: slice) -> mx.array:
        """Of a block, float32 `[B, heads, rows, keys]`."""
        block = (q[:, :, rows] * q.shape[-1] ** -0.5) @ k[:, :, keys].swapaxes(2, 3)
        block = block.astype(mx.float32)
        if causal:
            last = mx.arange(q.shape[2])[rows] + (k.shape[2] - q.shape[2])
            visible = mx.arange(keys.stop) <= last[:, None]
        elif isinstance(mask, mx.array):
            visible = mask[..., rows, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask
        else:
            return block
        return mx.where(visible, block, -math.inf)

    def forward(q: mx.array, k: mx.array, v: mx.array) -> Gradients:
        outs: list[mx.array] = []
        log_sums: list[mx.array] = []
        for rows, keys in blocks(q.shape[2], k.shape[2]):
            # MLX would compute the scores of several blocks before it uses any.
            block = scores(_after(q, outs), k, rows, keys)
            outs.append(mx.softmax(block, axis=-1).astype(v.dtype) @ v[:, :, keys])
            log_sums.append(mx.logsumexp(block, axis=-1, keepdims=True))
        out = mx.concatenate(outs, axis=2).transpose(0, 2, 1, 3)
        return out.reshape(q.shape[0], q.shape[2], -1), mx.concatenate(log_sums, axis=2)

    def backward(inputs: Gradients, cotangents: Any, outputs: Any) -> Gradients:
        q, k, v = inputs
        shape = (q.shape[0], q.shape[2], q.shape[1], q.shape[3])
        d_out = cotangents[0].reshape(shape).transpose(0, 2, 1, 3)
        out = outputs[0].reshape(shape).transpose(0, 2, 1, 3)
        delta = (d_out * out).astype(mx.float32).sum(axis=-1, keepdims=True)
        scale = q.shape[-1] ** -0.5
        d_k, d_v = mx.zeros(k.shape, mx.float32), mx.zeros(v.shape, mx.float32)
        d_q: list[mx.array] = []
        for rows, keys in blocks(q.shape[2], k.shape[2]):
            q = _after(q, [*d_q[-1:], d_k, d_v])
            p = mx.exp(scores(q, k, rows, keys) - outputs[1][:, :, rows])
            d_p = (d_out[:, :, rows] @ v[:, :, keys].swapaxes(2, 3)).astype(mx.float32)
            d_s = (p * (d_p - delta[:, :, rows]) * scale).astype(q.dtype)
            d_q.append(d_s @ k[:, :, keys])
            d_k[:, :, keys] += d_s.swapaxes(2, 3) @ q[:, :, rows]
            d_v[:, :, keys] += p.astype(v.dtype).swapaxes(2, 3) @ d_out[:, :, rows]
        return mx.concatenate(d_q, axis=2), d_k.astype(k.dtype), d_v.astype(v.dtype)

    return forward, backward
