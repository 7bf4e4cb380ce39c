"""The seam for speed: every other way computes what MLX's own operations do."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from audiocraft_mlx.ops.activations import elu, gelu, glu
from audiocraft_mlx.ops.convolution import conv1d, conv_transpose1d
from audiocraft_mlx.ops.cpu import tiled_linear
from audiocraft_mlx.ops.cpu.blas import ENV_VAR
from audiocraft_mlx.ops.cpu.extension import load_extension
from audiocraft_mlx.ops.cpu.tiled_linear import TiledLinear
from audiocraft_mlx.ops.linear import linear, optimize_layout


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    mx.random.seed(3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("length", "inputs", "outputs", "kernel", "stride", "dilation"),
    [
        (50, 1, 8, 7, 1, 1),  # the first layer: side by side
        (50, 16, 1, 7, 1, 1),  # the last
        (40, 8, 4, 3, 1, 4),
        (7, 8, 4, 7, 1, 1),  # a single output
        (64, 8, 16, 8, 4, 1),  # downsampling
        (67, 8, 16, 8, 4, 1),  # with some frames too many
        (12, 2, 3, 12, 6, 1),
        (30, 5, 3, 1, 1, 1),
        (31, 4, 6, 5, 2, 1),  # not a multiple of the stride: MLX's own
    ],
)
def test_convolution_is_mlx_own(
    batch: int, length: int, inputs: int, outputs: int, kernel: int, stride: int, dilation: int
) -> None:
    x, weight, bias = normal(batch, length, inputs), normal(outputs, kernel, inputs), normal(outputs)
    wanted = mx.conv1d(x, weight, stride=stride, dilation=dilation)
    np.testing.assert_allclose(conv1d(x, weight, bias, stride, dilation), wanted + bias, atol=2e-5)
    np.testing.assert_allclose(conv1d(x, weight, None, stride, dilation), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("length", "inputs", "outputs", "kernel", "stride"),
    [(10, 8, 4, 8, 4), (7, 6, 3, 10, 5), (1, 4, 4, 6, 2), (5, 3, 2, 12, 4), (6, 3, 2, 7, 4)],
)
def test_transposed_convolution_is_mlx_own(
    length: int, inputs: int, outputs: int, kernel: int, stride: int
) -> None:
    x, weight, bias = normal(2, length, inputs), normal(outputs, kernel, inputs), normal(outputs)
    wanted = mx.conv_transpose1d(x, weight, stride=stride) + bias
    np.testing.assert_allclose(conv_transpose1d(x, weight, bias, stride), wanted, atol=2e-5)


def test_elu_is_mlx_own() -> None:
    x = mx.concatenate([10 * normal(1000), mx.array([0.0, -0.0, -200.0, 1e-8, -1e-8, 200.0])])
    np.testing.assert_allclose(elu(x), nn.elu(x), atol=1e-6)


def test_gelu_and_glu_are_mlx_own() -> None:
    x = mx.concatenate([10 * normal(1000), mx.array([0.0, -0.0, -200.0, 1e-8, -1e-8, 200.0])])
    np.testing.assert_allclose(gelu(x), nn.gelu(x), atol=2e-6)
    np.testing.assert_allclose(glu(x), nn.glu(x), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "width"),
    [(1, 7, 16, 16), (2, 300, 1024, 32), (8, 4100, 64, 16), (3, 40, 96, 32), (70, 512, 640, 32)],
)
def test_rows_times_a_matrix_in_tiles(
    rows: int, inputs: int, outputs: int, width: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiled_linear._streams.cache_clear()
    monkeypatch.setattr(tiled_linear, "_threads", lambda: threads)
    monkeypatch.setattr(tiled_linear, "ELEMENTS_PER_THREAD", 1000)
    layer, x = nn.Linear(inputs, outputs).eval(), normal(rows, 1, inputs)
    norm, residual = nn.LayerNorm(inputs), normal(rows, 1, outputs)
    wanted = layer(norm(x))
    layer = TiledLinear.from_linear(layer)
    assert layer.weight.shape == (outputs / width, inputs, width)
    np.testing.assert_allclose(layer(norm(x)), wanted, atol=2e-4)
    np.testing.assert_allclose(linear(layer, x, norm=norm), wanted, atol=2e-4)
    surrounded = linear(layer, x, norm=norm, gelu=True, residual=residual)
    np.testing.assert_allclose(surrounded, nn.gelu(wanted) + residual, atol=2e-4)
    tiled_linear._streams.cache_clear()


def test_layers_that_fit_no_tiles_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    odd, half, quantized = nn.Linear(8, 24), nn.Linear(8, 32), nn.QuantizedLinear(64, 32)
    half.weight = half.weight.astype(mx.float16)
    network = nn.Sequential(odd, half, quantized)
    monkeypatch.setenv("MUSICGEN_MLX_NATIVE", "none")
    load_extension.cache_clear()
    try:
        optimize_layout(network)
    finally:
        load_extension.cache_clear()
    assert all(layer is before for layer, before in zip(network.layers, (odd, half, quantized), strict=True))
    assert not any(TiledLinear.supports(layer) for layer in (odd, half, quantized))


MULTIPLY = """
import mlx.core as mx, numpy as np
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
print(patch_mlx_blas())
a = mx.random.normal((70, 130)); b = mx.random.normal((90, 130))
np.testing.assert_allclose(a @ b.T, np.array(a) @ np.array(b).T, atol=1e-4)
c = a.astype(mx.complex64) * (1 + 2j)
np.testing.assert_allclose(c @ b.T, np.array(c) @ np.array(b).T, atol=1e-3)
d = a.astype(mx.float64)
np.testing.assert_allclose(mx.matmul(d, b.T.astype(mx.float64), stream=mx.cpu), np.array(d) @ np.array(b).T)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="MLX has its own fast BLAS elsewhere")


def multiply(blas: str, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv(ENV_VAR, blas)
    return subprocess.run([sys.executable, "-c", MULTIPLY], capture_output=True, text=True, check=False)


@linux
def test_mlx_multiplies_with_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    done = multiply("auto", monkeypatch)
    assert done.returncode == 0, done.stderr
    assert "openblas" in done.stdout


def test_the_fast_blas_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = multiply("none", monkeypatch)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


@linux
@pytest.mark.parametrize("library", ["/nowhere/libblas.so", "libc.so.6"])
def test_a_blas_that_cannot_be_used_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = multiply(library, monkeypatch)
    assert done.returncode == 1
    assert f"UsageError: {ENV_VAR}={library} can't be used" in done.stderr.splitlines()[-1]
