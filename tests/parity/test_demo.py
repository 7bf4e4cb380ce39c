"""The demo model: transformers loads the same folder and gives the same codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

import audiocraft_mlx
from audiocraft_mlx.models.musicgen import MusicGen

FOLDER = Path(audiocraft_mlx.__file__).parent / "demo"
SECONDS = 3.0


@pytest.fixture(scope="module")
def reference() -> MusicgenForConditionalGeneration:
    return MusicgenForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours() -> MusicGen:
    model = MusicGen.get_pretrained("demo")
    model.set_generation_params(use_sampling=False, cfg_coef=3.0, duration=SECONDS)
    return model


@pytest.mark.parametrize(
    "prompt", ["a fast happy piano tune", "slow sad strings, no drums", "energetic synth with a dance beat"]
)
def test_greedy_codes_are_those_of_transformers(
    reference: MusicgenForConditionalGeneration, ours: MusicGen, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[np.ndarray] = []
    decode = reference.audio_encoder.decode

    def record(audio_codes: torch.Tensor, *rest: object, **options: object) -> object:
        decoded.append(audio_codes[0].numpy())
        return decode(audio_codes, *rest, **options)

    monkeypatch.setattr(reference.audio_encoder, "decode", record)
    inputs = AutoTokenizer.from_pretrained(FOLDER)([prompt], return_tensors="pt")
    frames = int(SECONDS * 50)
    # Its own first step and the delay of the last codebook come on top.
    audio = reference.generate(**inputs, do_sample=False, guidance_scale=3.0, max_new_tokens=frames + 3)
    made, tokens = ours.generate([prompt], return_tokens=True)
    np.testing.assert_array_equal(tokens, decoded[0])
    assert tokens.shape[2] == frames
    np.testing.assert_allclose(made, audio.numpy(), atol=1e-4)
