"""The optional C++ extension for Linux CPUs (`native/`), where it is installed and fits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.machine import cpu_quota, num_cpus, trim_heap
from audiocraft_mlx.ops.cpu.tiled_linear import MAX_DECODE_ROWS
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TiledQuantizedLinear
from audiocraft_mlx.ops.device import on_gpu

ENV_VAR = "MUSICGEN_MLX_NATIVE"
THREADS_ENV_VAR = "MUSICGEN_MLX_THREADS"
ABI_VERSION = 8
"""Version of the extension's functions and their arguments: the second number of its own version."""
BUILD_ANEW = "run make install again in a checkout"
_TRIM_BYTES = 256 << 20
MAX_FP16_ROWS = 64
"""Rows up to which the extension is faster than MLX, which first converts float16 weights to float32."""


@cache
def load_extension() -> ModuleType | None:
    """The extension's module; None where there is none, or where `MUSICGEN_MLX_NATIVE` is `none`.

    One that was built for another version of MLX or of this program isn't used: a warning says what to
    install.
    """
    if os.environ.get(ENV_VAR) == "none":
        return None
    try:
        from audiocraft_mlx_native import _built_for
    except ImportError:
        return None
    mlx, abi = _built_for.MLX_VERSION, getattr(_built_for, "ABI_VERSION", 1)
    if abi != ABI_VERSION:
        reason = f"it was built for another version of this program: 0.{abi}, not 0.{ABI_VERSION}"
        _warn(reason, f"install audiocraft-mlx-native 0.{ABI_VERSION}, or {BUILD_ANEW}")
        return None
    present: str = mx.__version__  # type: ignore[attr-defined]  # importlib.metadata takes 10 ms to import
    if mlx != present:
        reason = f"it was built for MLX {mlx}, this is {present}"
        _warn(reason, f"pip install 'mlx[cpu]=={mlx}', or {BUILD_ANEW}")
        return None
    try:
        from audiocraft_mlx_native import _extension

        if cpu_quota():  # its threads are made with its first operation
            os.environ.setdefault(THREADS_ENV_VAR, str(num_cpus()))
        _extension.instruction_set()  # refuses a processor that was named wrongly
        # Built with another nanobind than MLX was, it imports, but its functions take no arrays.
        mx.eval(_extension.elu(mx.zeros(1)))
    except ValueError as error:
        _warn(str(error), "name another, or none")
        return None
    except (ImportError, TypeError) as error:
        _warn(str(error).splitlines()[0], BUILD_ANEW)
        return None
    return _extension


def _warn(reason: str, fix: str) -> None:
    warnings.warn(f"the native extension isn't used ({reason}): {fix}", stacklevel=3)


def cpu_extension() -> ModuleType | None:
    """The extension, where MLX computes on the CPU."""
    return None if on_gpu() else load_extension()


def float32_extension(x: mx.array) -> ModuleType | None:
    """The extension, where it is used and takes `x`."""
    return cpu_extension() if x.dtype == mx.float32 else None


def weights(layer: nn.Module, rows: int) -> dict[str, Any] | None:
    """A linear layer's weights as the extension takes them; None where MLX is faster, or has to do it."""
    if isinstance(layer, TiledQuantizedLinear):
        return {
            "w": layer.weight,
            "scales": layer.scales,
            "biases": layer.biases,
            "bits": layer.bits,
            "int8_activations": layer.int8_activations,
            "bias": layer.get("bias"),
        }
    if type(layer) is not nn.Linear:
        return None
    if rows > {mx.float32: MAX_DECODE_ROWS, mx.float16: MAX_FP16_ROWS}.get(layer.weight.dtype, 0):
        return None
    return {"w": layer.weight, "bias": layer.get("bias")}


def linear(
    layer: nn.Module,
    x: mx.array,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: mx.array | None = None,
) -> mx.array | None:
    """`ops.linear.linear`, in one pass over the weights; None where MLX is faster, or has to do it."""
    functions = float32_extension(x)
    own = None if functions is None else weights(layer, x.size // x.shape[-1])
    if functions is None or own is None:
        return None
    if norm is not None:
        own.update(norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps)
    y: mx.array = functions.linear(x, gelu=gelu, residual=residual, **own)
    return y


def store_fp16_if_exact(network: nn.Module) -> None:
    """Store the float32 weights of linear layers as float16 where that changes none of them.

    They are still computed with in float32, and take half the time to read. Released weights are such.
    """
    if cpu_extension() is None:
        return
    freed = 0
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.dtype == mx.float32:
            half = layer.weight.astype(mx.float16)
            if mx.array_equal(half, layer.weight):
                freed += layer.weight.nbytes
                layer.weight = half
            if freed > _TRIM_BYTES:
                # Between the halves that stay, the heap would keep the gaps.
                trim_heap()
                freed = 0


def kv_cache_dtype(quantized: bool, dtype: mx.Dtype) -> mx.Dtype:
    """Of keys and values: float16 for a quantized model, where the extension reads it.

    They are most of what a step reads then; MLX's own attention is slow in float16 on CPUs.
    """
    return mx.float16 if quantized and cpu_extension() is not None else dtype


def map_tensors(path: str, places: Sequence[tuple[int, Sequence[int], mx.Dtype]]) -> list[mx.array] | None:
    """The tensors of a file at `places` (offset, shape, dtype), without a copy; None without the extension.

    Their memory is that of the file: it must not be written to or cut off while one of them is in use.

    Raises:
        RuntimeError: the file can't be opened or mapped.
        ValueError: a tensor ends behind the file, or isn't aligned.
    """
    functions = cpu_extension()
    return None if functions is None else functions.map_tensors(path, places)


def empty(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """An array to be written to before it is read: zeros, or where the extension can, whatever is there."""
    functions = cpu_extension()
    return mx.zeros(shape, dtype) if functions is None else functions.empty(shape, dtype)
