"""Equal to audiocraft on its own release files of the models with audio conditions: melody and style."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.conditioning.chroma import chroma
from audiocraft_mlx.decoding.windows import Window
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

from .conftest import load_arrays

TOLERANCE = 1e-4
RATE = 32000


def golden_of(goldens: Path, name: str) -> SimpleNamespace:
    folder = goldens / "goldens"
    meta = json.loads((folder / "meta.json").read_text())
    return SimpleNamespace(
        model=MusicGen.get_pretrained(str(folder / name)),
        values=load_arrays(folder / f"{name}.npz"),
        prompts=meta["prompts"],
        longest=max(range(3), key=lambda i: len(meta["prompts"][i] or "")),
        meta=meta["models"][name],
    )


@pytest.fixture(scope="module")
def stems() -> dict[bytes, mx.array]:
    """Of all audio that was separated so far."""
    return {}


@pytest.fixture(scope="module")
def melody(
    goldens: Path, hub_cache: Path, separator: None, device: str, stems: dict[bytes, mx.array]
) -> SimpleNamespace:
    golden = golden_of(goldens, "melody")
    network = golden.model.audio_conditioner._separator
    separate = network.separate

    def separate_once(audio: mx.array) -> mx.array:
        # The GPU's branch, slow on a CPU, is left: `test_htdemucs.py` has the stems of both.
        key = np.array(audio).tobytes()
        if key not in stems:
            stems[key] = Context().run(separate, audio)
            mx.eval(stems[key])
        return stems[key]

    network.separate = separate_once
    golden.wavs = [mx.array(wav) for wav in golden.values["chroma.wav"]]
    golden.rows = [golden.wavs[0], None, golden.wavs[1]]
    return golden


@pytest.fixture(scope="module")
def style(goldens: Path, hub_cache: Path, device: str) -> SimpleNamespace:
    golden = golden_of(goldens, "style")
    golden.wavs = [mx.array(wav) for wav in golden.values["wav"]]
    golden.rows = [golden.wavs[0], None, golden.wavs[1]]
    return golden


def greedy(
    golden: SimpleNamespace, prompts: list[str | None], wavs: object, rate: int = RATE, **params: object
) -> np.ndarray:
    golden.model.set_generation_params(use_sampling=False, **{"duration": 1.0, **params})
    if wavs is None:
        return np.array(golden.model.generate(prompts, return_tokens=True)[1])
    return np.array(golden.model.generate_with_chroma(prompts, wavs, rate, return_tokens=True)[1])


def conditions_of(
    golden: SimpleNamespace, prompts: list[str | None], wavs: list[mx.array | None]
) -> ConditionTensors:
    model = golden.model
    inputs = model.prepare_inputs(prompts, range(len(prompts)), melody_wavs=wavs, melody_sample_rate=RATE)
    return model._conditions(inputs, model.params, Window(0, 0, 50, 0), several=False)


def check_logits(golden: SimpleNamespace, conditions: ConditionTensors, wanted: np.ndarray) -> None:
    """In one pass and step by step."""
    lm, sequence = golden.model.lm, golden.values["seq"]
    sequence = mx.array(np.concatenate([sequence] * (len(wanted) // len(sequence))))
    steps = sequence.shape[2]
    for prefill in (steps, 5):
        state = lm.make_cache(conditions, steps)
        logits = [lm(sequence[:, :, :prefill], cache=state)]
        logits += [lm(sequence[:, :, step : step + 1], cache=state) for step in range(prefill, steps)]
        np.testing.assert_allclose(mx.concatenate(logits, axis=2), wanted, atol=TOLERANCE)


# Melody


def test_the_condition_types_of_melody_and_style_models(
    melody: SimpleNamespace, style: SimpleNamespace
) -> None:
    assert melody.model.condition_types == {"text", "melody"}
    assert style.model.condition_types == {"text", "style"}


def test_melody_conditions(melody: SimpleNamespace) -> None:
    values = melody.values
    conditions = conditions_of(melody, melody.prompts, melody.rows)
    for row in (0, melody.longest):
        length = int(values["cond.description.mask"][row].sum())
        own = conditions.prefix[row, -235 - length :]
        np.testing.assert_allclose(own[:235], values["cond.self_wav"][row], atol=TOLERANCE)
        np.testing.assert_allclose(own[235:], values["cond.description"][row, :length], atol=TOLERANCE)
    for row in range(3):
        null = conditions.unconditional.prefix[row]
        length = 235 + int(melody.values["cond.description.mask"][row].sum() or 1)
        np.testing.assert_allclose(null[-length:][:235], values["cond.self_wav"][3 + row], atol=TOLERANCE)
        assert (null[-length:][235:] == 0).all()


def test_melody_logits(melody: SimpleNamespace) -> None:
    values = melody.values
    prefix = np.concatenate([values["cond.self_wav"], values["cond.description"]], axis=1)
    check_logits(melody, ConditionTensors(prefix=mx.array(prefix)), values["raw_logits.both"])


@pytest.mark.parametrize(
    ("name", "params"), [("greedy", {}), ("greedy_two_step", {"two_step_cfg": True}), ("greedy_textonly", {})]
)
def test_melody_codes_of_the_longest_prompt(
    melody: SimpleNamespace, name: str, params: dict[str, object]
) -> None:
    wavs = None if name == "greedy_textonly" else melody.rows
    row, wanted = melody.longest, melody.values[f"{name}.codes"]
    np.testing.assert_array_equal(greedy(melody, melody.prompts, wavs, **params)[row], wanted[row])
    own = None if wavs is None else [wavs[row]]
    np.testing.assert_array_equal(greedy(melody, [melody.prompts[row]], own, **params)[0], wanted[row])


def test_melody_codes_of_text_alone(melody: SimpleNamespace) -> None:
    wanted = melody.values["greedy_textonly_single.codes"]
    np.testing.assert_array_equal(greedy(melody, melody.prompts[:1], None), wanted)
    np.testing.assert_array_equal(greedy(melody, melody.prompts[:1], [None]), wanted)


def test_melody_codes_of_a_stereo_melody_at_another_rate(melody: SimpleNamespace) -> None:
    source, wanted = melody.values["greedy_44k_stereo.src"], melody.values["greedy_44k_stereo.codes"]
    for wavs in (mx.array(source), source, list(source), source[0]):
        np.testing.assert_array_equal(greedy(melody, melody.prompts[:1], wavs, rate=44100), wanted)


def test_melody_codes_beyond_the_trained_length(melody: SimpleNamespace) -> None:
    long, trained = melody.meta["long"], melody.model.max_duration
    melody.model.max_duration = long["max_duration"]
    try:
        codes = greedy(
            melody,
            melody.prompts[:1],
            melody.wavs[:1],
            duration=long["duration"],
            extend_stride=long["extend_stride"],
        )
    finally:
        melody.model.max_duration = trained
    np.testing.assert_array_equal(codes, melody.values["long.codes"])


def test_a_short_melody_is_repeated(melody: SimpleNamespace) -> None:
    short = melody.wavs[0][:, :20000]
    frames = melody.model.audio_conditioner.chroma(short)
    count = chroma(mx.zeros((1, 20000)), melody.model.audio_conditioner.config).shape[1]
    assert frames.shape == (235, 12)
    np.testing.assert_array_equal(frames[count : 2 * count], frames[:count])


def test_of_a_long_melody_only_what_is_used_is_separated(melody: SimpleNamespace) -> None:
    conditioner, lengths = melody.model.audio_conditioner, []
    network = conditioner._separator
    separate = network.separate
    network.separate = lambda audio: lengths.append(audio.shape[2]) or mx.zeros((1, 4, 2, audio.shape[2]))
    try:
        conditioner.chroma(mx.ones((1, 200 * RATE)))
    finally:
        network.separate = separate
    assert lengths[0] < 60 * network.sample_rate


# Style


def test_style_conditions(style: SimpleNamespace) -> None:
    values = style.values
    conditions = conditions_of(style, style.prompts[:2], style.wavs)
    for row in range(2):
        length = int(values["cond3.description.mask"][row].sum())
        for tensors, golden_row in (
            (conditions, row),
            (conditions.audio_only, 2 + row),
            (conditions.unconditional, 4 + row),
        ):
            own = tensors.prefix[row, -15 - length :]
            np.testing.assert_allclose(own[:15], values["cond3.self_wav"][golden_row], atol=TOLERANCE)
            description = values["cond3.description"][golden_row, :length]
            np.testing.assert_allclose(own[15:], description, atol=TOLERANCE)


def test_style_logits(style: SimpleNamespace) -> None:
    values = style.values
    prefix = np.concatenate([values["cond3.self_wav"], values["cond3.description"]], axis=1)
    check_logits(style, ConditionTensors(prefix=mx.array(prefix)), values["raw_logits.three"])


@pytest.mark.parametrize(("name", "params"), [("greedy", {}), ("greedy_double", {"cfg_coef_beta": 5.0})])
def test_style_codes_of_the_longest_prompt(
    style: SimpleNamespace, name: str, params: dict[str, object]
) -> None:
    row, wanted = style.longest, style.values[f"{name}.codes"]
    np.testing.assert_array_equal(greedy(style, style.prompts[:2], style.wavs, **params)[row], wanted[row])
    alone = greedy(style, [style.prompts[row]], [style.wavs[row]], **params)
    np.testing.assert_array_equal(alone[0], wanted[row])


def test_style_codes_of_mixed_rows_of_text_and_of_style_alone(style: SimpleNamespace) -> None:
    row, values = style.longest, style.values
    mixed = greedy(style, style.prompts, style.rows)
    np.testing.assert_array_equal(mixed[row], values["greedy_mixed.codes"][row])
    for wavs in (None, [None] * 3):
        codes = greedy(style, style.prompts, wavs)
        np.testing.assert_array_equal(codes[row], values["greedy_textonly.codes"][row])
    codes = greedy(style, [None], style.wavs[:1])
    np.testing.assert_array_equal(codes, values["greedy_styleonly.codes"])


def test_the_excerpt_of_a_style_is_drawn_from_the_seed(style: SimpleNamespace) -> None:
    style.model.set_style_conditioner_params(excerpt_length=1.5)
    try:
        codes = [greedy(style, ["rock"], style.wavs[:1], seed=seed, duration=0.2) for seed in (1, 1, 2)]
    finally:
        style.model.set_style_conditioner_params()
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


# Both


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["melody", "style"])
@pytest.mark.parametrize("params", [{}, {"two_step_cfg": True}, {"cfg_coef": 1.0}, {"cfg_coef_beta": 3.0}])
def test_each_row_of_a_batch_gives_the_same_codes_as_alone(
    name: str, params: dict[str, object], request: pytest.FixtureRequest
) -> None:
    golden = request.getfixturevalue(name)
    short = golden.wavs[1][:, :40000]
    # A row without style has as many zeros as the others have tokens, as in the reference: not so alone.
    rows = golden.rows if name == "melody" else [golden.wavs[0], short, golden.wavs[1]]
    params = {"duration": 0.3, "seed": 5, **params}
    if name == "style":
        golden.model.set_style_conditioner_params(excerpt_length=3.0)
    batch = greedy(golden, golden.prompts, rows, **params)
    for row, (prompt, wav) in enumerate(zip(golden.prompts, rows, strict=True)):
        alone = greedy(golden, [prompt], [wav], **{**params, "seed": 5 + row})
        np.testing.assert_array_equal(alone[0], batch[row])


def test_separation_can_be_left_out(melody: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model = melody.model
    model.set_generation_params(use_sampling=False, duration=1.0)
    arguments = (["rock"], melody.wavs[0][None], RATE)

    def codes(**options: str) -> np.ndarray:
        return np.array(model.generate_with_chroma(*arguments, return_tokens=True, **options)[1])

    separated = codes()
    np.testing.assert_array_equal(codes(melody_separation="auto"), separated)
    np.testing.assert_array_equal(codes(melody_separation="on"), separated)
    monkeypatch.setattr(model.audio_conditioner, "chroma", None)
    inputs = model.prepare_inputs(
        ["rock"], [0], melody_wavs=arguments[1], melody_sample_rate=RATE, melody_separation="off"
    )
    assert not inputs.separate_melody
    assert codes(melody_separation="off").shape == separated.shape
    with pytest.raises(UsageError, match="melody_separation must be one of auto, on, off, not 'never'"):
        codes(melody_separation="never")


def text_only(goldens: Path) -> MusicGen:
    return MusicGen.get_pretrained(str(goldens / "goldens" / "mono"))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda m, w: m.generate_with_chroma(["a", "b"], [w], RATE), "2 descriptions, but 1 melodies"),
        (lambda m, w: m.generate_with_chroma(["a"], [w], 0), "sample rate"),
        (lambda m, w: m.generate_with_chroma(["a"], [w], None), "needs its sample rate"),
        (lambda m, w: m.generate_with_chroma(["a"], [mx.zeros((1, RATE))], RATE), "silent"),
        (lambda m, w: m.generate_with_chroma(["a"], [w * mx.nan], RATE), "NaN or infinite"),
        (lambda m, w: m.generate_with_chroma(["a"], [w * 20000], RATE), "where full scale is 1"),
        (lambda m, w: m.generate_with_chroma(["a"], [w[0]], RATE), r"\[channels, samples\]"),
        (lambda m, w: m.generate_with_chroma(["a"], [w[:, :0]], RATE), "some samples"),
        (lambda m, w: m.set_style_conditioner_params(eval_q=1), "has no style condition"),
        (
            lambda m, w: m.set_generation_params(two_step_cfg=True, cfg_coef_beta=2.0),
            "can't be used with two_step_cfg",
        ),
        (
            lambda m, w: m.set_generation_params(cfg_coef_beta=float("nan")),
            "cfg_coef_beta must be a number, not nan",
        ),
    ],
)
def test_what_a_model_cannot_use_is_refused(
    misuse: Callable[[MusicGen, mx.array], object], message: str, melody: SimpleNamespace
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        misuse(melody.model, melody.wavs[0])
    assert "\n" not in str(error.value)


def test_a_text_model_refuses_melody_and_beta(goldens: Path, hub_cache: Path) -> None:
    model = text_only(goldens)
    assert model.condition_types == {"text"}
    with pytest.raises(UsageError, match="conditioned on text only"):
        model.generate_with_chroma(["rock"], mx.ones((1, RATE)), RATE)
    with pytest.raises(UsageError, match="cfg_coef_beta"):
        model.set_generation_params(cfg_coef_beta=5.0)
    with pytest.raises(UsageError, match="eval_q must be at most"):
        MusicGen.get_pretrained(str(goldens / "goldens" / "style")).set_style_conditioner_params(eval_q=7)
