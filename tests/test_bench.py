"""`musicgen-mlx-bench`: its table, its counts and its errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from audiocraft_mlx.benchmark import SHAPES, report, transformers_process
from audiocraft_mlx.benchmark import model as benchmark_model
from audiocraft_mlx.benchmark.measure import Measurement, peak_memory, read_bandwidth
from audiocraft_mlx.benchmark.mlx_backend import MLXBackend, PrefilledDecoder
from audiocraft_mlx.benchmark.model import BenchmarkModel, model_shape, random_bundle
from audiocraft_mlx.benchmark.step_costs import (
    cache_bytes,
    count_kernels,
    kernels_per_layer,
    kernels_per_step,
    weight_bytes,
)
from audiocraft_mlx.benchmark.suite import Result
from audiocraft_mlx.benchmark.transformers_model import to_transformers
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.checkpoints.quantization_config import Quantization
from audiocraft_mlx.cli.bench import main
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.machine import num_cpus
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.cpu import extension

POSITIONS = (0, 10, 20, 30)
ROWS = [
    "text encoding",
    *(f"LM at {second} s" for second in POSITIONS),
    "codec, 0.2 s",
    "generation, 0.2 s",
    "peak memory",
    "host time per step",
    "kernels per layer and step",
    "memory bandwidth",
    *(
        f"{name} at {second} s"
        for second in POSITIONS
        for name in ("bytes per step", "bandwidth bound", "% of bound")
    ),
]

TINY = LMConfig(
    num_codebooks=2,
    cardinality=10,
    dim=8,
    num_heads=2,
    num_layers=3,
    hidden_dim=16,
    delays=(0, 1),
    cross_attention=True,
)


@pytest.fixture(scope="module")
def demo() -> ModelBundle:
    bundle = random_bundle("demo")
    bundle.materialize()
    return bundle


@pytest.mark.parametrize("options", [(), ("-q", "8")], ids=["float", "quantized"])
def test_a_model_gives_a_table_and_json(
    options: tuple[str, ...],
    transformers_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, file = str(transformers_folder("mono")), tmp_path / "bench.json"
    assert main([folder, "--runs", "2", "-d", "0.2", "--json", str(file), *options]) == 0
    result = json.loads(file.read_text())
    _check(result, ["load", *ROWS], capsys.readouterr().out)
    assert (result["model"], result["random_weights"]) == (folder, False)
    assert result["bits"] == (8 if options else None)
    assert all(len(row["ours"]["values"]) == 2 for row in result["rows"] if "LM at" in row["name"])


def test_a_shape_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main(["--shape", "demo", "--runs", "1", "-d", "0.2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    _check(result, ["random weights", *ROWS], capsys.readouterr().out)
    assert result["random_weights"]


def test_only_the_transformers_backend_imports_torch() -> None:
    package = Path(transformers_process.__file__).parents[1]
    pattern = re.compile(r"^\s*(import|from) (torch|transformers)\b", re.MULTILINE)
    found = [path.relative_to(package) for path in package.rglob("*.py") if pattern.search(path.read_text())]
    assert found == [Path("benchmark", "transformers_backend.py")]


def _check(result: dict, rows: list[str], table: str) -> None:
    assert [row["name"] for row in result["rows"]] == rows
    lines = table.splitlines()
    assert [line[:28].rstrip() for line in lines[2:-1]] == rows
    for row, line in zip(result["rows"], lines[2:], strict=False):
        ours = row["ours"]
        assert 0 < ours["min"] <= ours["median"] <= ours["max"]
        assert row["transformers"] is row["ratio"] is None
        assert row["unit"] in line


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "MODEL"),
        (["--shape", "tiny"], 2, "tiny"),
        (["small", "--shape", "small"], 2, "--shape"),
        (["no-such-model"], 1, "no-such-model"),
        (["--shape", "demo", "--json", "no/such/folder/x.json"], 1, "no/such/folder"),
        (["--shape", "demo", "-d", "nan"], 2, "duration"),
        (["--shape", "demo", "--runs", "0"], 2, "runs"),
        (["--shape", "demo", "--runs", "x"], 2, "--runs"),
        (["--shape", "demo", "-q", "3"], 2, "3"),
        (["--shape", "demo", "-q", "4", "--compare", "onnx"], 2, "onnx"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("musicgen-mlx-bench: error: ")
    assert message in err


def test_a_comparison_without_torch_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformers_process, "find_spec", lambda name: None if name == "torch" else object())
    assert main(["--shape", "demo", "--compare", "transformers"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "musicgen-mlx-bench: error: --compare transformers needs torch;"
        " install musicgen-mlx with its extra 'bench'\n"
    )


class KilledModel(int):
    """An exit status as the model: `os._exit` in place of `_start` ends the process with it."""

    name = "demo"


def test_a_killed_transformers_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_process, "_start", os._exit)
    message = "demo: the transformers process was killed"
    model = cast(BenchmarkModel, KilledModel(9))
    with pytest.raises(MusicGenError, match=message), transformers_process.transformers_process(model):
        pass


@pytest.mark.parametrize("option", ["--int8-activations", "--fast"])
def test_int8_activations_need_a_quantized_model(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shape", "demo", option]) == 2
    assert "8-bit activations need a quantized model" in capsys.readouterr().err


def test_kernels_are_counted_without_views() -> None:
    a, b = mx.ones((4, 6)), mx.ones((6, 4))
    mx.eval(a, b)
    assert count_kernels(a) == 0
    assert count_kernels(mx.exp(a @ b)) == 2
    assert count_kernels(mx.exp((a @ b).reshape(2, 8).T[None, :1])) == 2
    shared = mx.exp(a)
    assert count_kernels(shared * mx.sin(shared)) == 3


def test_kernels_per_layer_are_what_a_layer_adds(demo: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLX's own operations are counted: the native extension has fewer.
    monkeypatch.setattr(extension, "cpu_extension", lambda: None)
    conditions = demo.text_conditioner.encode(["a tune"])
    layers = len(demo.lm.layers)
    per_layer = kernels_per_layer(demo.lm, conditions)
    per_step = kernels_per_step(LMDecoder(demo.lm), conditions)
    assert len(demo.lm.layers) == layers
    # A layer has six linear layers and two attentions; embedding, output and sampling come on top.
    assert per_layer >= 8
    assert per_step > layers * per_layer


def test_bytes_per_step() -> None:
    lm = LM(TINY)
    norms, attention, cross, feed_forward = 3 * 2 * 8, 8 * 24 + 8 * 8, 2 * 8 * 8, 2 * 8 * 16
    layers = 3 * (norms + attention + cross + feed_forward)
    heads, last_norm, embedding_rows = 8 * 20, 2 * 8, 2 * 2 * 8
    assert weight_bytes(lm, rows=2) == 4 * (layers + heads + last_norm + embedding_rows)
    state = lm.make_cache(ConditionTensors(cross=mx.zeros((2, 5, 8))), steps=12)
    # Keys and values, layers, rows, positions, width.
    assert cache_bytes(state, positions=7) == 4 * (2 * 3 * 2 * 7 * 8 + 2 * 3 * 2 * 5 * 8)


def test_a_late_step_reads_more(demo: ModelBundle) -> None:
    ours = MLXBackend("demo", demo)
    width, layers, rate = demo.lm.config.dim, demo.lm.config.num_layers, 50
    assert ours.bytes_per_step(30) - ours.bytes_per_step(20) == 4 * 2 * layers * 2 * 10 * rate * width


def test_a_prefilled_model_starts_at_its_offset() -> None:
    lm = LM(TINY)
    conditions = ConditionTensors(cross=mx.ones((1, 3, 8)))
    prefilled = PrefilledDecoder(lm, None, offset=6, capacity=9)
    codes = mx.zeros((1, 2, 1), mx.int32)
    sequences = prefilled.start(conditions, steps=2)
    logits = sequences(codes)
    assert (sequences.state.ends, sequences.state.positions.shape[0]) == ((7,) * sequences.state.batch, 9)
    assert lm.special_token_id == 10
    # It attends to the cached positions, and has another position than the first.
    assert not mx.allclose(logits, lm(codes, conditions))


@pytest.mark.parametrize(
    ("name", "parameters_of_lm", "codebooks"),
    [("small", 420e6, 4), ("medium", 1.84e9, 4), ("large", 3.26e9, 4), ("stereo-small", 437e6, 8)],
)
def test_shapes_are_those_of_the_released_models(name: str, parameters_of_lm: float, codebooks: int) -> None:
    shape = model_shape(name)
    assert sum(weight.size for weight in flat_parameters(LM(shape.lm)).values()) == pytest.approx(
        parameters_of_lm, rel=0.01
    )
    assert shape.lm.num_codebooks == codebooks
    assert (shape.codec.num_codebooks, shape.codec.hop_length, shape.t5.dim) == (4, 640, 768)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_a_lazy_model(name: str) -> None:
    bundle = random_bundle(name)
    assert bundle.codec.channels == (2 if name.startswith("stereo") else 1)
    assert bundle.lm.config.num_codebooks == bundle.codec.num_codebooks


def test_random_weights_are_the_same_each_time() -> None:
    other, made = (flat_parameters(random_bundle("demo").lm) for _ in range(2))
    assert all(mx.array_equal(value, other[name]) for name, value in made.items())
    assert all(mx.isfinite(value).all() for value in made.values())


@pytest.mark.parametrize("model", ["mono", "stereo"])
def test_converted_weights_are_those_of_the_file(
    model: str, transformers_folder: Callable[[str], Path]
) -> None:
    folder = transformers_folder(model)
    file = load_file(folder / "model.safetensors")
    stored = {name: value.astype(np.float32) for name, value in file.items()}
    converted = to_transformers(load(str(folder), lazy=True))
    ours = {name: np.array(value) for name, value in converted.weights.items()}
    # Two names of one embedding, of which a file has one.
    tied = {"text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"}
    training = ("embed_avg", "cluster_size", "inited")
    assert {name for name in ours if not name.endswith(training)} - tied == {
        name for name in stored if not name.endswith(training)
    } - tied
    for name, expected in stored.items():
        if name.endswith("original1"):
            expected = expected * stored[name[:-1] + "0"] / np.sqrt((expected**2).sum((1, 2), keepdims=True))
        if "bias_ih" in name:  # the two biases, which are only ever added
            expected = expected + stored[name.replace("_ih", "_hh")]
        if "bias_hh" not in name and not name.endswith(training):
            # One of the files is float16, in which the sums are rounded.
            np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=2e-4, err_msg=name)
    config = json.loads((folder / "config.json").read_text())
    for part in ("decoder", "text_encoder"):
        for key, value in getattr(converted, part).items():
            assert value == config[part][key], key


def test_a_quantized_model_is_refused(transformers_folder: Callable[[str], Path]) -> None:
    bundle = load(str(transformers_folder("mono")), quantize_to=8)
    with pytest.raises(UsageError, match="isn't quantized"):
        to_transformers(bundle)


def test_a_ratio_is_how_many_times_better_ours_is() -> None:
    slow, fast = Measurement((3.0, 4.0, 9.0)), Measurement((2.0, 2.0, 1.0))
    assert Result("time", "s", fast, slow).ratio == 2
    assert Result("rate", "steps/s", slow, fast, more_is_better=True).ratio == 2
    assert Result("time", "s", fast).ratio is None
    line = " ".join(report.line(Result("time", "s", fast, slow)).split())
    assert line == "time s 2 (1 to 2) 4 (3 to 9) 2.00x"


def test_a_shape_uses_the_fast_blas_and_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = []
    monkeypatch.setattr(benchmark_model, "patch_mlx_blas", lambda: patched.append(True))
    assert quantization_of(BenchmarkModel("demo", random=True).load(4).lm) == Quantization(4)
    assert patched


def test_the_machine_is_measured() -> None:
    assert num_cpus() >= 1
    assert 1e7 < peak_memory() < 1e12
    assert 1e8 < read_bandwidth(size=2**24, tries=2) < 1e13
