"""The benchmark's comparison: transformers runs the same model as ours, and both are measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from audiocraft_mlx.benchmark.backend import PROMPT
from audiocraft_mlx.benchmark.model import random_bundle
from audiocraft_mlx.benchmark.transformers_backend import TransformersBackend
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.cli.bench import main

from .pair import relative_error


def make_backend(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> TransformersBackend:
    # More torch threads would wait for cores that other tests use.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with torch.no_grad():  # restores the gradients afterwards, which the backend turns off
        return TransformersBackend(bundle)


@pytest.mark.parametrize("model", ["demo", "stereo"])
def test_transformers_runs_the_same_model(
    model: str, transformers_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "demo":
        lazy, ours = random_bundle("demo"), random_bundle("demo")
        ours.materialize()
    else:
        folder = str(transformers_folder(model))
        lazy, ours = load(folder, lazy=True), load(folder)
    theirs = make_backend(lazy, monkeypatch)
    rng = np.random.default_rng(0)
    steps, codebooks = 5, ours.lm.config.num_codebooks
    codes = rng.integers(0, ours.lm.config.cardinality, (1, codebooks, steps))
    tokens, mask = ours.text_conditioner.tokenize([PROMPT])
    with torch.no_grad():
        logits = theirs.model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(mask).long(),
            decoder_input_ids=torch.from_numpy(codes).flatten(0, 1),
        ).logits
        audio = theirs.decode_audio(torch.from_numpy(codes))
    conditions = ours.text_conditioner.encode([PROMPT])
    our_logits = ours.lm(mx.array(codes), conditions)
    assert relative_error(our_logits, logits[None].numpy()) < 1e-3
    assert relative_error(ours.codec.decode(mx.array(codes)), audio.numpy()) < 1e-3


def test_a_late_step_attends_to_all_positions_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_backend(random_bundle("demo"), monkeypatch)
    lengths = []
    forward = theirs.model.decoder.forward

    def record(*arguments: object, **options: object) -> object:
        lengths.append(options["past_key_values"].get_seq_length())  # type: ignore[attr-defined]
        return forward(*arguments, **options)

    theirs.model.decoder.forward = record
    assert theirs.step(10) > 0
    assert lengths == list(range(482, 500))


def test_a_comparison_reports_both_and_their_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "bench.json"
    arguments = ["--shape", "demo", "--runs", "1", "-d", "0.2", "--json", str(file)]
    assert main([*arguments, "--compare", "transformers"]) == 0
    rows = json.loads(file.read_text())["rows"]
    compared = {row["name"]: row for row in rows if row["transformers"]}
    assert compared.keys() >= {
        "text encoding",
        *(f"LM at {second} s" for second in (0, 10, 20, 30)),
        "codec, 0.2 s",
        "generation, 0.2 s",
    }
    for row in compared.values():
        ours, other = row["ours"]["median"], row["transformers"]["median"]
        assert other > 0
        assert row["ratio"] == pytest.approx(ours / other if row["more_is_better"] else other / ours)
    lines = capsys.readouterr().out.splitlines()
    assert "transformers" in lines[1]
    assert sum(line.endswith("x") for line in lines) == len(compared)
