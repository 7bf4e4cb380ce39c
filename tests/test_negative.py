"""A negative prompt stands where the null condition stands: guidance leads away from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.making import generate_clips
from audiocraft_mlx.clips.metadata import describe_request
from audiocraft_mlx.clips.requests import ClipRequest, FieldError, ModelOptions, OutputOptions
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

from .conftest import load_arrays
from .slow_generation import section_logits, slow_codes

RATE = 32000
ROCK, LONG = "happy rock", "a slow and quiet ballad with brushed drums, an upright bass and a piano"
NOT, NOT_LONG = "vocals", "vocals, distortion, low quality, noise, a crowd, applause and much else"
GAP = 1e-4


@pytest.fixture(scope="module")
def model_of(hub_cache: Path, goldens: Path, separator: None, device: str) -> Callable[[str], MusicGen]:
    loaded: dict[str, MusicGen] = {}

    def of(name: str) -> MusicGen:
        if name not in loaded:
            loaded[name] = MusicGen.get_pretrained(str(goldens / "goldens" / name))
        model = MusicGen(name, loaded[name]._bundle)
        model.set_generation_params(use_sampling=False, duration=0.5, seed=1)
        return model

    return of


def codes_of(model: MusicGen, descriptions: list[object], *audio: object, **given: object) -> np.ndarray:
    if audio:
        # The GPU's branch of source separation is slow on a CPU; a melody's chroma is all that counts here.
        given = {"melody_separation": "off", **given}
        return np.array(
            model.generate_with_chroma(descriptions, *audio, RATE, return_tokens=True, **given)[1]
        )
    return np.array(model.generate(descriptions, return_tokens=True, **given)[1])


def audio(seed: int, seconds: float = 1.0) -> mx.array:
    return 0.1 * mx.random.normal((1, int(seconds * RATE)), key=mx.random.key(seed))


# Exactness


@pytest.mark.parametrize("name", ["mono", "stereo"])
def test_codes_with_a_negative_prompt_are_the_references(
    model_of: Callable[[str], MusicGen], goldens: Path, name: str
) -> None:
    folder = goldens / "goldens_control"
    case = json.loads((folder / "control.json").read_text())
    wanted = load_arrays(folder / "control.npz")[f"{name}.negative.codes"]
    model = model_of(name)
    for params in ({}, {"two_step_cfg": True}):
        model.set_generation_params(
            use_sampling=False, duration=case["duration"], cfg_coef=case["cfg_coef"], **params
        )
        for negative in (case["negative"], [case["negative"]]):
            got = codes_of(model, [case["prompt"]], negative=negative)
            np.testing.assert_array_equal(got, wanted)
    assert (codes_of(model, [case["prompt"]]) != wanted).any()


@pytest.mark.parametrize(
    "sections", [[(0, ROCK, 0)], [(0, "", 0)], [(0, LONG, 0), (5, ROCK, 0)], [(0, ROCK, 0), (8, LONG, 10)]]
)
@pytest.mark.parametrize("negative", [NOT, NOT_LONG])
@pytest.mark.parametrize("params", [{}, {"two_step_cfg": True}, {"cfg_coef": 0.0}])
@pytest.mark.parametrize("name", ["mono", "rope"])
def test_codes_are_those_of_a_slow_reference(
    model_of: Callable[[str], MusicGen],
    name: str,
    params: dict[str, object],
    negative: str,
    sections: list[tuple[int, str, int]],
) -> None:
    model = model_of(name)
    model.set_generation_params(use_sampling=False, duration=0.5, **params)
    logits = section_logits(model, sections, model.guidance.coef, negative)
    wanted, gap = slow_codes(model.lm, logits, 25)
    assert gap > GAP
    description = [(first / 50, text, fade / 50) for first, text, fade in sections]
    np.testing.assert_array_equal(codes_of(model, [description], negative=negative)[0], wanted)


def prefix_of(model: MusicGen, audio: Any, text: str | None, away_from: str | None) -> tuple[Any, Any, Any]:
    """The prefixes of one row, without padding: of its conditions, of the null ones, of audio alone."""

    def tokens(text: str | None) -> mx.array:
        return model.text_conditioner.hidden_states([text])[0][0]

    conditioner = model.audio_conditioner
    if isinstance(conditioner, MelodyConditioner):
        (own,) = conditioner.encode([audio], separate=False)
        null = conditioner.null_tokens()
    else:
        encoded, present = conditioner.encode([audio], model.style_params, [1])
        own = encoded[0, : int(np.array(present).sum()) or None]
        null = mx.zeros_like(own)
    no_text = mx.zeros_like(tokens(text))
    return (
        mx.concatenate([own, tokens(text)]),
        mx.concatenate([null, tokens(away_from) if away_from else no_text]),
        mx.concatenate([own, no_text]),
    )


@pytest.mark.parametrize("negative", [NOT, NOT_LONG])
@pytest.mark.parametrize("text", [LONG, None])
@pytest.mark.parametrize(
    ("name", "params"),
    [("melody", {}), ("style", {}), ("style", {"cfg_coef_beta": 5.0})],
)
def test_codes_with_a_melody_or_a_style_are_those_of_a_slow_reference(
    model_of: Callable[[str], MusicGen],
    name: str,
    params: dict[str, Any],
    text: str | None,
    negative: str,
) -> None:
    model = model_of(name)
    model.set_generation_params(use_sampling=False, duration=0.3, seed=1, **params)
    clip = audio(3)
    prefixes = prefix_of(model, clip, text, negative)

    def logits(sequence: mx.array) -> np.ndarray:
        own, null, alone = (
            np.array(model.lm(sequence, ConditionTensors(prefix=prefix[None]))[0, :, -1].astype(mx.float32))
            for prefix in prefixes
        )
        if "cfg_coef_beta" in params:
            own = alone + (own - alone) * params["cfg_coef_beta"]
        return null + (own - null) * model.guidance.coef

    wanted, gap = slow_codes(model.lm, logits, 15)
    assert gap > GAP
    np.testing.assert_array_equal(codes_of(model, [text], [clip], negative=negative)[0], wanted)


def test_a_melody_in_two_steps_has_the_negative_prompt_alone(model_of: Callable[[str], MusicGen]) -> None:
    model = model_of("melody")
    clip = audio(3)
    together = codes_of(model, [LONG], [clip], negative=NOT)
    model.set_generation_params(use_sampling=False, duration=0.5, seed=1, two_step_cfg=True)
    np.testing.assert_array_equal(codes_of(model, [LONG], [clip], negative=NOT), together)
    assert (codes_of(model, [LONG], [clip]) != together).any()


@pytest.mark.parametrize("name", ["mono", "melody", "style"])
def test_rows_have_their_own(model_of: Callable[[str], MusicGen], name: str) -> None:
    model = model_of(name)
    model.set_generation_params(use_sampling=False, duration=0.4, seed=1)
    texts = [ROCK, LONG, ROCK, None, None]
    negative = [NOT_LONG, None, NOT, NOT, ""]
    together = codes_of(model, texts, negative=negative)
    for row, (text, own) in enumerate(zip(texts, negative, strict=True)):
        alone = codes_of(model, [text], negative=own)
        np.testing.assert_array_equal(together[row], alone[0])
    assert (together[0] != together[2]).any()


def test_none_and_no_text_are_as_before(model_of: Callable[[str], MusicGen]) -> None:
    model = model_of("mono")
    model.set_generation_params(duration=0.4, seed=3)
    wanted = codes_of(model, [ROCK, LONG])
    for negative in (None, "", [None, ""]):
        np.testing.assert_array_equal(codes_of(model, [ROCK, LONG], negative=negative), wanted)


def test_other_methods_take_it_too(model_of: Callable[[str], MusicGen]) -> None:
    model = model_of("mono")
    clip = audio(4, 0.2)
    inputs = model.prepare_inputs([ROCK], [1], prompt=[clip], prompt_sample_rate=RATE, negative=NOT)
    assert inputs.negative == (NOT,)
    wanted = np.concatenate([np.array(c) for c in model.generate_stream(inputs, model.params)], axis=2)
    continued = np.array(model.generate_continuation(clip, RATE, [ROCK], negative=[NOT]))
    np.testing.assert_allclose(continued[:, :, -wanted.shape[2] :], wanted, atol=1e-5)
    streamed = model.stream([ROCK], prompt=clip, prompt_sample_rate=RATE, negative=NOT)
    np.testing.assert_allclose(np.concatenate([np.array(c) for c in streamed], axis=2), wanted, atol=1e-5)
    without = np.array(model.generate_continuation(clip, RATE, [ROCK]))
    assert np.abs(continued - without).max() > 1e-3
    alone = np.array(model.generate_unconditional(1, negative=NOT))
    assert np.abs(alone - np.array(model.generate_unconditional(1))).max() > 1e-3


# What is wrong


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        ([NOT, NOT], "1 descriptions, but 2 negative prompts"),
        (5, "negative must be a string or a list"),
        ([5], "a negative prompt must be a string or None, not 5"),
        ("x" * 10_001, "the prompt has 10001 characters"),
    ],
)
def test_what_is_no_negative_prompt_is_refused(
    model_of: Callable[[str], MusicGen], negative: object, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model_of("mono").generate([ROCK], negative=negative)


def test_without_guidance_it_cannot_work(
    model_of: Callable[[str], MusicGen], capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of("mono")
    model.set_generation_params(cfg_coef=1.0, duration=0.4)
    for call in (model.generate, model.stream):
        with pytest.raises(UsageError, match="can't work with guidance 1, which is none"):
            call([ROCK, LONG], negative=[None, NOT])
    codes_of(model, [ROCK], negative="")
    with pytest.raises(FieldError, match="negative can't work with cfg_coef 1"):
        ClipRequest(ROCK, negative=NOT, cfg_coef=1)
    assert main([ROCK, "--negative", NOT, "--cfg-coef", "1"]) == 2
    error = capsys.readouterr().err
    assert "--negative can't work with --cfg-coef 1, which is no guidance" in error
    assert error.count("\n") == 1


def test_where_the_models_own_guidance_is_none_it_cannot_work(model_of: Callable[[str], MusicGen]) -> None:
    model = model_of("mono")
    model._bundle = replace(model._bundle, guidance=GuidanceParams(coef=1.0))
    with pytest.raises(UsageError, match="can't work with guidance 1"):
        list(generate_clips(model, [ClipRequest(ROCK, 1, 0.4, negative=NOT)]))


# Clips


def test_clips_have_their_own(model_of: Callable[[str], MusicGen]) -> None:
    model = model_of("mono")
    requests = [ClipRequest(ROCK, 1, 0.4, negative=NOT), ClipRequest(ROCK, 1, 0.4)]
    chunks: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for event in generate_clips(model, requests):
        if hasattr(event, "audio"):
            chunks[event.index].append(event.audio)
    made = [np.concatenate(chunks[i], axis=1) for i in (0, 1)]
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_the_command_makes_it_again() -> None:
    command = parse([ROCK, LONG, "--negative", "vocals, distortion", "-m", "small", "--seed", "5"])
    assert isinstance(command, GenerateClips)
    assert {request.negative for request in command.requests} == {"vocals, distortion"}
    request = command.requests[0]
    metadata = describe_request(request, OutputOptions(), ModelOptions("small"))
    again = parse(shlex.split(metadata.to_command())[1:])
    assert isinstance(again, GenerateClips)
    assert again.requests == (request,)
    assert ClipRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert "negative" not in describe_request(ClipRequest(ROCK), OutputOptions(), ModelOptions("s")).options
