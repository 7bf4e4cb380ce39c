"""Equal to Hugging Face transformers, on its own files: safetensors, and sharded `.bin`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.models.musicgen import MusicGen

from .conftest import load_arrays

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["mono", "mono-bin", "stereo", "stereo-bin"])
def golden(
    request: pytest.FixtureRequest, goldens: Path, transformers_folder: Callable[[str], Path], device: str
) -> SimpleNamespace:
    folder = goldens / "goldens_hf"
    return SimpleNamespace(
        model=MusicGen.get_pretrained(str(transformers_folder(request.param))),
        values=load_arrays(folder / f"{request.param.removesuffix('-bin')}.npz"),
        prompts=json.loads((folder / "meta.json").read_text())["prompts"],
    )


def greedy(
    golden: SimpleNamespace, prompts: list[str | None], wanted: np.ndarray, **params: object
) -> np.ndarray:
    model = golden.model
    model.set_generation_params(use_sampling=False, duration=wanted.shape[-1] / model.frame_rate, **params)
    return np.array(model.generate(prompts, return_tokens=True)[1])


def test_tokens_and_hidden_states(golden: SimpleNamespace) -> None:
    conditioner, values = golden.model.text_conditioner, golden.values
    tokens, mask = conditioner.tokenize(golden.prompts[:2])
    np.testing.assert_array_equal(tokens, values["input_ids"])
    np.testing.assert_array_equal(mask, values["attention_mask"])
    hidden = np.array(conditioner.t5(mx.array(tokens), mx.array(mask)))
    np.testing.assert_allclose(hidden[mask], values["text_hidden"][mask], atol=TOLERANCE)


def test_logits_of_a_padded_batch_and_of_one_prompt(golden: SimpleNamespace) -> None:
    lm, values = golden.model.lm, golden.values
    sequence = mx.array(values["seq"])
    for prompts, wanted in ((golden.prompts[:2], "logits"), (golden.prompts[:1], "logits_single")):
        state = lm.make_cache(golden.model.text_conditioner.encode(prompts), sequence.shape[2])
        logits = lm(sequence[: len(prompts)], cache=state)
        np.testing.assert_allclose(logits, values[wanted], atol=TOLERANCE)


def test_greedy_codes_and_audio_of_a_single_prompt(golden: SimpleNamespace) -> None:
    wanted, audio = golden.values["greedy_single.codes"], golden.values["greedy_single.wav"]
    codes = greedy(golden, golden.prompts[:1], wanted)
    np.testing.assert_array_equal(codes, wanted)
    made = np.array(golden.model.generate_audio(mx.array(codes)))
    # The golden keeps the start only.
    np.testing.assert_allclose(made[..., : audio.shape[-1]], audio, atol=TOLERANCE)


def test_greedy_codes_of_every_row_of_a_padded_batch(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_padded.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:2], wanted), wanted)


def test_greedy_codes_without_guidance(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_single_noguidance.codes"]
    np.testing.assert_array_equal(greedy(golden, golden.prompts[:1], wanted, cfg_coef=1.0), wanted)


def test_greedy_codes_without_a_prompt(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_uncond.codes"]
    np.testing.assert_array_equal(greedy(golden, [None], wanted), wanted)


def test_codec(golden: SimpleNamespace) -> None:
    values = golden.values
    if "codec.odd.wav" not in values:
        pytest.skip("only the mono goldens have the codec's")
    codec = golden.model.compression_model
    np.testing.assert_array_equal(codec.encode(mx.array(values["codec.odd.wav"])), values["codec.odd.codes"])
    decoded = codec.decode(mx.array(values["codec.odd.codes"]))
    np.testing.assert_allclose(decoded, values["codec.odd.decoded"], atol=TOLERANCE)
