"""The optional C++ extension for Linux CPUs (`native/`), if it is there and fits."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.ops.cpu.tiled_linear import MAX_DECODE_ROWS
from audiocraft_mlx.ops.device import on_gpu

VARIABLE = "MUSICGEN_MLX_NATIVE"
ABI_VERSION = 5
"""What the extension's functions are and take: as in native/CMakeLists.txt."""
MAX_FP16_ROWS = 64
"""Up to so many rows the extension is faster than MLX, which first widens a layer's weights to float32."""
GROUP_SIZE = 64
"""Weights that share a scale, in the quantised layers that the extension computes."""
TILE = 16
"""Outputs whose quantised weights lie side by side."""


@cache
def load_extension() -> ModuleType | None:
    """The extension's functions; None where there is none, or where `MUSICGEN_MLX_NATIVE` is `none`.

    One that was built for another MLX or another version of this program is left alone, with a warning.
    """
    if os.environ.get(VARIABLE) == "none":
        return None
    try:
        from audiocraft_mlx_native import _built_for
    except ImportError:
        return None
    try:
        if version("mlx") != _built_for.MLX_VERSION:
            raise ImportError(f"it was built for MLX {_built_for.MLX_VERSION}, this is {version('mlx')}")
        if getattr(_built_for, "ABI_VERSION", 1) != ABI_VERSION:
            raise ImportError("it was built for another version of this program")
        from audiocraft_mlx_native import _extension

        _extension.instruction_set()  # refuses a processor that was named wrongly
        # Built with another nanobind than MLX was, it imports, but its functions take no arrays.
        mx.eval(_extension.elu(mx.zeros(1)))
    except (ImportError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"the native extension isn't used ({reason}); run make install again", stacklevel=2)
        return None
    return _extension


def cpu_extension() -> ModuleType | None:
    """The extension, where MLX computes on the CPU."""
    functions = load_extension()
    return functions if functions is not None and not on_gpu() else None


def float32_extension(x: mx.array) -> ModuleType | None:
    """The extension, where it is used and takes `x`."""
    return cpu_extension() if x.dtype == mx.float32 else None


def weights(layer: nn.Module, rows: int) -> dict[str, Any] | None:
    """What the extension takes a linear layer's weights as; None where MLX does better, or must do it."""
    if isinstance(layer, nn.QuantizedLinear):
        if layer.weight.ndim == 2:  # not in tiles
            return None
        return {
            "w": layer.weight,
            "scales": layer.scales,
            "biases": layer.biases,
            "bits": layer.bits,
            "int8_activations": getattr(layer, "int8_activations", False),
            "bias": layer.get("bias"),
        }
    if rows > {mx.float32: MAX_DECODE_ROWS, mx.float16: MAX_FP16_ROWS}.get(layer.weight.dtype, 0):
        return None
    return {"w": layer.weight, "bias": layer.get("bias")}


def linear(
    layer: nn.Module, x: mx.array, norm: nn.LayerNorm | None, gelu: bool, residual: mx.array | None
) -> mx.array | None:
    """`ops.linear.linear`, in one pass over the weights; None where MLX does better, or must do it."""
    functions = float32_extension(x)
    own = None if functions is None else weights(layer, x.size // x.shape[-1])
    if functions is None or own is None:
        return None
    if norm is not None:
        own.update(norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps)
    y: mx.array = functions.linear(x, gelu=gelu, residual=residual, **own)
    return y


def optimize_layout(layer: nn.Module) -> None:
    """Bring a quantised layer into tiles, if the extension is to compute it; MLX can't do so any more.

    Where several outputs' weights lie side by side, a processor multiplies them at once.
    """
    if (
        isinstance(layer, nn.QuantizedLinear)
        and layer.weight.ndim == 2
        and layer.weight.shape[0] % TILE == 0
        and layer.group_size == GROUP_SIZE
        and layer.bits in (4, 8)
        and layer.scales.dtype in (mx.float16, mx.float32)
    ):
        for part in ("weight", "scales", "biases"):
            layer[part] = _tiles(layer[part])


def _tiles(part: mx.array) -> mx.array:
    """`[outputs, n]` → `[outputs / TILE, n, TILE]`."""
    return mx.contiguous(part.reshape(-1, TILE, part.shape[1]).swapaxes(1, 2))


def store_fp16_if_exact(network: nn.Module) -> None:
    """Keep the weights of linear layers in half precision where that changes none of them.

    Computed with in float32 as before, they take half the time to be read. Released models are made of such.
    """
    if cpu_extension() is None:
        return
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.dtype == mx.float32:
            half = layer.weight.astype(mx.float16)
            if mx.array_equal(half, layer.weight):
                layer.weight = half


def kv_cache_dtype(quantized: bool, dtype: mx.Dtype) -> mx.Dtype:
    """Of keys and values: half precision for a quantised model, where the extension reads it.

    By then they are most of what a step reads; MLX's own attention has no fast half precision on CPUs.
    """
    return mx.float16 if quantized and cpu_extension() is not None else dtype
