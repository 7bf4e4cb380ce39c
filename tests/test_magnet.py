"""MAGNeT: equal to audiocraft on its own release file, and what ours does beyond."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.checkpoints.model_files import SHORT_NAMES, released_as_magnet
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.cli.convert import main as convert
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.making import Chunk, Started, generate_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.clips.source import SourceClip
from audiocraft_mlx.decoding.masked import MaskedParams, fill_masks
from audiocraft_mlx.decoding.sampling import SamplingParams, row_keys
from audiocraft_mlx.decoding.spans import OverlappingSpans, SeparateSpans, make_spans, mask_rates
from audiocraft_mlx.decoding.windows import infill_region
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.models.magnet import MAGNeT
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.ops.attention import attention, banded_attention

from .conftest import load_arrays
from .torch_files import write_torch_file

STEPS = (5, 3, 2, 2)
GREEDY = SamplingParams(use_sampling=False, top_k=0, top_p=0.9, temperature=3.0)


@pytest.fixture(scope="module")
def golden(goldens: Path, hub_cache: Path, device: str) -> SimpleNamespace:
    folder = goldens / "goldens"
    meta = json.loads((folder / "meta.json").read_text())
    return SimpleNamespace(
        model=MAGNeT.get_pretrained(str(folder / "magnet")),
        values=load_arrays(folder / "magnet.npz"),
        prompts=meta["prompts"][:2],
        meta=meta["models"]["magnet"],
    )


@pytest.fixture
def model(golden: SimpleNamespace) -> MAGNeT:
    golden.model.set_generation_params(decoding_steps=STEPS, duration=1.2, seed=3)
    return golden.model


def conditions(golden: SimpleNamespace, row: int) -> ConditionTensors:
    """The reference's, which doesn't mask padding."""
    cross = mx.array(golden.values["cond.description"])
    null = ConditionTensors(cross=cross[2 + row : 3 + row])
    return ConditionTensors(cross=cross[row : row + 1], unconditional=null)


def tokens(model: MAGNeT, descriptions: list[str | None]) -> np.ndarray:
    return np.array(model.generate(descriptions, return_tokens=True)[1])


# Equal to audiocraft


def test_text_conditions(golden: SimpleNamespace) -> None:
    encoded = golden.model.text_conditioner.encode(golden.prompts)
    wanted = golden.values["cond.description"]
    np.testing.assert_allclose(encoded.cross, wanted[:2], atol=1e-5)
    np.testing.assert_allclose(encoded.unconditional.cross, wanted[2:], atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_raw_logits(golden: SimpleNamespace, stage: int) -> None:
    lm, sequence = golden.model.lm, mx.array(golden.values["seq"])
    cross = ConditionTensors(cross=mx.array(golden.values["cond.description"]))
    state = lm.make_state(cross, len(sequence), sequence.shape[2])
    wanted = golden.values[f"raw_logits.stage{stage}"]
    logits = lm.predict_masked(sequence, state, stage)
    np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
    some = mx.array([3, 17, 39])
    np.testing.assert_allclose(
        lm.predict_masked(sequence, state, stage, some), wanted[:, np.array(some)], atol=1e-4
    )


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_codes_of_spans_side_by_side(golden: SimpleNamespace, row: int) -> None:
    wanted = golden.values["greedy.codes"]
    frames = wanted.shape[2]
    codes = fill_masks(
        golden.model.lm,
        conditions(golden, row),
        mx.zeros((1, 4, frames), mx.int32),
        np.zeros(frames, bool),
        GREEDY,
        MaskedParams(decoding_steps=STEPS),
    )
    np.testing.assert_array_equal(codes[0], wanted[row])


def test_a_clip_has_whole_spans_and_the_reference_s_audio(golden: SimpleNamespace) -> None:
    model, prompt = golden.model, golden.prompts[1]  # the one without padding
    model.set_generation_params(
        use_sampling=False, top_k=0, top_p=0.9, temperature=3.0, decoding_steps=STEPS, duration=4
    )
    codes = tokens(model, [prompt])
    np.testing.assert_array_equal(codes[0], golden.values["greedy.codes"][1])
    assert codes.shape[2] == 198  # of 200
    wanted = golden.values["greedy.wav"]
    audio = model.generate_audio(golden.values["greedy.codes"][:1])
    np.testing.assert_allclose(audio[:, :, : wanted.shape[2]], wanted, atol=1e-4)


def test_greedy_codes_of_spans_that_begin_anywhere(golden: SimpleNamespace) -> None:
    golden.model.set_generation_params(
        use_sampling=False,
        top_k=0,
        top_p=0.9,
        temperature=3.0,
        decoding_steps=STEPS,
        span_arrangement="stride1",
        duration=4,
    )
    codes = tokens(golden.model, golden.prompts[:1])
    np.testing.assert_array_equal(codes, golden.values["greedy_stride1.codes"])


def test_defaults_are_the_configuration_s(golden: SimpleNamespace) -> None:
    fresh = MAGNeT("name", golden.model._bundle)
    assert fresh.duration == fresh.max_duration == golden.meta["max_duration"]
    assert fresh.sampling == SamplingParams(True, 0, 0.9, 3.0)
    # `generate.lm` has 60 iterations, audiocraft's class 20 for all models.
    assert fresh.masked == MaskedParams(10.0, 1.0, (60, 10, 10, 10), "nonoverlap")


# What an iteration masks


@pytest.mark.parametrize(
    ("iterations", "units", "counts"),
    [
        (5, 166, [166, 153, 117, 63, 1]),
        (10, 166, [166, 163, 155, 143, 127, 106, 82, 56, 28, 1]),  # not 83 at 60 degrees
        (10, 250, [250, 246, 234, 216, 191, 160, 124, 85, 43, 1]),
        (
            20,
            166,
            [166, 165, 163, 160, 157, 152, 145, 138, 130, 122, 112, 101, 90, 79, 66, 53, 40, 27, 13, 1],
        ),
    ],
)
def test_masked_counts_are_those_of_float32(iterations: int, units: int, counts: list[int]) -> None:
    spans = OverlappingSpans(np.zeros(units, bool), 3)
    assert [spans.masked_count(rate) for rate in mask_rates(iterations)] == counts


def test_sixty_iterations_mask_less_and_less() -> None:
    rates = mask_rates(60)
    assert rates.dtype == np.float32
    assert (np.diff(rates) < 0).all()
    spans = SeparateSpans(np.zeros(1500, bool), 3)
    counts = [spans.masked_count(rate) for rate in rates]
    assert (counts[0], counts[30], counts[58], counts[59]) == (500, 348, 13, 1)


def test_ties_are_broken_by_the_lowest_frame() -> None:
    scores = np.float32([0.5, 0.7, 0.5, 0.5])
    mask = SeparateSpans(np.zeros(8, bool), 2).select(scores, 2)
    assert mask.tolist() == [True, True, True, True, False, False, False, False]


def test_a_span_with_given_and_unknown_codes_is_masked_as_a_whole() -> None:
    known = np.array([True] * 4 + [False] * 5)
    spans = SeparateSpans(known, 3)
    assert spans.count == 2
    assert spans.select(spans.first_scores(), 2).tolist() == [False] * 3 + [True] * 6
    assert make_spans("nonoverlap", known, 1).count == 5


def test_spans_that_overlap_cover_about_as_many_frames_as_are_to_be_masked() -> None:
    generator = np.random.default_rng(0)
    spans = OverlappingSpans(np.zeros(200, bool), 3)
    for count in (1, 3, 10, 57, 120, 200):
        mask = spans.select(generator.random(200, np.float32), count)
        assert abs(int(mask.sum()) - max(count, 3)) <= 3


@pytest.mark.parametrize(("length", "reach"), [(300, 5), (64, 5), (77, 0), (129, 40), (10, 5)])
def test_banded_attention_is_attention_with_a_mask(length: int, reach: int) -> None:
    mx.random.seed(0)
    q, k, v = (mx.random.normal((2, 3, length, 8)) for _ in range(3))
    position = mx.arange(length)
    mask = mx.abs(position[:, None] - position) <= reach
    np.testing.assert_allclose(
        banded_attention(q, k, v, reach), attention(q, k, v, mask), rtol=1e-5, atol=1e-6
    )


# Ours


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1"])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.0, "top_k": 5}, {"top_p": 0.0}])
def test_a_row_is_the_same_in_a_batch_and_alone(
    golden: SimpleNamespace, arrangement: str, params: dict[str, float]
) -> None:
    model, prompts = golden.model, [*golden.prompts, None]
    common = {"decoding_steps": STEPS, "duration": 0.9, "span_arrangement": arrangement, **params}
    model.set_generation_params(**common, seed=7)
    batch = tokens(model, prompts)
    for row, prompt in enumerate(prompts):
        model.set_generation_params(**common, seed=7 + row)
        np.testing.assert_array_equal(tokens(model, [prompt])[0], batch[row])
    assert (batch[0] != batch[1]).any()
    assert batch.min() >= 0
    assert batch.max() < model.lm.config.cardinality


def test_another_seed_is_another_clip(model: MAGNeT) -> None:
    first = tokens(model, ["piano"])
    model.set_generation_params(decoding_steps=STEPS, duration=1.2, seed=4)
    assert (tokens(model, ["piano"]) != first).any()


def test_without_guidance_the_unconditional_logits_do_not_count(golden: SimpleNamespace) -> None:
    cross = mx.array(golden.values["cond.description"])[:1]
    given = mx.zeros((1, 4, 30), mx.int32), np.zeros(30, bool)
    params = MaskedParams(1.0, 1.0, STEPS)
    codes = [
        np.array(
            fill_masks(
                golden.model.lm, ConditionTensors(cross=cross, unconditional=null), *given, GREEDY, params
            )
        )
        for null in (None, ConditionTensors(cross=mx.full(cross.shape, mx.nan)))
    ]
    np.testing.assert_array_equal(*codes)


def test_a_continuation_begins_with_its_prompt(model: MAGNeT) -> None:
    source = np.random.default_rng(0).normal(size=(1, 32000 // 50 * 20)).astype(np.float32) / 10
    prompt = np.array(model.compression_model.encode(mx.array(source[None])))
    assert prompt.shape[2] % 3  # a span is half prompt
    audio, codes = model.generate_continuation(source, 32000, ["piano"], return_tokens=True)
    assert codes.shape[2] == 60
    assert audio.shape[2] == 60 * 640
    np.testing.assert_array_equal(np.array(codes)[:, :, :20], prompt)
    assert np.array(codes).max() < model.lm.config.cardinality


def test_longer_than_the_trained_length_by_windows(model: MAGNeT) -> None:
    model.max_duration = 1.0
    try:
        model.set_generation_params(decoding_steps=STEPS, duration=2.5, extend_stride=0.6, seed=1)
        long = tokens(model, ["piano"])
        assert long.shape[2] == 123  # whole spans of 125
        model.set_generation_params(decoding_steps=STEPS, duration=1.0, seed=1)
        first = tokens(model, ["piano"])
    finally:
        model.max_duration = 4
    # Of the second window the first 18 frames are the end of the first one: 48 - 30.
    np.testing.assert_array_equal(long[:, :, : first.shape[2]], first)


def test_a_stream_is_the_clip_and_counts_iterations(model: MAGNeT) -> None:
    whole = np.array(model.generate(["piano", "drums"]))
    inputs = model.prepare_inputs(["piano", "drums"], [3, 4])
    steps: list[tuple[int, int]] = []
    chunks = list(
        model.generate_stream(
            inputs, model.params, chunk_seconds=0.4, on_step=lambda *step: steps.append(step)
        )
    )
    assert [chunk.shape[2] for chunk in chunks] == [12800] * 3
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-5)
    assert steps == [(done, 24) for done in range(1, 25)]


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1"])
def test_a_plan_knows_how_long_its_clip_is(model: MAGNeT, arrangement: str) -> None:
    source = SourceClip(np.random.default_rng(0).normal(size=(1, 16000)).astype(np.float32) / 10, 32000)
    steps = {"decoding_steps": (2, 1, 1, 1), "span_arrangement": arrangement}
    requests = [
        ClipRequest("piano", 1, 0.5, **steps),
        ClipRequest("piano", 2, 0.5, **steps),
        ClipRequest("piano", 1, 0.5, source=source, **steps),
        ClipRequest.from_dict(
            {"seed": 1, "replace": [0.1, 0.25], **steps, "source": "-"}, lambda name: source
        ),
    ]
    plans, samples, batches = {}, Counter(), 0
    for event in generate_clips(model, requests, chunk_seconds=0.2):
        if isinstance(event, Started):
            batches += 1
            plans |= {plan.index: plan for plan in event.batch}
        elif isinstance(event, Chunk):
            samples[event.index] += event.audio.shape[1]
    assert samples == {index: round(plan.seconds * 32000) for index, plan in plans.items()}
    assert samples[3] == 8 * 640  # of 7.5 frames
    assert batches == 4  # each is there as soon as it is done


def test_given_codes_may_stand_anywhere(golden: SimpleNamespace) -> None:
    generator = np.random.default_rng(1)
    codes, known = generator.integers(0, 64, (1, 4, 60)), generator.random(60) < 0.5
    for arrangement in ("nonoverlap", "stride1"):
        filled = fill_masks(
            golden.model.lm,
            conditions(golden, 0),
            mx.array(codes.astype(np.int32)),
            known,
            SamplingParams(top_k=0),
            MaskedParams(decoding_steps=STEPS, span_arrangement=arrangement),
            row_keys([5], sum(STEPS)),
        )
        np.testing.assert_array_equal(np.array(filled)[..., known], codes[..., known])
        assert (np.array(filled)[..., ~known] != codes[..., ~known]).any()
        assert np.array(filled).max() < 64


def test_a_hole_is_filled_and_all_else_stays(model: MAGNeT) -> None:
    source = np.random.default_rng(2).normal(size=(2, 1, 2 * 32000)).astype(np.float32) / 10
    audio, codes = model.generate_infill(source, 32000, [(0.5, 0.93)], ["piano", None], return_tokens=True)
    audio = np.array(audio)
    assert audio.shape == source.shape
    hole = slice(16000, int(0.93 * 32000))
    np.testing.assert_array_equal(audio[..., : hole.start], source[..., : hole.start])
    np.testing.assert_array_equal(audio[..., hole.stop :], source[..., hole.stop :])
    assert (np.abs(audio[..., hole] - source[..., hole]) > 1e-3).mean() > 0.9
    given = np.array(model.compression_model.encode(mx.array(source)))
    np.testing.assert_array_equal(np.array(codes)[..., :25], given[..., :25])
    np.testing.assert_array_equal(np.array(codes)[..., 47:100], given[..., 47:])


def test_what_follows_a_hole_counts(model: MAGNeT) -> None:
    generator = np.random.default_rng(3)
    source = generator.normal(size=(1, 32000)).astype(np.float32) / 10
    other = source.copy()
    other[:, 24000:] = generator.normal(size=(1, 8000)) / 3
    filled = [
        np.array(model.generate_infill(clip, 32000, [(0.3, 0.6)], ["piano"])) for clip in (source, other)
    ]
    assert (filled[0][..., 12000:16000] != filled[1][..., 12000:16000]).any()


@pytest.mark.parametrize("holes", [[(0.0, 0.4)], [(0.6, 1.01)], [(0.2, 0.4), (0.7, 0.8)]])
def test_holes_at_the_ends_and_several(model: MAGNeT, holes: list[tuple[float, float]]) -> None:
    source = np.random.default_rng(4).normal(size=(1, 32320)).astype(np.float32) / 10
    audio = np.array(model.generate_infill(source, 32000, holes))[0]
    changed = np.zeros(32320, bool)
    for start, end in holes:
        changed[round(start * 32000) : round(end * 32000)] = True
    np.testing.assert_array_equal(audio[:, ~changed], source[:, ~changed])
    assert (audio[:, changed] != source[:, changed]).mean() > 0.9


@pytest.mark.parametrize("end", [1.08, 1.1, 1.5])  # almost a window, one, and more
def test_a_hole_longer_than_a_window_is_filled_by_several(model: MAGNeT, end: float) -> None:
    model.max_duration = 0.6
    try:
        model.set_generation_params(decoding_steps=STEPS, duration=0.6, extend_stride=0.3, seed=1)
        source = np.random.default_rng(5).normal(size=(1, 64000)).astype(np.float32) / 10
        audio = np.array(model.generate_infill(source, 32000, [(0.5, end)]))[0]
    finally:
        model.max_duration = 4
    last = round(end * 32000)
    np.testing.assert_array_equal(audio[:, :16000], source[:, :16000])
    np.testing.assert_array_equal(audio[:, last:], source[:, last:])
    assert (audio[:, 16000:last] != source[:, 16000:last]).mean() > 0.9


def test_the_part_that_is_seen_has_the_hole_in_its_middle() -> None:
    assert infill_region(400, [(10, 20)], 498, 300) == (0, 400)
    assert infill_region(9000, [(4000, 4100)], 498, 300) == (3801, 4299)
    assert infill_region(9000, [(0, 100)], 498, 300) == (0, 498)
    assert infill_region(9000, [(8950, 9000)], 498, 300) == (8502, 9000)
    assert infill_region(9000, [(4000, 4600)], 498, 300) == (3802, 4798)
    # Of the context of windows that overlap half is enough in one.
    assert infill_region(9000, [(4000, 4399)], 498, 300) == (3950, 4448)
    assert infill_region(9000, [(4000, 4400)], 498, 300) == (3802, 4598)
    assert infill_region(499, [(0, 496)], 498, 498) == (0, 498)


# Mistakes


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"decoding_steps": [20, 10, 10]}, "decoding_steps must have 4 integers"),
        ({"decoding_steps": [20, 10, 10, 10, 10]}, "decoding_steps must have 4 integers"),
        ({"decoding_steps": [20, 0, 10, 10]}, "from 1 to"),
        ({"decoding_steps": 20}, "list of integers"),
        ({"decoding_steps": "20,1"}, "list of integers"),
        ({"span_arrangement": "stride2"}, "nonoverlap, stride1"),
        ({"max_cfg_coef": float("nan")}, "max_cfg_coef"),
        ({"top_p": 2}, "top_p"),
        ({"use_sampling": "no"}, "use_sampling must be True or False"),
        ({"duration": 0.04}, "at least one span, 0.06 s"),
    ],
)
def test_parameters_out_of_range(model: MAGNeT, params: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.set_generation_params(**params)


def test_windows_that_would_not_move_on_are_refused(model: MAGNeT) -> None:
    audio = np.full((1, 3 * 32000), 0.1, np.float32)
    model.max_duration = 1.0
    try:
        # Less than a span.
        model.set_generation_params(decoding_steps=STEPS, duration=0.9, extend_stride=0.02)
        for generate in (
            lambda: model.generate_infill(audio, 32000, [(0.5, 2.5)]),
            lambda: model.generate_loop(["piano"]),
        ):
            with pytest.raises(UsageError, match=r"extend_stride, 0.02 s, must be longer"):
                generate()
        # In whole spans as long as a window.
        model.set_generation_params(decoding_steps=STEPS, duration=0.9, extend_stride=0.99)
        with pytest.raises(UsageError, match=r"extend_stride, 0.99 s, must be below max_duration, 1 s"):
            model.generate_infill(audio, 32000, [(0.5, 2.5)])
        # What fits into one needs none.
        assert model.generate_infill(audio, 32000, [(0.5, 0.7)]).shape == (1, 1, 3 * 32000)
    finally:
        model.max_duration = 4


def test_parameters_of_other_models_are_refused(model: MAGNeT) -> None:
    with pytest.raises(UsageError, match="max_cfg_coef and min_cfg_coef instead"):
        model.make_params(cfg_coef=3.0)
    with pytest.raises(TypeError):
        model.set_generation_params(two_step_cfg=True)


@pytest.mark.parametrize(
    ("holes", "message"),
    [
        ([], "holes must be a list"),
        ([(0.5, 0.5)], "must end after it begins"),
        ([(0.5, 3.0)], "the end of a hole"),
        ([(-1, 0.5)], "the beginning of a hole"),
        ([(0.0, 1.0)], "leave nothing"),
        ([0.5], "from second, to second"),
    ],
)
def test_holes_that_are_none(model: MAGNeT, holes: list[object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate_infill(np.full((1, 32000), 0.1, np.float32), 32000, holes)


def test_each_class_names_the_other_for_its_models(golden: SimpleNamespace, goldens: Path) -> None:
    with pytest.raises(UsageError, match=r"is a MAGNeT; load it with MAGNeT.get_pretrained"):
        MusicGen.get_pretrained(str(goldens / "goldens" / "magnet"))
    with pytest.raises(UsageError, match=r"is no MAGNeT; load it with MusicGen or AudioGen.get_pretrained"):
        MAGNeT.get_pretrained("demo")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  subcodes_context: 5\n", "  subcodes_context: -2\n", "subcodes_context"),
        ("  causal: false\n", "  causal: true\n", "causal"),
        ("    empty_initial: -1\n", "    empty_initial: 0\n", "empty_initial"),
        ("masking:\n  span_len: 3\n", "masking:\n  span_len: 0\n", "span_len"),
        ("masking:\n  span_len: 3\n", "", "masking.span_len"),
        ("    - 60\n", "", "decoding_steps must have 4 integers"),
        ("    span_arrangement: nonoverlap\n", "    span_arrangement: stride9\n", "stride9"),
        ("lm_model: transformer_lm_magnet\n", "lm_model: transformer_lm_other\n", "transformer_lm_other"),
    ],
)
def test_a_configuration_that_is_none(
    goldens: Path, hub_cache: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    package = read_torch_file(goldens / "goldens" / "magnet" / "state_dict.bin")
    text = package["xp.cfg"]
    assert old in text
    package["xp.cfg"] = text.replace(old, new)
    write_torch_file(
        tmp_path / "state_dict.bin",
        package | {"best_state": {name: np.array(t.load()) for name, t in package["best_state"].items()}},
    )
    with pytest.raises(CheckpointError, match=message):
        MAGNeT.get_pretrained(str(tmp_path))


# Converted


@pytest.mark.parametrize("bits", [None, 8])
def test_a_converted_model_is_the_model(
    golden: SimpleNamespace, goldens: Path, tmp_path: Path, bits: int
) -> None:
    folder, source = tmp_path / "made", str(goldens / "goldens" / "magnet")
    quantization = [] if bits is None else ["-q", str(bits)]
    assert convert([source, "-o", str(folder), "--dtype", "float32", *quantization]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 4
    made = MAGNeT.get_pretrained(str(folder))
    assert made.lm.config == golden.model.lm.config
    same = MAGNeT.get_pretrained(source, quantize=bits)
    for model in (made, same):
        model.set_generation_params(decoding_steps=STEPS, duration=0.6, seed=1)
    assert made.params == same.params
    np.testing.assert_array_equal(tokens(made, ["piano"]), tokens(same, ["piano"]))
    fresh = MAGNeT("name", made._bundle)
    assert fresh.masked.decoding_steps == (60, 10, 10, 10)
    assert fresh.sampling.temperature == 3.0


def test_folders_of_other_models_are_as_they_were(tmp_path: Path) -> None:
    assert convert(["demo", "-o", str(tmp_path / "made")]) == 0
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["format_version"] == 3
    assert not {"causal", "subcodes_context", "span_len"} & {*config["lm"]}
    assert "masked" not in config


# On the command line


@pytest.fixture
def folder(goldens: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(goldens / "goldens" / "magnet")


def test_a_file_and_the_command_that_makes_it_again(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--decoding-steps", "3,2,1,1", "--span-arrangement", "stride1", "--max-cfg-coef", "5"]
    command = [
        "piano",
        "-m",
        folder,
        "-d",
        "1",
        *options,
        "--min-cfg-coef",
        "0.5",
        "--seed",
        "9",
        "--no-open",
    ]
    assert main([*command, "-o", "one.wav"]) == 0
    capsys.readouterr()
    assert main(["--info", "one.wav"]) == 0
    again = next(line for line in capsys.readouterr().out.splitlines() if "--seed 9" in line)
    words = shlex.split(again[again.index("musicgen-mlx ") :])[1:]
    assert {*options} <= {*words}
    assert main([*words, "-o", "two.wav", "--no-open"]) == 0
    first, second = (soundfile.read(name)[0] for name in ("one.wav", "two.wav"))
    np.testing.assert_array_equal(first, second)
    assert len(first) == 32000


def test_a_part_of_a_file_is_made_anew(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = np.random.default_rng(0).integers(-9000, 9000, (44100 * 6, 2)).astype(np.int16)
    soundfile.write("song.wav", source, 44100)
    command = ["piano", "-m", folder, "--edit", "song.wav", "--replace", "2.01-0:02.99"]
    assert main([*command, "--decoding-steps", "3,2,1,1", "-o", "new.wav", "--no-open", "--seed", "1"]) == 0
    made, rate = soundfile.read("new.wav", dtype="int16")
    assert (made.shape, rate) == (source.shape, 44100)
    hole = slice(round(2.01 * 44100), round(2.99 * 44100))
    np.testing.assert_array_equal(made[: hole.start], source[: hole.start])
    np.testing.assert_array_equal(made[hole.stop :], source[hole.stop :])
    assert (made[hole] != source[hole]).mean() > 0.9
    capsys.readouterr()
    assert main(["--info", "new.wav"]) == 0
    assert "--edit song.wav --replace 2.01-2.99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--cfg-coef", "3"],
            "--cfg-coef: the model magnet-small-10s can't use it; a MAGNeT has --max-cfg-coef",
        ),
        (["--cache-bits", "8"], "--cache-bits: magnet-small-10s is a MAGNeT"),
        (["--melody", "a.wav"], "--melody: the model magnet-small-10s can't be conditioned on a melody"),
        (["--decoding-steps", "20"], "--decoding-steps must be 4 integers, one for each codebook"),
        (["--decoding-steps", "20,x"], "argument --decoding-steps: must be integers with commas"),
        (["--decoding-steps", "20,0,1,1"], "argument --decoding-steps: each of decoding_steps must be"),
        (["--span-arrangement", "stride2"], "--span-arrangement"),
        (["--edit", "a.wav"], "--edit needs --replace"),
        (["--replace", "1-2"], "--replace needs --edit"),
        (["--edit", "a.wav", "--replace", "2-1"], "must end after it begins"),
        (["--edit", "a.wav", "--replace", "2"], "must be two times, such as 8-12"),
        (["--edit", "a.wav", "--replace", "1-2", "-d", "4"], "--edit and --duration don't go together"),
        (["--edit", "a.wav", "--replace", "1-2", "--continue", "b.wav"], "--edit and --continue don't"),
        (["--edit", "a.wav", "--replace", "1-2", "-o", "-"], "--edit and standard output"),
    ],
)
def test_options_that_are_refused_at_once(
    options: list[str], message: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = folder if "20" in options else "magnet-small-10s"
    assert main(["piano", "-m", name, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--decoding-steps", "1,1,1,1"],
        ["--max-cfg-coef", "3"],
        ["--min-cfg-coef", "3"],
        ["--span-arrangement", "stride1"],
    ],
)
@pytest.mark.parametrize("name", ["small", "demo"])
def test_its_options_are_refused_for_other_models(
    options: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["piano", "-m", name, *options]) == 2
    message = f"{options[0]}: the model {name} can't use it; it is for a MAGNeT; choose one, such as"
    assert message in capsys.readouterr().err


def test_a_part_beyond_the_end_of_the_file(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("song.wav", np.full(64000, 0.1), 32000)
    assert main(["piano", "-m", folder, "--edit", "song.wav", "--replace", "1-3"]) == 2
    assert "--replace: song.wav has 2.00 s; give a part of it" in capsys.readouterr().err
    assert main(["piano", "-m", folder, "--edit", "song.wav", "--replace", "1-1.001"]) == 2
    assert "--replace: a part must be at least one frame, 0.02 s" in capsys.readouterr().err
    # One frame, which is less than a span; as a difference of floats it is a little less still.
    one = ["--edit", "song.wav", "--replace", "1.1-1.12", "--decoding-steps", "2,1,1,1"]
    assert main(["piano", "-m", folder, *one, "-o", "new.wav", "--no-open"]) == 0
    made = soundfile.read("new.wav", dtype="int16")[0]
    changed = made != soundfile.read("song.wav", dtype="int16")[0]
    assert changed[35200:35840].mean() > 0.9
    assert not changed[:35200].any()
    assert not changed[35840:].any()


def test_short_names() -> None:
    assert SHORT_NAMES["magnet-small-10s"] == "facebook/magnet-small-10secs"
    assert SHORT_NAMES["magnet-medium-30s"] == "facebook/magnet-medium-30secs"
    assert SHORT_NAMES["audio-magnet-medium"] == "facebook/audio-magnet-medium"
    assert released_as_magnet("facebook/audio-magnet-small")
    assert not released_as_magnet("small")
    assert released_as_magnet("someone/else") is None


def test_memory_stays_flat(model: MAGNeT) -> None:
    model.set_generation_params(decoding_steps=(2, 1, 1, 1), duration=0.6, seed=1)
    model.generate(["piano"])
    before = mx.get_active_memory()
    for _ in range(100):
        model.generate(["piano"])
    assert mx.get_active_memory() <= before + 2**16
