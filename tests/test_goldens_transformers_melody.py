"""Equal to transformers' `MusicgenMelody`, on its own files: safetensors, and sharded `.bin`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.decoding.windows import Window
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

from .conftest import load_arrays

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["melody", "melody-bin"])
def golden(
    request: pytest.FixtureRequest, goldens: Path, transformers_folder: Callable[[str], Path], device: str
) -> SimpleNamespace:
    folder = goldens / "goldens_hf"
    return SimpleNamespace(
        model=MusicGen.get_pretrained(str(transformers_folder(request.param))),
        values=load_arrays(folder / "melody.npz"),
        prompts=json.loads((folder / "meta.json").read_text())["prompts"],
    )


@pytest.fixture
def melodies(golden: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[mx.array]:
    """Melodies whose chroma are the golden's features: it begins after their extraction."""
    features = golden.values["input_features"]
    melodies = [mx.full((1, 100), index + 1.0) for index in range(len(features))]

    def chroma(melody: mx.array) -> mx.array:
        frames = mx.array(features[round(melody.max().item()) - 1])
        return mx.tile(frames, (235 // len(frames) + 1, 1))[:235]

    monkeypatch.setattr(golden.model.audio_conditioner, "chroma", chroma)
    return melodies


def conditions_of(
    golden: SimpleNamespace, prompts: list[str], melodies: list[mx.array | None]
) -> ConditionTensors:
    model = golden.model
    inputs = model.prepare_inputs(
        prompts, range(len(prompts)), melody_wavs=melodies, melody_sample_rate=32000
    )
    return model._conditions(inputs, model.params, Window(0, 0, 50, 0), several=False)


def greedy(
    golden: SimpleNamespace,
    prompts: list[str],
    melodies: list[mx.array] | None,
    frames: int,
    **params: object,
) -> np.ndarray:
    model = golden.model
    model.set_generation_params(use_sampling=False, duration=frames / model.frame_rate, **params)
    if melodies is None:
        return np.array(model.generate(prompts, return_tokens=True)[1])
    return np.array(model.generate_with_chroma(prompts, melodies, 32000, return_tokens=True)[1])


def test_logits_of_one_melody_and_of_the_longest_prompt_of_a_batch(
    golden: SimpleNamespace, melodies: list[mx.array]
) -> None:
    lm, values = golden.model.lm, golden.values
    sequence = mx.array(values["seq"])
    state = lm.make_cache(conditions_of(golden, golden.prompts[:1], melodies[:1]), sequence.shape[2])
    np.testing.assert_allclose(lm(sequence[:1], cache=state), values["logits_single"], atol=TOLERANCE)
    state = lm.make_cache(conditions_of(golden, golden.prompts[:2], melodies), sequence.shape[2])
    np.testing.assert_allclose(lm(sequence, cache=state)[1], values["logits"][1], atol=TOLERANCE)


def test_greedy_codes_of_one_prompt_and_of_the_longest_of_a_batch(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_single.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:1], None, wanted.shape[2]), wanted)
    wanted = golden.values["greedy_padded.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:2], None, wanted.shape[2])[1], wanted[1])


def test_greedy_codes_without_guidance(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_single_noguidance.codes"]
    codes = greedy(golden, golden.prompts[:1], None, wanted.shape[2], cfg_coef=1.0)
    np.testing.assert_array_equal(codes, wanted)


def test_greedy_codes_with_a_melody(golden: SimpleNamespace, melodies: list[mx.array]) -> None:
    wanted = golden.values["greedy_melody_single.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:1], melodies[:1], wanted.shape[2]), wanted)
    wanted = golden.values["greedy_melody.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:2], melodies, wanted.shape[2])[1], wanted[1])


def test_audio(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_single.wav"]
    made = np.array(golden.model.generate_audio(mx.array(golden.values["greedy_single.codes"])))
    np.testing.assert_allclose(made[..., : wanted.shape[-1]], wanted, atol=TOLERANCE)
