"""The benchmark's comparison: transformers has the same model as ours, and both are measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from audiocraft_mlx.benchmark.shapes import random_checkpoint
from audiocraft_mlx.benchmark.side import PROMPT
from audiocraft_mlx.benchmark.theirs import Theirs
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.cli.bench import main

from .pair import relative_error


def side(checkpoint: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> Theirs:
    # torch's threads would wait for a processor that is taken.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with torch.no_grad():  # gives back the gradients, which it turns off for its whole process
        return Theirs(checkpoint)


@pytest.mark.parametrize("model", ["demo", "stereo"])
def test_both_have_the_same_model(
    model: str, transformers_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "demo":
        as_read, ours = random_checkpoint("demo"), random_checkpoint("demo")
        ours.materialize()
    else:
        folder = str(transformers_folder(model))
        as_read, ours = load(folder, lazy=True), load(folder)
    theirs = side(as_read, monkeypatch)
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
        audio = theirs.audio(torch.from_numpy(codes))
    conditions = ours.text_conditioner.encode([PROMPT])
    our_logits = ours.lm(mx.array(codes), ours.lm.start(conditions, steps))
    assert relative_error(our_logits, logits[None].numpy()) < 1e-3
    assert relative_error(ours.codec.decode(mx.array(codes)), audio.numpy()) < 1e-3


def test_a_late_step_looks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = side(random_checkpoint("demo"), monkeypatch)
    seen = []
    forward = theirs.model.decoder.forward

    def record(*arguments: object, **options: object) -> object:
        seen.append(options["past_key_values"].get_seq_length())  # type: ignore[attr-defined]
        return forward(*arguments, **options)

    theirs.model.decoder.forward = record
    assert theirs.step(10) > 0
    assert seen == list(range(482, 500))


def test_a_comparison_has_both_and_their_ratio(
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
