"""The native extension gives the same results as MLX's operations. Skipped if it isn't built."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.ops import activations, attention, int8_rows, lstm, normalization
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import TILE
from audiocraft_mlx.ops.linear import linear, optimize_layout

if extension.load_extension() is None:
    pytest.skip("the native extension isn't built", allow_module_level=True)


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape)


@pytest.fixture(autouse=True)
def default_device_is_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    mx.random.seed(4)


class WithoutExtension:
    """A context in which MLX's own operations are used."""

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(extension, "cpu_extension", lambda: None)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def with_and_without_extension(compute: object) -> tuple[np.ndarray, np.ndarray]:
    actual = np.array(compute())
    with WithoutExtension():
        return actual, np.array(compute())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (2, 5, 3), (3, 64, 17), (8, 200, 61)])
def test_dense_layer(rows: int, inputs: int, outputs: int, fused: bool, bias: bool) -> None:
    layer, norm = nn.Linear(inputs, outputs, bias=bias).eval(), nn.LayerNorm(inputs)
    norm.weight, norm.bias = normal(inputs), normal(inputs)
    x, residual = normal(rows, 1, inputs), normal(rows, 1, outputs)
    options = {"norm": norm, "gelu": True, "residual": residual} if fused else {}
    assert "MusicgenLinear" in primitives(linear(layer, x, **options))
    np.testing.assert_allclose(*with_and_without_extension(lambda: linear(layer, x, **options)), atol=2e-5)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (2, 5, 3), (3, 64, 17), (40, 200, 61)])
def test_float16_dense_layer(rows: int, inputs: int, outputs: int) -> None:
    layer, x = nn.Linear(inputs, outputs).eval(), normal(rows, inputs)
    layer.weight = layer.weight.astype(mx.float16)
    actual = linear(layer, x)
    assert "MusicgenLinear" in primitives(actual)
    expected = x @ layer.weight.astype(mx.float32).T + layer.bias
    np.testing.assert_allclose(np.array(actual), np.array(expected), atol=2e-5)


def test_mlx_computes_layers_with_other_weight_dtypes() -> None:
    layer, x = nn.Linear(8, 5).eval(), normal(2, 8)
    layer.weight = layer.weight.astype(mx.bfloat16)
    assert extension.weights(layer, 2) is None
    expected = x @ layer.weight.astype(mx.float32).T + layer.bias
    np.testing.assert_allclose(np.array(linear(layer, x)), np.array(expected), atol=2e-5)


def test_weights_are_stored_as_float16_only_if_that_is_exact() -> None:
    exact, inexact = nn.Linear(8, 8), nn.Linear(8, 8)
    exact.weight = exact.weight.astype(mx.float16).astype(mx.float32)
    inexact.weight = inexact.weight + 1e-6
    before = [np.array(layer.weight) for layer in (exact, inexact)]
    extension.store_fp16_if_exact(nn.Sequential(exact, inexact))
    assert (exact.weight.dtype, inexact.weight.dtype) == (mx.float16, mx.float32)
    for layer, weight in zip((exact, inexact), before, strict=True):
        np.testing.assert_array_equal(np.array(layer.weight.astype(mx.float32)), weight)


@pytest.mark.parametrize("padding", [None, mx.array([0, 2])])
@pytest.mark.parametrize("cross_attention", [True, False])
@pytest.mark.parametrize(("quantized", "cache_bits"), [(False, None), (True, None), (True, 8), (False, 8)])
def test_fused_block_step(
    quantized: bool, cache_bits: int | None, cross_attention: bool, padding: mx.array | None
) -> None:
    """The same results as from separate operations, with the same cache."""
    config = LMConfig(2, 16, 64, 4, 2, 128, (0, 1), cross_attention, bias_attention=True, bias_ff=True)
    lm = LM(config).eval()
    if quantized:
        nn.quantize(lm, 64, 4, class_predicate=lambda path, layer: isinstance(layer, nn.Linear))
        optimize_layout(lm)
    decoder = LMDecoder(lm, cache_bits)
    conditions = ConditionTensors(
        cross=normal(2, 5, 64) if cross_attention else None,
        cross_mask=mx.array([[True] * 5, [True, True, False, False, False]]) if cross_attention else None,
        prefix=normal(2, 3, 64),
        prefix_padding=padding,
    )
    fused, separate = decoder.start(conditions, 6), decoder.start(conditions, 6)
    assert fused._fused is not None
    separate._fused = None
    codes = mx.random.randint(0, 16, (2, 2, 6))
    for step in range(6):
        actual = fused(codes[:, :, step : step + 1])
        assert ("MusicgenFusedBlock" in primitives(actual)) == (step > 0)
        expected = separate(codes[:, :, step : step + 1])
        np.testing.assert_allclose(np.array(actual), np.array(expected), atol=2e-5)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_cache_is_written_in_place_unless_still_referenced(dtype: mx.Dtype) -> None:
    cache, qkv = normal(2, 4, 7, 8).astype(dtype), normal(2, 1, 48)
    expected = np.array(cache)
    written = np.array(extension.load_extension().write_kv(cache, qkv, [3, 5]))
    np.testing.assert_array_equal(np.array(cache), expected)
    new = np.array(qkv[:, 0, 16:].reshape(2, 4, 8).astype(dtype))
    expected[0, :, 3], expected[1, :, 5] = new
    np.testing.assert_array_equal(written, expected)
    address = np.asarray(cache).ctypes.data
    in_place = extension.load_extension().write_kv(cache, qkv, [3, 5])
    del cache
    mx.eval(in_place)
    assert np.asarray(in_place).ctypes.data == address
    np.testing.assert_array_equal(np.asarray(in_place), expected)


def quantized(inputs: int, outputs: int, bits: int, group_size: int = 64) -> nn.Module:
    """A layer as a loaded model has it."""
    return optimized(nn.QuantizedLinear.from_linear(nn.Linear(inputs, outputs), group_size, bits))


def optimized(layer: nn.Module) -> nn.Module:
    network = nn.Sequential(layer).eval()
    optimize_layout(network)
    return network.layers[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scales", [mx.float16, mx.float32])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 16), (2, 192, 48), (13, 4160, 32)])
def test_quantized_layer(rows: int, inputs: int, outputs: int, scales: mx.Dtype, bits: int) -> None:
    layer = nn.QuantizedLinear.from_linear(nn.Linear(inputs, outputs), 64, bits)
    layer.scales, layer.biases = layer.scales.astype(scales), layer.biases.astype(scales)
    norm = nn.LayerNorm(inputs)
    x, residual = normal(rows, inputs), normal(rows, outputs)
    dense = mx.dequantize(
        layer.weight, layer.scales.astype(mx.float32), layer.biases.astype(mx.float32), 64, bits
    )
    expected = norm(x) @ dense.T + layer.bias + residual
    layer = optimized(layer)
    actual = linear(layer, x, norm=norm, residual=residual)
    assert "MusicgenLinear" in primitives(actual)
    np.testing.assert_allclose(actual, expected, atol=5e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_int8_limbs_are_as_exact_as_float32(bits: int) -> None:
    """Also if one activation is a thousand times the others."""
    layer = nn.QuantizedLinear.from_linear(nn.Linear(1024, 512, bias=False), 64, bits)
    # A weight is an integer times a scale, plus a bias; rounding errors come from the products with both.
    parts = (layer.scales, mx.zeros_like(layer.biases)), (mx.zeros_like(layer.scales), layer.biases)
    dense = [np.array(mx.dequantize(layer.weight, *part, 64, bits), np.float64) for part in parts]
    x = normal(2, 1024).at[:, 100].multiply(1000)
    layer = optimized(layer)
    error = np.array(linear(layer, x)) - np.array(x, np.float64) @ sum(dense).T
    terms = np.abs(np.array(x, np.float64)) @ sum(map(np.abs, dense)).T
    assert np.abs(error / terms).max() < 2e-7


@pytest.mark.parametrize("bits", [4, 8])
def test_error_of_int8_activations_is_as_documented(bits: int) -> None:
    layer, x = quantized(1024, 512, bits), normal(2, 1024)
    exact = linear(layer, x)
    layer.int8_activations = True
    error = linear(layer, x) - exact
    relative = (mx.linalg.norm(error) / mx.linalg.norm(exact)).item()
    if "vnni" in extension.load_extension().instruction_set():
        assert 1e-4 < relative < 0.01
    else:
        assert relative == 0


@pytest.mark.parametrize(("outputs", "group_size"), [(16, 32), (8, 64)])
def test_mlx_computes_quantized_layers_that_do_not_fit_tiles(outputs: int, group_size: int) -> None:
    layer, x = quantized(64, outputs, 4, group_size), normal(2, 64)
    assert "MusicgenLinear" not in primitives(linear(layer, x))
    expected = x @ mx.dequantize(layer.weight, layer.scales, layer.biases, group_size, 4).T + layer.bias
    np.testing.assert_allclose(linear(layer, x), expected, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize(("batch", "heads", "length", "dim"), [(1, 1, 1, 2), (2, 3, 70, 32), (3, 2, 9, 20)])
def test_attention_over_a_cache_view(
    batch: int, heads: int, length: int, dim: int, dtype: mx.Dtype, masked: bool
) -> None:
    qkv = normal(batch, 1, 3 * heads * dim)
    q = mx.split(qkv, 3, axis=-1)[1].reshape(batch, 1, heads, dim).transpose(0, 2, 1, 3)
    k, v = (normal(batch, heads, length + 5, dim).astype(dtype)[:, :, :length] for _ in range(2))
    mask = mx.arange(length) >= mx.arange(batch)[:, None] if masked and length > batch else None
    mask = None if mask is None else mask[:, None, None]
    assert "MusicgenAttention" in primitives(attention.attention(q, k, v, mask))
    actual = attention.attention(q, k, v, mask)
    with WithoutExtension():
        expected = attention.attention(q, k.astype(mx.float32), v.astype(mx.float32), mask)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "length", "dim"),
    [(1, 1, 2, 1, 1), (2, 3, 33, 70, 20), (1, 2, 5, 32, 64), (1, 2, 64, 31, 8)],
)
def test_attention_of_several_queries(batch: int, heads: int, queries: int, length: int, dim: int) -> None:
    q = normal(batch, queries, heads, dim).transpose(0, 2, 1, 3)
    k, v = 3 * normal(2, batch, heads, length + 3, dim)[..., :length, :]
    assert "MusicgenAttentionFull" in primitives(attention.attention(q, k, v, None))
    np.testing.assert_allclose(
        *with_and_without_extension(lambda: attention.attention(q, k, v, None)), atol=5e-6
    )


@pytest.mark.parametrize("activation", [activations.elu, activations.gelu, activations.glu])
@pytest.mark.parametrize("shape", [(2,), (3, 70), (2, 130, 200), (0, 4)])
def test_activations(activation: Callable[[mx.array], mx.array], shape: tuple[int, ...]) -> None:
    x = 10 * normal(*shape)
    assert "Musicgen" in primitives(activation(x))
    # The output of some of these may reuse the input's buffer.
    for compute in (lambda: activation(x), lambda: activation(x + 1), lambda: activation(x[::-1])):
        np.testing.assert_allclose(*with_and_without_extension(compute), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (2, 9000, 6), (1, 3, 5000)])
def test_group_norm(shape: tuple[int, ...]) -> None:
    x, gain, bias = normal(*shape) + 3, normal(shape[-1]), normal(shape[-1])
    actual = np.array(normalization.group_norm(x, gain, bias, 1e-5))
    assert "MusicgenGroupNorm" in primitives(normalization.group_norm(x, gain, bias, 1e-5))
    exact = np.array(x).astype(np.float64)
    mean, variance = (moment(exact, axis=(1, 2), keepdims=True) for moment in (np.mean, np.var))
    expected = (exact - mean) / np.sqrt(variance + 1e-5) * np.array(gain) + np.array(bias)
    np.testing.assert_allclose(actual, expected, atol=5e-6)
    np.testing.assert_array_equal(np.array(normalization.group_norm(x + 0, gain, bias, 1e-5)), actual)


def test_quantizing_rows_to_int8() -> None:
    x = mx.concatenate([normal(5, 3, 40) * 7, mx.zeros((5, 1, 40))], axis=1)
    actual = int8_rows.quantize_int8(x)
    with WithoutExtension():
        expected = int8_rows.quantize_int8(x)
    np.testing.assert_allclose(actual.scales, expected.scales, rtol=1e-6)
    assert np.abs(np.array(actual.data).astype(int) - np.array(expected.data)).max() <= 1
    assert mx.all(mx.abs(actual.dequantize() - x) <= 0.501 * actual.scales[..., None]).item()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40, 99])
def test_a_row_that_is_not_finite_does_not_become_numbers(bad: float, place: int) -> None:
    x = np.ones((2, 100), np.float32)
    x[1, place] = bad
    rows = int8_rows.quantize_int8(mx.array(x))
    assert np.isfinite(np.array(rows.scales[0]))
    assert np.isnan(np.array(rows.scales[1]))


def test_attention_over_an_int8_cache() -> None:
    q = normal(2, 3, 1, 20)
    k, v = (int8_rows.quantize_int8(normal(2, 3, 33, 20)) for _ in range(2))
    k, v = (int8_rows.Int8Rows(part.data[:, :, :30], part.scales[:, :, :30]) for part in (k, v))
    assert "MusicgenAttention" in primitives(attention.attention(q, k, v, None))
    np.testing.assert_allclose(
        *with_and_without_extension(lambda: attention.attention(q, k, v, None)), atol=2e-6
    )


@pytest.mark.parametrize(("batch", "length", "inputs", "dim"), [(1, 1, 3, 1), (2, 30, 48, 80), (3, 5, 7, 65)])
def test_lstm(batch: int, length: int, inputs: int, dim: int) -> None:
    layer, x = nn.LSTM(inputs, dim), normal(batch, length, inputs)
    state = normal(batch, dim), normal(batch, dim)

    def hidden_and_last_states() -> mx.array:
        hidden, (last, cell) = lstm.lstm(layer, x, state)
        return mx.concatenate([hidden, last[:, None], cell[:, None]], axis=1)

    np.testing.assert_allclose(*with_and_without_extension(lambda: lstm.lstm(layer, x, None)[0]), atol=2e-6)
    np.testing.assert_allclose(*with_and_without_extension(hidden_and_last_states), atol=2e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.linear(normal(2, 3), normal(4, 5)),
        lambda e: e.linear(normal(2, 3).astype(mx.float16), normal(4, 3)),
        lambda e: e.linear(normal(2, 3), normal(4, 3), bias=normal(3)),
        lambda e: e.linear(normal(2, 3), normal(4, 3), residual=normal(2, 3)),
        lambda e: e.linear(normal(2, 3), normal(4, 3), norm_weight=normal(3)),
        lambda e: e.linear(normal(2, 64), tiles(8), bits=4),
        lambda e: e.linear(normal(2, 64), tiles(9), *[normal(1, 1, 16)] * 2, bits=4),
        lambda e: e.linear(normal(2, 64), tiles(8), *[normal(1, 2, 16)] * 2, bits=4),
        lambda e: e.linear(normal(2, 64), tiles(8)[..., :8], *[normal(1, 1, 8)] * 2, bits=4),
        lambda e: e.linear(normal(2, 64), mx.zeros((16, 8), mx.uint32), *[normal(16, 1)] * 2, bits=4),
        lambda e: e.attention(normal(1, 2, 2, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4), 1.0),
        lambda e: e.attention(normal(1, 2, 1, 4), normal(1, 2, 5, 4), normal(1, 2, 6, 4), 1.0),
        lambda e: e.attention(normal(1, 2, 1, 4), normal(1, 3, 5, 4), normal(1, 3, 5, 4), 1.0),
        lambda e: e.attention(
            normal(1, 2, 1, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4), 1.0, mx.ones((1, 4), mx.bool_)
        ),
        lambda e: e.attention_full(normal(1, 2, 5, 4), normal(1, 2, 5, 4), normal(1, 2, 6, 4), 1.0),
        lambda e: e.attention_full(normal(1, 2, 5, 4), normal(1, 2, 5, 3), normal(1, 2, 5, 3), 1.0),
        lambda e: e.attention_full(normal(1, 2, 5, 4), *[normal(1, 2, 5, 4).astype(mx.float16)] * 2, 1.0),
        lambda e: e.elu(mx.zeros(3, mx.float16)),
        lambda e: e.glu(normal(2, 3)),
        lambda e: e.group_norm(normal(2, 3), normal(2), normal(3), 1e-5),
        lambda e: e.group_norm(normal(3), normal(3), normal(3), 1e-5),
        lambda e: e.write_kv(normal(1, 4, 7, 8), normal(1, 1, 48), [7]),
        lambda e: e.write_kv(normal(1, 4, 7, 8), normal(1, 1, 40), [0]),
        lambda e: e.write_kv(normal(1, 4, 7, 8), normal(2, 1, 48), [0, 0]),
        lambda e: e.write_kv(normal(2, 4, 7, 8), normal(2, 1, 48), [0]),
        lambda e: e.FusedNorm(normal(3), normal(4), 1e-5),
        lambda e: e.FusedLinear(normal(3)),
        lambda e: e.FusedLinear(normal(3, 4), bias=normal(4)),
        lambda e: fused_block(e, heads=3),
        lambda e: fused_block(e, hidden=9),
        lambda e: fused_block(e)(normal(1, 1, 7), normal(1, 1, 24), normal(1, 4, 5, 4), None, [0], [1]),
        lambda e: fused_block(e)(normal(1, 1, 8), normal(1, 1, 16), normal(1, 4, 5, 4), None, [0], [1]),
        lambda e: fused_block(e)(normal(1, 1, 8), normal(1, 1, 24), normal(1, 4, 5, 3), None, [0], [1]),
        lambda e: fused_block(e)(normal(1, 1, 8), normal(1, 1, 24), normal(1, 4, 5, 4), None, [0], [6]),
        lambda e: fused_block(e)(normal(1, 1, 8), normal(1, 1, 24), normal(1, 4, 5, 4), None, [2], [2]),
        lambda e: fused_block(e)(normal(1, 1, 8), normal(1, 1, 24), normal(1, 4, 5, 4), None, [0], [1, 2]),
        lambda e: fused_block(e)(normal(2, 1, 8), normal(2, 1, 24), normal(1, 4, 5, 4), None, [0, 0], [1, 1]),
        lambda e: fused_block(e)(
            normal(1, 1, 8), normal(1, 1, 24), normal(1, 4, 5, 4), normal(1, 4, 5), [0], [1]
        ),
        lambda e: e.lstm(normal(1, 2, 8), normal(8, 3), normal(1, 2), normal(1, 2)),
        lambda e: e.lstm(normal(1, 2, 8), normal(8, 2), normal(2, 2), normal(1, 2)),
    ],
)
def test_mismatched_arrays_raise_value_error(call: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        call(extension.load_extension())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MLX_VERSION", "0.1.2", "it was built for MLX 0.1.2"),
        ("ABI_VERSION", extension.ABI_VERSION - 1, "it was built for another version of this program"),
    ],
)
def test_extension_for_another_mlx_or_abi_version_is_not_used(
    name: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import audiocraft_mlx_native._built_for as built_for

    monkeypatch.setattr(built_for, name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert extension.load_extension.__wrapped__() is None
    assert message in str(caught[0].message)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("name", extension.load_extension().instruction_sets())
def test_every_instruction_set_gives_the_same_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import mlx.core as mx; from audiocraft_mlx.ops.cpu.extension import load_extension; "
        "e = load_extension();"
        "mx.random.seed(1); x = mx.random.normal((2, 128)); w = mx.random.normal((48, 128));"
        "q = mx.quantize(w, 64, 4); t = [p.reshape(3, 16, -1).swapaxes(1, 2) for p in q];"
        "print(e.instruction_set(), mx.abs(e.linear(x, w) - x @ w.T).max().item() < 1e-4,"
        "mx.abs(e.linear(x, *t, 4) - x @ mx.dequantize(*q, 64, 4).T).max().item() < 1e-4)"
    )
    monkeypatch.setenv("MUSICGEN_MLX_CPU", name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [name, "True", "True"], done.stderr


def test_results_are_deterministic() -> None:
    layer, x = quantized(512, 704, 4), normal(2, 512)
    first = np.array(linear(layer, x))
    for _ in range(20):
        np.testing.assert_array_equal(np.array(linear(layer, x)), first)


def tiles(words: int) -> mx.array:
    return mx.zeros((1, words, TILE), mx.uint32)


def fused_block(extension: ModuleType, heads: int = 2, hidden: int = 16) -> Callable[..., mx.array]:
    """A block of dimension 8, with a feed-forward of 16."""
    out, linear1, linear2 = (
        extension.FusedLinear(normal(*shape)) for shape in ((8, 8), (hidden, 8), (8, 16))
    )
    return extension.FusedBlockStep(
        heads, out, None, extension.FusedNorm(normal(8), normal(8), 1e-5), linear1, linear2
    )


def primitives(array: mx.array) -> str:
    """The computation graph of `array` as text, with the names of its operations."""
    import tempfile

    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, array)
        return file.read()


# Arrays over the memory of a file


def test_tensors_of_a_file(tmp_path: Path) -> None:
    values = normal(6)
    path = tmp_path / "file"
    path.write_bytes(bytes(8) + np.array(values).tobytes() + b"\x01\x02\x03\x04")
    floats, integers = extension.map_tensors(str(path), [(8, (2, 3), mx.float32), (32, (2,), mx.uint16)])
    path.unlink()
    np.testing.assert_array_equal(floats, values.reshape(2, 3))
    np.testing.assert_array_equal(floats.T @ floats, values.reshape(2, 3).T @ values.reshape(2, 3))
    assert integers.tolist() == [0x0201, 0x0403]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((8, (2,), mx.float32), "ends behind"),
        ((-4, (1,), mx.float32), "ends behind"),
        ((2, (1,), mx.float32), "aligned"),
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path: Path, place: tuple, message: str) -> None:
    (tmp_path / "file").write_bytes(bytes(12))
    with pytest.raises(ValueError, match=message):
        extension.map_tensors(str(tmp_path / "file"), [place])


def test_a_file_that_is_not_there_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        extension.map_tensors(str(tmp_path / "none"), [])


def test_an_empty_array_can_be_written_to() -> None:
    array = extension.empty((2, 3), mx.float16)
    array[:] = 1
    assert array.dtype == mx.float16
    assert array.tolist() == [[1, 1, 1], [1, 1, 1]]
