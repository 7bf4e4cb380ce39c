"""Equal to audiocraft, on its own release files: text to music, mono and stereo, and text to sounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.models.audiogen import AudioGen
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

from .conftest import load_arrays

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["mono", "stereo", "rope", "audiogen"])
def golden(request: pytest.FixtureRequest, goldens: Path, hub_cache: Path, device: str) -> SimpleNamespace:
    folder = goldens / "goldens"
    meta = json.loads((folder / "meta.json").read_text())
    return SimpleNamespace(
        model=(AudioGen if request.param == "audiogen" else MusicGen).get_pretrained(
            str(folder / request.param)
        ),
        values=load_arrays(folder / f"{request.param}.npz"),
        prompts=meta["prompts"],
        longest=max(range(3), key=lambda i: len(meta["prompts"][i] or "")),
        meta=meta["models"][request.param],
    )


def greedy(golden: SimpleNamespace, prompts: list[str | None], **params: object) -> np.ndarray:
    golden.model.set_generation_params(use_sampling=False, **params)
    _, tokens = golden.model.generate(prompts, return_tokens=True)
    return np.array(tokens)


def seconds(codes: np.ndarray, golden: SimpleNamespace) -> float:
    return codes.shape[-1] / golden.meta["frame_rate"]


def test_the_model_is_described_as_the_reference_describes_it(golden: SimpleNamespace) -> None:
    model, meta = golden.model, golden.meta
    assert model.sample_rate == meta["sample_rate"]
    assert model.frame_rate == meta["frame_rate"]
    assert model.audio_channels == meta["channels"]
    assert model.max_duration == meta["max_duration"]
    fresh = type(model)(model.name, model._bundle)
    assert fresh.duration == meta["default_duration"]
    assert fresh.extend_stride == meta["extend_stride"]
    defaults = meta["defaults"]
    assert fresh.sampling == SamplingParams(
        defaults["use_sampling"], defaults["top_k"], defaults["top_p"], defaults["temp"]
    )
    assert fresh.guidance == GuidanceParams(defaults["cfg_coef"], defaults["two_step_cfg"])


def test_text_conditions(golden: SimpleNamespace) -> None:
    conditions = golden.model.text_conditioner.encode(golden.prompts)
    wanted = golden.values["cond.description"]
    np.testing.assert_allclose(conditions.cross, wanted[:3], atol=TOLERANCE)
    np.testing.assert_allclose(conditions.unconditional.cross, wanted[3:], atol=TOLERANCE)


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
@pytest.mark.parametrize("prefill", [16, 5, 1])
def test_raw_logits_in_one_pass_and_step_by_step(golden: SimpleNamespace, branch: str, prefill: int) -> None:
    rows = {"cond": slice(0, 3), "null": slice(3, 6), "both": slice(0, 6)}[branch]
    conditions = ConditionTensors(cross=mx.array(golden.values["cond.description"][rows]))
    sequence = golden.values["seq"]
    sequence = mx.array(np.concatenate([sequence] * 2) if branch == "both" else sequence)
    steps = sequence.shape[2]
    lm = golden.model.lm
    state = lm.make_cache(conditions, steps)
    logits = [lm(sequence[:, :, :prefill], cache=state)]
    logits += [lm(sequence[:, :, step : step + 1], cache=state) for step in range(prefill, steps)]
    np.testing.assert_allclose(
        mx.concatenate(logits, axis=2), golden.values[f"raw_logits.{branch}"], atol=TOLERANCE
    )


def test_predictions_for_given_codes(golden: SimpleNamespace) -> None:
    codes, lm = golden.values["codes"], golden.model.lm
    pattern = DelayPattern(lm.config.delays, codes.shape[2])
    sequence = pattern.build_sequence(mx.array(codes), lm.special_token_id)
    conditions = ConditionTensors(cross=mx.array(golden.values["cond.description"][:3]))
    logits = lm(sequence, cache=lm.make_cache(conditions, pattern.steps))
    # The logits at a step predict the codes of the next.
    predicted = np.stack(
        [np.array(logits)[:, k, delay : delay + codes.shape[2]] for k, delay in enumerate(lm.config.delays)],
        axis=1,
    )
    mask = golden.values["pred.mask"]
    np.testing.assert_allclose(predicted[mask], golden.values["pred.logits"][mask], atol=TOLERANCE)
    assert mask.any()


def test_greedy_codes_of_a_single_prompt(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_single.codes"]
    np.testing.assert_array_equal(
        greedy(golden, golden.prompts[:1], duration=seconds(wanted, golden)), wanted
    )


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("greedy", {}),
        ("greedy_two_step", {"two_step_cfg": True}),
        ("greedy_coef1", {"cfg_coef": 1.0}),
    ],
)
def test_greedy_codes_of_the_longest_prompt_of_a_batch(
    golden: SimpleNamespace, name: str, params: dict[str, object]
) -> None:
    # The reference doesn't mask padding, so only of the prompt without any are its codes ours.
    wanted = golden.values[f"{name}.codes"]
    row = golden.longest
    if row >= len(wanted):
        pytest.fail(f"{name} lacks the longest prompt")
    params = {**params, "duration": seconds(wanted, golden)}
    alone = greedy(golden, [golden.prompts[row]], **params)
    np.testing.assert_array_equal(alone[0], wanted[row])
    batch = greedy(golden, golden.prompts, **params)
    np.testing.assert_array_equal(batch[row], wanted[row])


def test_an_empty_prompt_is_no_condition_also_in_a_batch(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy.codes"]
    empty = golden.prompts.index("")
    params = {"duration": seconds(wanted, golden)}
    np.testing.assert_array_equal(greedy(golden, golden.prompts, **params)[empty], wanted[empty])
    np.testing.assert_array_equal(greedy(golden, [None], **params)[0], wanted[empty])


@pytest.mark.parametrize("params", [{}, {"two_step_cfg": True}, {"cfg_coef": 1.0}])
def test_each_prompt_of_a_batch_gives_the_same_codes_as_alone(
    golden: SimpleNamespace, params: dict[str, object]
) -> None:
    params = {**params, "duration": 0.5}
    batch = greedy(golden, golden.prompts, **params)
    for row, prompt in enumerate(golden.prompts):
        np.testing.assert_array_equal(greedy(golden, [prompt], **params)[0], batch[row])


def test_greedy_codes_without_any_prompt(golden: SimpleNamespace) -> None:
    wanted = golden.values["greedy_uncond.codes"]
    golden.model.set_generation_params(use_sampling=False, duration=seconds(wanted, golden))
    _, tokens = golden.model.generate_unconditional(len(wanted), return_tokens=True)
    np.testing.assert_array_equal(tokens, wanted)


def test_the_codec_encodes_and_decodes_as_the_reference_does(golden: SimpleNamespace) -> None:
    values, model = golden.values, golden.model
    for name in ("decode", "greedy"):
        codes = mx.array(values[f"{name}.codes"][:1])
        np.testing.assert_allclose(model.generate_audio(codes), values[f"{name}.wav"], atol=TOLERANCE)
    encoded = model.compression_model.encode(mx.array(values["cont.converted"]))
    np.testing.assert_array_equal(encoded, values["cont.prompt_codes"])


def test_codes_continue_a_prompt_of_codes(golden: SimpleNamespace) -> None:
    model, wanted = golden.model, golden.values["cont_nodesc.codes"]
    prompt = mx.array(golden.values["cont.prompt_codes"][:1])
    codes = generate_frames(
        LMDecoder(model.lm),
        model.text_conditioner.encode([None]),
        wanted.shape[2],
        SamplingParams(use_sampling=False),
        GuidanceParams(),
        prompt=prompt,
    )
    np.testing.assert_array_equal(mx.concatenate([prompt, *codes], axis=2), wanted)


def test_audio_is_continued(golden: SimpleNamespace) -> None:
    model, values = golden.model, golden.values
    source, rate, wanted = mx.array(values["cont.src"]), int(values["cont.src_rate"]), values["cont.codes"]
    model.set_generation_params(use_sampling=False, duration=seconds(wanted, golden))
    row = golden.longest
    audio, codes = model.generate_continuation(
        source, rate, golden.prompts[: len(source)], return_tokens=True
    )
    np.testing.assert_array_equal(codes[row], wanted[row])
    alone = model.generate_continuation(source[row], rate, [golden.prompts[row]], return_tokens=True)
    np.testing.assert_array_equal(alone[1][0], wanted[row])
    np.testing.assert_allclose(model.generate_audio(codes), audio, atol=1e-5)
    wanted = values["cont_nodesc.codes"]
    model.set_generation_params(use_sampling=False, duration=seconds(wanted, golden))
    _, codes = model.generate_continuation(source[:1], rate, return_tokens=True)
    np.testing.assert_array_equal(codes, wanted)


def with_windows(golden: SimpleNamespace, name: str) -> np.ndarray:
    """The wanted codes of a long run, for which the model is set."""
    long = golden.meta[name]
    golden.model.max_duration = long["max_duration"]
    golden.model.set_generation_params(
        use_sampling=False, duration=long["duration"], extend_stride=long["extend_stride"]
    )
    return golden.values[f"{name}.codes"]


@pytest.fixture
def trained_length(golden: SimpleNamespace) -> Iterator[None]:
    """Put back after a test that lowers it."""
    trained = golden.model.max_duration
    yield
    golden.model.max_duration = trained


@pytest.mark.usefixtures("trained_length")
def test_codes_beyond_the_trained_length(golden: SimpleNamespace) -> None:
    wanted = with_windows(golden, "long")
    _, codes = golden.model.generate([golden.prompts[golden.longest]], return_tokens=True)
    np.testing.assert_array_equal(codes[0], wanted[golden.longest])


@pytest.mark.usefixtures("trained_length")
def test_audio_is_continued_beyond_the_trained_length(golden: SimpleNamespace) -> None:
    wanted, values = with_windows(golden, "long_cont"), golden.values
    source, rate = mx.array(values["cont.src"][:1]), int(values["cont.src_rate"])
    _, codes = golden.model.generate_continuation(source, rate, golden.prompts[:1], return_tokens=True)
    np.testing.assert_array_equal(codes, wanted)
