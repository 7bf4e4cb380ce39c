"""The way that the code takes on a GPU, taken on a CPU: what it computes with, and how many kernels it runs.

Its results are compared with the references' in the tests of the goldens, and in `test_half_precision.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from threading import Thread
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import audiocraft_mlx
from audiocraft_mlx.benchmark.model import random_bundle
from audiocraft_mlx.benchmark.step_costs import kernels_per_layer, kernels_per_step
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.quantization import quantize
from audiocraft_mlx.decoding import frames
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams, row_keys
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.ops.device import gpu_branch, on_gpu
from audiocraft_mlx.ops.int8_rows import quantize_int8

PACKAGE = Path(audiocraft_mlx.__file__).parent
DOCS = PACKAGE.parent / "docs"
WIDE = {mx.float64, mx.int64, mx.uint64}
"""A Mac's GPU has no float64 at all."""


@pytest.fixture
def gpu() -> Iterator[None]:
    with gpu_branch():
        yield


def demo_shape(bits: int | None = None) -> ModelBundle:
    bundle = random_bundle("demo")
    if bits is not None:
        quantize(bundle, bits)
        bundle.lm.set_dtype(mx.float16)
    bundle.materialize()
    return bundle


def test_the_branch_is_taken_inside_alone_and_by_this_thread_alone() -> None:
    before, elsewhere = on_gpu(), []
    with gpu_branch():
        assert on_gpu()
        thread = Thread(target=lambda: elsewhere.append(on_gpu()))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError), gpu_branch():
            raise RuntimeError
        assert on_gpu()
    assert [on_gpu()] == elsewhere == [before]


# What it computes with


class Graphs:
    """The operations of all graphs that are evaluated with `mx.eval` and `mx.async_eval`."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, mx.Dtype]] = set()

    def add(self, *trees: Any) -> None:
        for array in _arrays(trees):
            # The graph of an array is exported with that of any function that uses it.
            mx.export_function(self._visit, lambda x, array=array: x + array.astype(mx.float32), mx.zeros(()))

    def _visit(self, part: dict[str, Any]) -> None:
        if part["type"] == "primitive":
            self.seen |= {(part["name"], dtype) for _, _, dtype in part["outputs"]}
        elif part["type"] == "constants":
            self.seen |= {("constant", array.dtype) for _, array in part["constants"]}


def _arrays(tree: Any) -> Iterator[mx.array]:
    if isinstance(tree, mx.array):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _arrays(part)
    elif isinstance(tree, dict):
        yield from _arrays(list(tree.values()))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, gpu: None) -> Iterator[Graphs]:
    graphs = Graphs()

    def recorded(evaluate: Callable[..., None]) -> Callable[..., None]:
        def record(*trees: Any) -> None:
            graphs.add(*trees)
            evaluate(*trees)

        return record

    # None of these can be exported: files that are read later, what is compiled, and copies.
    load, evaluate = mx.load, mx.eval

    def load_at_once(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        evaluate(loaded)
        return loaded

    monkeypatch.setattr(mx, "load", load_at_once)
    mx.disable_compile()
    monkeypatch.setattr(mx, "contiguous", lambda x: x + mx.zeros((), x.dtype))
    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, recorded(getattr(mx, name)))
    yield graphs
    mx.enable_compile()


def test_a_wide_type_anywhere_in_a_graph_is_found(graphs: Graphs) -> None:
    wide = mx.array(np.ones(3, np.int64))
    mx.eval((wide + 1).astype(mx.float32) * 2)
    assert ("Add", mx.int64) in graphs.seen
    assert ("Multiply", mx.float32) in graphs.seen


@pytest.mark.usefixtures("hub_cache", "separator")
@pytest.mark.parametrize("name", ["mono", "stereo", "rope", "melody", "style"])
@pytest.mark.parametrize("cache_bits", [None, 8])
def test_nothing_is_computed_in_types_that_a_gpu_lacks_or_is_slow_with(
    name: str, cache_bits: int | None, goldens: Path, graphs: Graphs
) -> None:
    model = MusicGen.get_pretrained(str(goldens / "goldens" / name), cache_bits=cache_bits)
    model.set_generation_params(duration=0.3, top_k=20, seed=0)
    if name in ("melody", "style"):
        wav = 0.1 * mx.random.normal((1, 1, 64000), key=mx.random.key(0))
        options = {"melody_separation": "off"} if name == "melody" else {}
        model.generate_with_chroma(["a tune"], wav, 32000, **options)
    else:
        wav = 0.1 * mx.random.normal((1, 6400), key=mx.random.key(0))
        model.generate_continuation(wav, 32000, ["a tune"])
    operations = {operation for operation, _ in graphs.seen}
    assert {"Matmul", "Gather", "Convolution", "ArgReduce"} <= operations
    assert {dtype for _, dtype in graphs.seen} >= {mx.float16, mx.float32, mx.int32}
    assert not {(operation, dtype) for operation, dtype in graphs.seen if dtype in WIDE}


def test_no_operation_names_a_stream_of_its_own() -> None:
    """But the CPU's own ways, the benchmark of the memory, and what compares devices."""
    naming = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            # A clip's stream is an address.
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) != "Clip"
                and (
                    any(keyword.arg == "stream" for keyword in node.keywords)
                    or ast.unparse(node.func).startswith(("mx.stream", "mx.new_", "mx.set_default"))
                    or any(ast.unparse(argument) == "mx.cpu" for argument in node.args)
                )
            ):
                naming.add(path.relative_to(PACKAGE).as_posix())
    assert naming == {
        "ops/cpu/tiled_linear.py",
        "checkpoints/evaluation.py",
        "benchmark/measure.py",
        "doctor/demo.py",
    }


# What it costs


@pytest.fixture
def fast_kernels(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    """One operation each for what `mx.fast` makes one kernel of on a GPU, and several operations on a CPU.

    They compute something else, of the same shape and type, and can't be merged with their neighbours.
    """
    monkeypatch.setattr(mx.fast, "layer_norm", lambda x, weight, bias, eps: mx.sort(x, axis=-1))

    def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any) -> mx.array:
        assert q.dtype == k.dtype == v.dtype
        return mx.concatenate([q, k, v], axis=2)[:, :, : q.shape[2]]

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)


@pytest.mark.usefixtures("fast_kernels")
@pytest.mark.parametrize(
    ("row", "bits", "cache_bits"),
    [
        ("float16", None, None),
        ("float16, `--cache-bits 8`", None, 8),
        ("4 bits", 4, None),
        ("4 bits, `--cache-bits 8`", 4, 8),
    ],
)
def test_a_step_runs_as_many_kernels_as_the_docs_say(
    row: str, bits: int | None, cache_bits: int | None
) -> None:
    lines = (DOCS / "PERFORMANCE.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {row} |")]
    per_layer, others = map(int, re.findall(r"\| (\d+) (?=\|)", line))
    bundle = demo_shape(bits)
    conditions = bundle.text_conditioner.encode(["a tune"])
    assert kernels_per_layer(bundle.lm, conditions, cache_bits) == per_layer
    whole = kernels_per_step(LMDecoder(bundle.lm, cache_bits), conditions)
    assert whole - per_layer * len(bundle.lm.layers) == others


@pytest.mark.usefixtures("gpu")
def test_nothing_but_the_codes_and_whether_they_are_finite_comes_to_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = demo_shape()
    conditions = bundle.text_conditioner.encode(["a tune"] * 2)
    decoder, count, chunk = LMDecoder(bundle.lm), 12, 4
    evaluated: list[mx.array] = []
    copied: list[mx.array] = []

    def recorded(evaluate: Callable[..., None]) -> Callable[..., None]:
        def record(*trees: Any) -> None:
            evaluated.extend(_arrays(trees))
            evaluate(*trees)

        return record

    class RecordingNumpy:
        """NumPy as `frames` sees it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def array(self, array: mx.array) -> np.ndarray:
            copied.append(array)
            return np.array(array)

    def no_copy(*arguments: object) -> Any:
        raise AssertionError("a step copies an array to the host")

    chunks = frames.generate_frames(
        decoder,
        conditions,
        count,
        SamplingParams(),
        GuidanceParams(),
        keys=row_keys([0, 1], 40),
        chunk_frames=repeat(chunk),
    )
    first = next(chunks)  # what precedes the first step belongs to the start
    num_codebooks = decoder.lm.config.num_codebooks
    assert first.shape == (2, num_codebooks, chunk)
    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, recorded(getattr(mx, name)))
    monkeypatch.setattr(frames, "np", RecordingNumpy())
    # All other ways that an array takes to the host, which need its value.
    for name in ("item", "tolist", "__array__", "__float__", "__int__", "__bool__", "__dlpack__"):
        if name != "__array__" and hasattr(mx.array, name):
            monkeypatch.setattr(mx.array, name, no_copy)
    rest = list(chunks)
    monkeypatch.undo()
    assert [codes.shape[2] for codes in rest] == [chunk, chunk]
    # Codes of a step, or of a chunk; and each row's sum of the logits.
    assert {(array.dtype, array.shape[:2]) for array in evaluated} == {
        (mx.int32, (2, num_codebooks)),
        (mx.float32, (2,)),
    }
    assert {(array.dtype, array.shape) for array in copied} == {(mx.float32, (2,))}
    # None is looked at step by step: with each chunk those since the last one.
    assert len(copied) == count + decoder.lm.config.delays[-1] - (chunk + decoder.lm.config.delays[-1])


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
def test_int8_rows_are_those_of_the_cpu(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_MLX_NATIVE", "none")
    x = mx.random.normal((2, 3, 5, 16), key=mx.random.key(1)).astype(dtype)
    x[0, 0, 0] = 0
    one = quantize_int8(x)
    with gpu_branch():
        other = quantize_int8(x)
        dequantized = other.dequantize(dtype)
    np.testing.assert_array_equal(one.data, other.data)
    # What is compiled may round a division otherwise.
    np.testing.assert_allclose(one.scales, other.scales, rtol=1e-6)
    rounding = 2**-10 if dtype == mx.float16 else 1e-6
    np.testing.assert_allclose(dequantized, one.dequantize(dtype), rtol=rounding)
    assert dequantized.dtype == dtype
