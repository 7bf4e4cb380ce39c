"""Generations are values: what a stream was started with is what it makes, whatever happens to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.models.musicgen import MusicGen

RATE = 32000


@pytest.fixture(scope="module")
def loaded(transformers_folder: Callable[[str], Path]) -> MusicGen:
    return MusicGen.get_pretrained(str(transformers_folder("mono")))


@pytest.fixture
def model(loaded: MusicGen) -> MusicGen:
    model = MusicGen(loaded.name, loaded._bundle)
    model.set_generation_params(duration=1.0, seed=3)
    return model


def joined(chunks: object) -> np.ndarray:
    return np.concatenate([np.array(chunk) for chunk in chunks], axis=2)


def test_a_stream_keeps_the_parameters_that_it_was_started_with(model: MusicGen) -> None:
    wanted = joined(model.stream(["rock"], chunk_seconds=0.2))
    untouched = model.stream(["rock"], chunk_seconds=0.2)
    model.set_generation_params(duration=0.4, temperature=0.1, top_k=1, cfg_coef=1.0, seed=99)
    model.max_duration = 0.3
    np.testing.assert_array_equal(joined(untouched), wanted)


def test_parameters_that_change_while_a_stream_runs_change_the_next_one_only(model: MusicGen) -> None:
    model.max_duration = 0.6
    model.set_generation_params(duration=1.0, extend_stride=0.3, seed=3)
    wanted = joined(model.stream(["rock"], chunk_seconds=0.2))
    stream = model.stream(["rock"], chunk_seconds=0.2)
    first = np.array(next(stream))
    model.set_generation_params(duration=5.0, extend_stride=0.1, use_sampling=False, cfg_coef=1.0)
    np.testing.assert_array_equal(np.concatenate([first, joined(stream)], axis=2), wanted)


def test_two_streams_of_one_model_do_not_meet(model: MusicGen) -> None:
    wanted = [joined(model.stream([text], chunk_seconds=0.2)) for text in ("rock", "jazz")]
    streams = [model.stream([text], chunk_seconds=0.2) for text in ("rock", "jazz")]
    chunks = [[np.array(chunk) for chunk in pair] for pair in zip(*streams, strict=True)]
    for row, alone in enumerate(wanted):
        np.testing.assert_array_equal(np.concatenate([pair[row] for pair in chunks], axis=2), alone)


def test_an_abandoned_stream_leaves_the_model_as_it_was(model: MusicGen) -> None:
    wanted = joined(model.stream(["rock"]))
    stream = model.stream(["jazz"], chunk_seconds=0.2)
    next(stream)
    stream.close()
    np.testing.assert_array_equal(joined(model.stream(["rock"])), wanted)


def test_an_error_in_a_callback_ends_its_generation_alone(model: MusicGen) -> None:
    wanted = np.array(model.generate(["rock"]))

    def fail(done: int, total: int) -> None:
        if done == 5:
            raise RuntimeError("no more")

    model.set_custom_progress_callback(fail)
    with pytest.raises(RuntimeError, match="no more"):
        model.generate(["rock"])
    model.set_custom_progress_callback(None)
    np.testing.assert_array_equal(np.array(model.generate(["rock"])), wanted)


def test_rows_have_parameters_of_their_own(model: MusicGen) -> None:
    texts, seeds = ["rock", "jazz", None, "a longer text about rock"], [5, 1, 2**32 - 1, 5]
    params = [
        model.make_params(duration=0.5, temperature=0.7),
        model.make_params(duration=0.5, top_k=3, cfg_coef=5.0),
        model.make_params(duration=0.5, top_p=0.9),
        model.make_params(duration=0.5, use_sampling=False, cfg_coef=2.0),
    ]
    together = joined(model.generate_stream(model.prepare_inputs(texts, seeds), params, chunk_seconds=0.5))
    for row, text in enumerate(texts):
        alone = model.prepare_inputs([text], seeds[row : row + 1])
        np.testing.assert_allclose(
            joined(model.generate_stream(alone, params[row], chunk_seconds=0.5))[0], together[row], atol=1e-5
        )


@pytest.mark.parametrize(
    "change",
    [{"duration": 0.6}, {"cfg_coef": 1.0}, {"two_step_cfg": True}, {"extend_stride": 0.3}],
)
def test_rows_that_cannot_share_a_batch_are_refused(model: MusicGen, change: dict[str, object]) -> None:
    params = [model.make_params(duration=0.5), model.make_params(**{"duration": 0.5, **change})]
    assert params[0].batch_key != params[1].batch_key
    with pytest.raises(UsageError, match="can't share a batch"):
        model.generate_stream(model.prepare_inputs(["rock", "jazz"], [1, 2]), params)
    with pytest.raises(UsageError, match="2 sets of parameters"):
        model.generate_stream(model.prepare_inputs(["rock"], [1]), params)


def test_the_callback_of_a_stream_is_its_own(model: MusicGen) -> None:
    calls: list[tuple[int, int]] = []
    inputs = model.prepare_inputs(["rock"], [1])
    for _ in model.generate_stream(inputs, model.params, on_step=lambda *step: calls.append(step)):
        pass
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total in calls} == {len(calls)}


def test_what_does_not_fit_is_refused_before_the_first_chunk(model: MusicGen) -> None:
    clip = 0.1 * mx.random.normal((1, RATE))
    inputs = model.prepare_inputs(["rock"], [1], prompt=[clip], prompt_sample_rate=RATE)
    with pytest.raises(UsageError, match="nothing is left"):
        model.generate_stream(inputs, model.params)
    with pytest.raises(UsageError, match="extend_stride"):
        model.generate_stream(
            inputs, replace(model.params, duration=3.0, max_duration=1.5, extend_stride=2.0)
        )
    with pytest.raises(UsageError, match="same length"):
        model.prepare_inputs(["a", "b"], [1, 2], prompt=[clip, clip[:, 1:]], prompt_sample_rate=RATE)


def test_a_prompt_that_rows_share_is_encoded_once(model: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[int, ...]] = []
    encode = model.compression_model.encode
    monkeypatch.setattr(
        type(model.compression_model),
        "encode",
        lambda self, audio: encoded.append(audio.shape) or encode(audio),
    )
    clip = np.array(0.1 * mx.random.normal((1, RATE)))
    inputs = model.prepare_inputs(["a", "b", "c"], [1, 2, 3], prompt=[clip] * 3, prompt_sample_rate=RATE)
    assert encoded == [(1, 1, RATE)]
    assert inputs.prompt is not None
    assert inputs.prompt.shape == (3, 4, 50)


def test_sampling_of_rows_is_that_of_each_alone() -> None:
    from audiocraft_mlx.decoding.sampling import gumbel_noise, row_keys, sample_codes

    logits = mx.random.normal((4, 3, 50), key=mx.random.key(1))
    noise = gumbel_noise(row_keys([1, 2, 3, 4], 1), 3, 50)[:, 0]
    rows = [
        SamplingParams(top_k=3),
        SamplingParams(temperature=0.0),
        SamplingParams(top_p=0.5),
        SamplingParams(temperature=2.0, top_k=0),
    ]
    together = sample_codes(logits, rows, noise)
    for row, sampling in enumerate(rows):
        alone = sample_codes(logits[row : row + 1], sampling, noise[row : row + 1])
        np.testing.assert_array_equal(together[row : row + 1], alone)
