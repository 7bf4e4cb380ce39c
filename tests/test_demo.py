"""The model in the package: text in, audio out, without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.models.musicgen import MusicGen

from .audiocraft_reference import write_audiocraft_release
from .conftest import add_to_hub_cache

HERE = Path(__file__).parent
DEMO = HERE.parent / "audiocraft_mlx" / "demo"


def written(name: str) -> dict[str, Any]:
    return json.loads((DEMO / name).read_text())


@pytest.fixture(scope="module")
def demo() -> MusicGen:
    return MusicGen.get_pretrained("demo")


def test_it_is_small_and_complete() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 32e6
    assert {"README.md", "config.json", "generation_config.json", "tokenizer.json"} <= {
        file.name for file in DEMO.iterdir()
    }


def test_it_is_a_musicgen_of_the_released_rates(demo: MusicGen) -> None:
    assert (demo.sample_rate, demo.frame_rate, demo.audio_channels) == (32000, 50.0, 1)
    config = written("config.json")
    assert demo.lm.config.num_codebooks == config["decoder"]["num_codebooks"]
    assert demo.max_duration == config["max_duration"]


def test_its_own_sampling_defaults_are_used(demo: MusicGen) -> None:
    own = written("generation_config.json")
    demo.set_generation_params()
    assert (demo.sampling.top_k, demo.sampling.temperature) == (own["top_k"], own["temperature"])
    assert demo.guidance.coef == own["guidance_scale"]


def test_audio_depends_on_the_seed(demo: MusicGen) -> None:
    demo.set_generation_params(duration=2.0, seed=3)
    audio, tokens = demo.generate(["a fast happy piano tune"], return_tokens=True)
    wave = np.array(audio)[0, 0]
    assert wave.shape == (64000,)
    assert 0.01 < np.sqrt((wave**2).mean()) < 0.5
    assert np.abs(wave).max() < 1.2
    _, again = demo.generate(["a fast happy piano tune"], return_tokens=True)
    np.testing.assert_array_equal(again, tokens)
    demo.set_generation_params(duration=2.0, seed=4)
    _, other = demo.generate(["a fast happy piano tune"], return_tokens=True)
    assert (np.array(other) != np.array(tokens)).mean() > 0.2


def test_as_an_audiocraft_release_it_generates_the_same_audio(
    demo: MusicGen, hub_cache: Path, tmp_path: Path
) -> None:
    release, text_encoder = tmp_path / "release", tmp_path / "t5"
    write_audiocraft_release(DEMO, release, text_encoder, "demo/t5", demo.max_duration)
    add_to_hub_cache(hub_cache, "demo/t5", text_encoder)
    other = MusicGen.get_pretrained(str(release))
    assert other.max_duration == demo.max_duration
    prompts = ["a fast happy piano tune", "slow sad strings with a dance beat"]
    music = []
    for model in (demo, other):
        model.set_generation_params(duration=2.0, use_sampling=False, cfg_coef=2.0)
        music.append(model.generate(prompts, return_tokens=True))
    np.testing.assert_array_equal(music[0][1], music[1][1])
    np.testing.assert_allclose(music[0][0], music[1][0], atol=1e-5)


def test_log_likelihood_of_held_out_music_is_unchanged(demo: MusicGen) -> None:
    """A subtle error in any part of the network changes it. See `make_demo_codes.py`."""
    with np.load(HERE / "demo_codes.npz") as file:
        codes, captions, expected = file["codes"].astype(np.int32), list(file["captions"]), file["nats"]
    lm = demo.lm
    pattern = DelayPattern(lm.config.delays, codes.shape[2])
    sequence = pattern.build_sequence(mx.array(codes), lm.special_token_id)
    conditions = demo.text_conditioner.encode([str(caption) for caption in captions])
    logits = np.array(lm(sequence[:, :, :-1], cache=lm.make_cache(conditions, pattern.steps - 1)))
    nats = []
    for k, delay in enumerate(lm.config.delays):
        predicted = logits[:, k, delay : delay + codes.shape[2]]
        likelihood = predicted - np.log(np.exp(predicted).sum(axis=-1, keepdims=True))
        nats.append(-np.take_along_axis(likelihood, codes[:, k, :, None], axis=-1).mean())
    np.testing.assert_allclose(nats, expected, atol=2e-3)
    # It is trained: a uniform distribution has 6.2 nats.
    assert np.mean(nats) < 4.0
