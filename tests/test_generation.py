"""Generations are values: what a stream was started with is what it makes, whatever happens to the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import MusicGenError, UsageError
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.lm import LM

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


class Spoiled:
    """`LM.predict`, but for some calls' logits of one row, which become `value`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: set[int], value: float, row: int = 0) -> None:
        predict, count = LM.predict, itertools.count(1)

        def spoil(lm: LM, x: mx.array, steps: int) -> mx.array:
            logits = predict(lm, x, steps)
            if next(count) in calls:
                logits[row, 1, -1, 5] = value
            return logits

        monkeypatch.setattr(LM, "predict", spoil)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("use_sampling", [True, False])
@pytest.mark.parametrize("step", [1, 17, 53])
def test_logits_that_are_not_finite_are_an_error_that_names_the_step(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch, value: float, use_sampling: bool, step: int
) -> None:
    model.set_generation_params(duration=1.0, seed=3, use_sampling=use_sampling)
    Spoiled(monkeypatch, {step}, value)
    with pytest.raises(
        MusicGenError, match=rf"NaN or infinite at step {step} of 53: its weights are damaged"
    ):
        model.generate(["rock"])


def test_one_row_of_a_batch_that_is_not_finite_is_an_error(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, {9}, np.nan, row=1)
    with pytest.raises(MusicGenError, match="at step 9 of"):
        model.generate(["rock", "jazz"])


def test_steps_are_counted_over_all_windows_and_good_chunks_come_first(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.max_duration = 0.6
    model.set_generation_params(duration=1.0, extend_stride=0.3, seed=3)
    steps: list[tuple[int, int]] = []
    wanted = joined(model.stream(["rock"], chunk_seconds=0.1))
    model.set_custom_progress_callback(lambda *step: steps.append(step))
    chunks = []
    Spoiled(monkeypatch, {40}, np.nan)
    with pytest.raises(MusicGenError, match="at step 40 of 59"):  # noqa: PT012
        for chunk in model.stream(["rock"], chunk_seconds=0.1):
            chunks.append(np.array(chunk))
    assert steps[-1][1] == 59
    assert len(chunks) == 5
    np.testing.assert_array_equal(joined(chunks), wanted[:, :, : 5 * RATE // 10])


def test_what_to_try_is_said_for_too_much_guidance(model: MusicGen) -> None:
    model.set_generation_params(duration=0.2, cfg_coef=1e38)
    with pytest.raises(MusicGenError, match="guidance coefficient is too large"):
        model.generate(["rock"])


def test_what_to_try_is_said_where_half_precision_overflows(
    transformers_folder: Callable[[str], Path],
) -> None:
    model = MusicGen.get_pretrained(str(transformers_folder("mono")))
    model.set_generation_params(duration=0.2)
    model.lm.set_dtype(mx.float16)
    model.lm.out_norm.weight = mx.full(model.lm.out_norm.weight.shape, 60000, mx.float16)
    with pytest.raises(MusicGenError, match=r"at step 1 of 13.*half precision overflows.* --dtype float32"):
        model.generate(["rock"])


def test_weights_with_nan_are_an_error_and_no_tone(transformers_folder: Callable[[str], Path]) -> None:
    model = MusicGen.get_pretrained(str(transformers_folder("mono")))
    model.set_generation_params(duration=0.2)
    model.lm.out_norm.weight = model.lm.out_norm.weight * np.nan
    with pytest.raises(MusicGenError, match="at step 1 of 13"):
        model.generate(["rock"])


def test_a_codec_with_nan_is_an_error(transformers_folder: Callable[[str], Path]) -> None:
    model = MusicGen.get_pretrained(str(transformers_folder("mono")))
    model.set_generation_params(duration=0.2)
    last = model.compression_model.decoder.layers[-1].conv
    last.bias = last.bias * np.nan
    with pytest.raises(MusicGenError, match="codec's audio is NaN or infinite"):
        model.generate(["rock"])
    with pytest.raises(MusicGenError, match="codec's audio is NaN or infinite"):
        model.generate_audio(mx.zeros((1, 4, 3), mx.int32))


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-31, 1e-300, 5e-324])
def test_a_temperature_too_low_to_divide_by_is_greedy(model: MusicGen, temperature: float) -> None:
    model.set_generation_params(duration=0.3, seed=3, use_sampling=False)
    wanted = np.array(model.generate(["rock"], return_tokens=True)[1])
    for others in ({}, {"top_k": 0}, {"top_p": 0.5}):
        model.set_generation_params(duration=0.3, seed=3, temperature=temperature, **others)
        np.testing.assert_array_equal(model.generate(["rock"], return_tokens=True)[1], wanted)


@pytest.mark.parametrize("temperature", [1e-30, 1e-9, 1e38, 1e300])
def test_any_temperature_gives_codes_that_are_drawn(model: MusicGen, temperature: float) -> None:
    model.set_generation_params(duration=0.3, seed=3, temperature=temperature)
    codes = np.array(model.generate(["rock"], return_tokens=True)[1])
    assert len(np.unique(codes)) > 5
    assert not (np.diff(codes[0], axis=0) == 1).all()


def test_numpy_scalars_are_parameters_like_pythons(model: MusicGen) -> None:
    options = {"duration": 0.3, "top_k": 20, "top_p": 0.9, "temperature": 0.5, "cfg_coef": 2.0, "seed": 7}
    model.set_generation_params(**options)
    wanted = np.array(model.generate(["rock", "jazz"]))
    for integer, number in ((np.uint32, np.float64), (np.int64, np.float64), (np.uint8, np.float64)):
        typed = {name: (integer if isinstance(v, int) else number)(v) for name, v in options.items()}
        model.set_generation_params(**typed)
        np.testing.assert_array_equal(model.generate(["rock", "jazz"]), wanted)
        inputs = model.prepare_inputs(["rock", "jazz"], [integer(7), integer(8)])
        np.testing.assert_array_equal(joined(model.generate_stream(inputs, model.params)), wanted)
    assert model.generate_unconditional(np.int64(2)).shape[0] == 2


@pytest.mark.parametrize("seed", [np.uint64(2**32), np.int8(-1), np.float32(3), 1.5, True, "1"])
def test_seeds_out_of_range_are_refused(model: MusicGen, seed: object) -> None:
    with pytest.raises(UsageError, match="seed must be an integer from 0 to 4294967295"):
        model.set_generation_params(seed=seed)
    with pytest.raises(UsageError, match="seed must be an integer from 0 to 4294967295"):
        model.prepare_inputs(["rock"], [seed])
    with pytest.raises(UsageError, match="1 descriptions, but 2 seeds"):
        model.prepare_inputs(["rock"], [1, 2])


def test_audio_of_any_float_type_and_layout_is_a_prompt(model: MusicGen) -> None:
    clip = np.linspace(-0.5, 0.5, 2 * 9000, dtype=np.float32).reshape(2, 9000)
    clip = np.array(mx.array(clip).astype(mx.bfloat16).astype(mx.float32))  # exact in all of them
    wanted = model.prepare_inputs(["a"], [1], prompt=[clip], prompt_sample_rate=RATE).prompt
    assert wanted is not None
    for same in (
        clip[:, ::-1].copy()[:, ::-1],
        clip[::-1],
        np.asfortranarray(clip),
        clip.astype(np.float64),
        clip.astype(">f4"),
        mx.array(clip),
        mx.array(clip).astype(mx.bfloat16),
        mx.array(clip[:, ::-1].copy())[:, ::-1],
    ):
        for rate in (RATE, np.int64(RATE)):
            codes = model.prepare_inputs(["a"], [1], prompt=[same], prompt_sample_rate=rate).prompt
            np.testing.assert_array_equal(codes, wanted)
    for resampled in (clip[:, ::-1].copy()[:, ::-1], mx.array(clip).astype(mx.bfloat16)):
        model.prepare_inputs(["a"], [1], prompt=[resampled], prompt_sample_rate=44100)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.ones((1, 1), np.float32), 48000, r"1 sample\(s\) at 48000 Hz: less than one at 32000 Hz"),
        (np.ones((1, 20), np.float32), 768000, r"20 sample\(s\) at 768000 Hz"),
        (np.full((1, 900), 13107, np.int16), RATE, "must be float samples.*not int16"),
        (mx.zeros((1, 900), mx.int32), RATE, "must be float samples.*not int32"),
        (np.ones((1, 900), np.complex64), RATE, "not complex64"),
        (np.full((1, 900), "a"), RATE, "must be float samples"),
        ([[1.0], [1.0, 2.0]], RATE, "must be an array of float samples, not list"),
    ],
)
def test_audio_that_cannot_be_a_prompt_is_refused_in_a_sentence(
    model: MusicGen, audio: object, rate: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model.prepare_inputs(["a"], [1], prompt=[audio], prompt_sample_rate=rate)


@pytest.mark.parametrize("kind", [bytes, str, int, lambda _: ["a", "b"]])
def test_what_is_no_audio_is_refused_in_a_sentence(model: MusicGen, kind: Callable[[int], object]) -> None:
    for method in (
        lambda audio: model.generate_continuation(audio, RATE),
        lambda audio: model.stream(["a"], prompt=audio, prompt_sample_rate=RATE),
        lambda audio: model.prepare_inputs(["a"], [1], prompt=[audio], prompt_sample_rate=RATE),
    ):
        with pytest.raises(UsageError, match="float samples"):
            method(kind(3))


@pytest.mark.parametrize("shape", [(1, 9000), (1, 1, 9000)])
def test_a_memoryview_is_an_array(model: MusicGen, shape: tuple[int, ...]) -> None:
    model.set_generation_params(duration=0.5)
    audio = memoryview(np.full(shape, 0.1, np.float32))
    assert model.generate_continuation(audio, RATE).shape[0] == 1


def test_prompts_of_different_lengths_are_refused(model: MusicGen) -> None:
    clips = [np.zeros((1, length), np.float32) for length in (640, 1280)]
    with pytest.raises(UsageError, match="same length"):
        model.generate_continuation(clips, RATE)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint64])
def test_numpy_parameters_are_pythons(model: MusicGen, kind: type) -> None:
    numbers = {"top_k": kind(100), "temperature": np.float16(0.5), "cfg_coef": kind(3), "duration": kind(1)}
    params = model.make_params(**numbers)
    assert params == model.make_params(top_k=100, temperature=0.5, cfg_coef=3.0, duration=1.0)
    inputs = model.prepare_inputs(["a tune"], [kind(7)])
    wanted = next(model.generate_stream(inputs, model.make_params(top_k=100, duration=0.2)))
    np.testing.assert_array_equal(
        next(model.generate_stream(inputs, model.make_params(top_k=kind(100), duration=0.2))), wanted
    )


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, ">i4"])
def test_numpy_codes_are_decoded(model: MusicGen, kind: object) -> None:
    codes = np.arange(4 * 20).reshape(1, 4, 20) % 64
    wanted = np.array(model.generate_audio(mx.array(codes)))
    np.testing.assert_array_equal(model.generate_audio(codes.astype(kind)), wanted)
    reversed_twice = codes[:, :, ::-1].copy()[:, :, ::-1].astype(kind, order="K")
    np.testing.assert_array_equal(model.generate_audio(reversed_twice), wanted)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 4, 3)), "must be integers, not float64"),
        (mx.zeros((1, 4, 3)), "must be integers, not float32"),
        (mx.zeros((1, 4, 3), mx.bool_), "must be integers, not bool"),
        (np.full((1, 4, 3), 2**32), "codes from 0 to 63"),
        (np.full((1, 4, 3), -1), "codes from 0 to 63"),
        (np.zeros((4, 3), np.int32), "shape"),
        ("abc", "must be integers"),
    ],
)
def test_codes_that_are_none_are_refused(model: MusicGen, codes: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate_audio(codes)


@pytest.mark.parametrize("text", ["\ud800", "a piano \udc80", "\udfff\ud800"])
def test_a_text_that_is_not_unicode_is_the_prompts_fault(model: MusicGen, text: str) -> None:
    for generate in (
        lambda: model.generate([text]),
        lambda: model.generate(["a piano", text]),
        lambda: model.stream([text]),
        lambda: model.prepare_inputs([text], [0]),
        lambda: model.generate_continuation(mx.ones((1, 1, 32000)), 32000, [text]),
    ):
        with pytest.raises(UsageError, match=r"prompt is not valid UTF-8.*half of a surrogate pair"):
            generate()
