"""`musicgen-mlx-bench`: what it shows, what it counts, and what it refuses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from audiocraft_mlx.benchmark import SHAPES, companion, report, subject
from audiocraft_mlx.benchmark.export import export
from audiocraft_mlx.benchmark.graph import count_kernels, kernels_of_layer, kernels_of_step
from audiocraft_mlx.benchmark.late import LateLM
from audiocraft_mlx.benchmark.measure import Sample, cores, peak_memory, read_bandwidth
from audiocraft_mlx.benchmark.ours import Ours
from audiocraft_mlx.benchmark.shapes import random_checkpoint, shape
from audiocraft_mlx.benchmark.subject import Subject
from audiocraft_mlx.benchmark.suite import Row
from audiocraft_mlx.benchmark.traffic import cache_bytes, weight_bytes
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load, read
from audiocraft_mlx.checkpoints.quantization import Quantization, quantization_of
from audiocraft_mlx.cli.bench import main
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.weights import flat_parameters

POINTS = (0, 10, 20, 30)
ROWS = [
    "text encoding",
    *(f"LM at {second} s" for second in POINTS),
    "codec, 0.2 s",
    "generation, 0.2 s",
    "peak memory",
    "host time per step",
    "kernels per layer and step",
    "memory bandwidth",
    *(f"{what} at {second} s" for second in POINTS for what in ("read per step", "limit", "reached")),
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
    checkpoint = random_checkpoint("demo")
    checkpoint.materialize()
    return checkpoint


@pytest.mark.parametrize("options", [(), ("-q", "8")], ids=["whole", "quantized"])
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


def test_only_the_other_side_imports_torch() -> None:
    package = Path(companion.__file__).parents[1]
    pattern = re.compile(r"^\s*(import|from) (torch|transformers)\b", re.MULTILINE)
    found = [path.relative_to(package) for path in package.rglob("*.py") if pattern.search(path.read_text())]
    assert found == [Path("benchmark", "theirs.py")]


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
def test_a_mistake_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("musicgen-mlx-bench: error: ")
    assert message in err


def test_a_comparison_without_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companion, "find_spec", lambda name: None if name == "torch" else object())
    assert main(["--shape", "demo", "--compare", "transformers"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "musicgen-mlx-bench: error: --compare transformers needs torch;"
        " install musicgen-mlx with its extra 'bench'\n"
    )


class Ended(int):
    """Makes `os._exit` out of what loads the other side."""

    name = "demo"


def test_a_comparison_whose_process_is_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companion, "_start", os._exit)
    message = "demo: the process of transformers was ended"
    with pytest.raises(MusicGenError, match=message), companion.companion(Ended(9)):  # type: ignore[arg-type]
        pass


def test_fast_needs_a_quantized_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shape", "demo", "--fast"]) == 2
    assert "8-bit activations need a quantized model" in capsys.readouterr().err


def test_kernels_are_counted_without_views() -> None:
    a, b = mx.ones((4, 6)), mx.ones((6, 4))
    mx.eval(a, b)
    assert count_kernels(a) == 0
    assert count_kernels(mx.exp(a @ b)) == 2
    assert count_kernels(mx.exp((a @ b).reshape(2, 8).T[None, :1])) == 2
    shared = mx.exp(a)
    assert count_kernels(shared * mx.sin(shared)) == 3


def test_kernels_of_a_layer_are_what_a_layer_adds(demo: ModelBundle) -> None:
    conditions = demo.text_conditioner.encode(["a tune"])
    layers = len(demo.lm.layers)
    of_layer, of_step = kernels_of_layer(demo.lm, conditions), kernels_of_step(demo.lm, conditions)
    assert len(demo.lm.layers) == layers
    # A layer has six linear layers and two attentions, and there is something before and behind them.
    assert of_layer >= 8
    assert of_step > layers * of_layer


def test_bytes_of_a_step() -> None:
    lm = LM(TINY)
    norms, attention, cross, feed_forward = 3 * 2 * 8, 8 * 24 + 8 * 8, 2 * 8 * 8, 2 * 8 * 16
    layers = 3 * (norms + attention + cross + feed_forward)
    heads, last_norm, gathered = 8 * 20, 2 * 8, 2 * 2 * 8
    assert weight_bytes(lm, rows=2) == 4 * (layers + heads + last_norm + gathered)
    state = lm.start(ConditionTensors(cross=mx.zeros((2, 5, 8))), steps=12)
    # Keys and values, layers, rows, positions, width.
    assert cache_bytes(state, positions=7) == 4 * (2 * 3 * 2 * 7 * 8 + 2 * 3 * 2 * 5 * 8)


def test_a_late_step_reads_more(demo: ModelBundle) -> None:
    ours = Ours("demo", demo)
    width, layers, rate = demo.lm.config.dim, demo.lm.config.num_layers, 50
    assert ours.bytes_of_step(30) - ours.bytes_of_step(20) == 4 * 2 * layers * 2 * 10 * rate * width


def test_a_late_model_goes_on_from_its_offset() -> None:
    lm = LM(TINY)
    conditions = ConditionTensors(cross=mx.ones((1, 3, 8)))
    late = LateLM(lm, offset=6, capacity=9)
    codes = mx.zeros((1, 2, 1), mx.int32)
    state = late.start(conditions, steps=2)
    logits = late(codes, state)
    assert (state.offset, state.positions.shape[0]) == (7, 9)
    assert late.special_token_id == 10
    # It looks at all that is behind it, and stands elsewhere than at the start.
    assert not mx.allclose(logits, lm(codes, lm.start(conditions, 2)))


@pytest.mark.parametrize(
    ("name", "parameters_of_lm", "codebooks"),
    [("small", 420e6, 4), ("medium", 1.84e9, 4), ("large", 3.26e9, 4), ("stereo-small", 437e6, 8)],
)
def test_shapes_are_those_of_the_released_models(name: str, parameters_of_lm: float, codebooks: int) -> None:
    wanted = shape(name)
    assert sum(weight.size for weight in flat_parameters(LM(wanted.lm)).values()) == pytest.approx(
        parameters_of_lm, rel=0.01
    )
    assert wanted.lm.num_codebooks == codebooks
    assert (wanted.codec.num_codebooks, wanted.codec.hop_length, wanted.t5.dim) == (4, 640, 768)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_promised(name: str) -> None:
    checkpoint = random_checkpoint(name)
    assert checkpoint.codec.channels == (2 if name.startswith("stereo") else 1)
    assert checkpoint.lm.config.num_codebooks == checkpoint.codec.num_codebooks


def test_random_weights_are_the_same_each_time() -> None:
    other, made = (flat_parameters(random_checkpoint("demo").lm) for _ in range(2))
    assert all(mx.array_equal(value, other[name]) for name, value in made.items())
    assert all(mx.isfinite(value).all() for value in made.values())


@pytest.mark.parametrize("model", ["mono", "stereo"])
def test_exported_weights_are_those_of_the_file(
    model: str, transformers_folder: Callable[[str], Path]
) -> None:
    folder = transformers_folder(model)
    file = load_file(folder / "model.safetensors")
    theirs = {name: value.astype(np.float32) for name, value in file.items()}
    exported = export(read(str(folder)))
    ours = {name: np.array(value) for name, value in exported.weights.items()}
    # Two names of one table, of which a file has one.
    tied = {"text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"}
    training = ("embed_avg", "cluster_size", "inited")
    assert {name for name in ours if not name.endswith(training)} - tied == {
        name for name in theirs if not name.endswith(training)
    } - tied
    for name, wanted in theirs.items():
        if name.endswith("original1"):
            wanted = wanted * theirs[name[:-1] + "0"] / np.sqrt((wanted**2).sum((1, 2), keepdims=True))
        if "bias_ih" in name:  # the two that are only ever added
            wanted = wanted + theirs[name.replace("_ih", "_hh")]
        if "bias_hh" not in name and not name.endswith(training):
            # One of the files has half precision, in which sums are rounded.
            np.testing.assert_allclose(ours[name], wanted, rtol=1e-5, atol=2e-4, err_msg=name)
    config = json.loads((folder / "config.json").read_text())
    for part in ("decoder", "text_encoder"):
        expected = config[part]
        for key, value in getattr(exported, part).items():
            assert value == expected[key], key


def test_a_quantized_model_is_not_exported(transformers_folder: Callable[[str], Path]) -> None:
    checkpoint = load(str(transformers_folder("mono")), quantize_to=8)
    with pytest.raises(UsageError, match="isn't quantized"):
        export(checkpoint)


def test_ratios_say_how_many_times_as_good_ours_is() -> None:
    slow, fast = Sample((3.0, 4.0, 9.0)), Sample((2.0, 2.0, 1.0))
    assert Row("time", "s", fast, slow).ratio == 2
    assert Row("rate", "steps/s", slow, fast, more_is_better=True).ratio == 2
    assert Row("time", "s", fast).ratio is None
    line = " ".join(report.line(Row("time", "s", fast, slow)).split())
    assert line == "time s 2 (1 to 2) 4 (3 to 9) 2.00x"


def test_a_shape_is_run_with_what_a_model_is_run_with(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(subject, "patch_mlx_blas", lambda: called.append(True))
    assert quantization_of(Subject("demo", random=True).load(4).lm) == Quantization(4)
    assert called


def test_the_machine_is_measured() -> None:
    assert cores() >= 1
    assert 1e7 < peak_memory() < 1e12
    assert 1e8 < read_bandwidth(size=2**24, tries=2) < 1e13
