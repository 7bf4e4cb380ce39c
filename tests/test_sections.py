"""Sections: texts that change at a frame, or cross-fade, in batches, windows and streams."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from audiocraft_mlx import UsageError
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.cli.info import show_info
from audiocraft_mlx.clips.making import generate_clips
from audiocraft_mlx.clips.metadata import GenerationMetadata, describe_request
from audiocraft_mlx.clips.planning import WaitingClips, plan_clips
from audiocraft_mlx.clips.requests import ClipRequest, FieldError, ModelOptions, OutputOptions
from audiocraft_mlx.conditioning.sections import (
    FrameSection,
    Section,
    frame_sections,
    parse_section,
    split_description,
)
from audiocraft_mlx.decoding.step import alone
from audiocraft_mlx.decoding.windows import Window, plan_windows
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.lm import LM, CrossAttention

from .conftest import load_arrays
from .slow_generation import SlowSection, section_logits, slow_codes

RATE = 32000
CALM, DRUMS, FULL = "calm piano", "the drums come in, with a bass guitar and claps", "full orchestra, loud"


@pytest.fixture(scope="module")
def text_model(hub_cache: Path, goldens: Path, device: str) -> Callable[[str], MusicGen]:
    loaded: dict[str, MusicGen] = {}

    def of(name: str) -> MusicGen:
        if name not in loaded:
            loaded[name] = MusicGen.get_pretrained(str(goldens / "goldens" / name))
        model = MusicGen(name, loaded[name]._bundle)
        model.set_generation_params(use_sampling=False, duration=1.0)
        return model

    return of


@pytest.fixture(scope="module")
def melody_model(hub_cache: Path, goldens: Path, separator: None) -> MusicGen:
    return MusicGen.get_pretrained(str(goldens / "goldens" / "melody"))


@pytest.fixture(scope="module")
def slow() -> dict[object, tuple[np.ndarray, float]]:
    """What the slow reference has made: it is the same whether guidance takes one step or two."""
    return {}


@pytest.fixture
def random_weights() -> Iterator[Callable[[MusicGen, int], None]]:
    """A function that gives a model's LM random weights, until the test ends."""
    kept = []

    def randomize(model: MusicGen, seed: int) -> None:
        kept.append((model.lm, model.lm.parameters()))
        keys = iter(mx.random.split(mx.random.key(seed), 1000))

        def draw(weight: mx.array) -> mx.array:
            scale = 1.0 if weight.ndim == 1 else 2.0 * weight.shape[-1] ** -0.5
            return (scale * mx.random.normal(weight.shape, key=next(keys))).astype(weight.dtype)

        model.lm.update(tree_map(draw, model.lm.parameters()))

    yield randomize
    for lm, weights in kept:
        lm.update(weights)


def codes_of(model: MusicGen, descriptions: list[object], **given: object) -> np.ndarray:
    return np.array(model.generate(descriptions, return_tokens=True, **given)[1])


def in_frames(description: object) -> list[SlowSection]:
    first, later = split_description(description)
    return [(0, first or "", 0), *((round(s.start * 50), s.text, round(s.fade * 50)) for s in later)]


# Exactness


@pytest.mark.parametrize("name", ["mono", "stereo"])
def test_codes_of_a_text_that_changes_are_the_references(
    text_model: Callable[[str], MusicGen], goldens: Path, name: str
) -> None:
    folder = goldens / "goldens_control"
    case = json.loads((folder / "control.json").read_text())
    wanted = load_arrays(folder / "control.npz")[f"{name}.sections.codes"]
    model = text_model(name)
    model.set_generation_params(use_sampling=False, duration=case["duration"], cfg_coef=case["cfg_coef"])
    border = case["at_frame"] / model.frame_rate
    got = codes_of(model, [[(0, case["prompt"]), (border, case["second"])]])
    np.testing.assert_array_equal(got, wanted)
    for other in (border - 0.02, border + 0.02):
        assert (codes_of(model, [[(0, case["prompt"]), (other, case["second"])]]) != wanted).any()


SECTIONS = {
    "two": [(0, CALM), (0.3, DRUMS)],
    "three, the first one without a text": [(0, None), (0.1, DRUMS), (0.5, CALM)],
    "at the first and at the last frame": [(0, CALM), (0.02, DRUMS), (0.98, FULL)],
    "fades": [(0, CALM), (0.2, DRUMS, 0.3), (0.5, FULL, 0.1), (0.8, CALM, 0.2)],
    "into no text": [(0, DRUMS), (0.4, None, 0.4)],
}


@pytest.mark.parametrize("params", [{}, {"two_step_cfg": True}, {"cfg_coef": 1.0}])
@pytest.mark.parametrize("case", SECTIONS)
@pytest.mark.parametrize(("name", "seed"), [("mono", 1), ("stereo", 2)])
def test_codes_of_random_models_are_those_of_a_slow_reference(
    text_model: Callable[[str], MusicGen],
    random_weights: Callable[[MusicGen, int], None],
    slow: dict[object, tuple[np.ndarray, float]],
    device: str,
    name: str,
    seed: int,
    case: str,
    params: dict[str, object],
) -> None:
    model = text_model(name)
    random_weights(model, seed)
    description = SECTIONS[case]
    model.set_generation_params(use_sampling=False, duration=1.0, **params)
    key = (device, name, case, model.guidance.coef)
    if key not in slow:
        logits = section_logits(model, in_frames(description), model.guidance.coef)
        slow[key] = slow_codes(model.lm, logits, 50)
    wanted, gap = slow[key]
    assert gap > 1e-4
    np.testing.assert_array_equal(codes_of(model, [description])[0], wanted)


@pytest.mark.parametrize("params", [{}, {"two_step_cfg": True}, {"cfg_coef": 1.0}])
def test_each_row_of_a_batch_has_its_own_borders(
    text_model: Callable[[str], MusicGen], params: dict[str, object]
) -> None:
    model = text_model("mono")
    model.set_generation_params(use_sampling=False, duration=1.0, **params)
    rows = [*SECTIONS.values(), DRUMS, None]
    together = codes_of(model, rows)
    for row, description in enumerate(rows):
        np.testing.assert_array_equal(codes_of(model, [description])[0], together[row])


def test_a_text_that_stays_the_same_is_one_text(text_model: Callable[[str], MusicGen]) -> None:
    model = text_model("mono")
    model.set_generation_params(duration=1.0, seed=5)
    wanted = codes_of(model, [DRUMS])
    np.testing.assert_array_equal(codes_of(model, [[(0, DRUMS), (0.3, DRUMS), (0.5, DRUMS, 0.4)]]), wanted)
    np.testing.assert_array_equal(codes_of(model, [None]), codes_of(model, [[(0, None), (0.5, "")]]))


def test_a_stream_is_the_whole(text_model: Callable[[str], MusicGen]) -> None:
    model = text_model("mono")
    model.set_generation_params(duration=1.0, seed=5)
    rows = [SECTIONS["fades"], SECTIONS["two"]]
    whole = np.array(model.generate(rows))
    chunks = [np.array(chunk) for chunk in model.stream(rows, chunk_seconds=0.14)]
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-5)


@pytest.mark.parametrize("case", ["two", "fades", "a fade over the border of windows"])
def test_sections_go_on_in_the_next_window(text_model: Callable[[str], MusicGen], case: str) -> None:
    model = text_model("mono")
    model.max_duration = 0.6
    model.set_generation_params(use_sampling=False, duration=1.4, extend_stride=0.3)
    description = {**SECTIONS, "a fade over the border of windows": [(0, CALM), (0.35, DRUMS, 0.6)]}[case]
    wanted: np.ndarray | None = None
    for window in plan_windows(70, 30, 15):
        logits = section_logits(model, in_frames(description), model.guidance.coef, start=window.start)
        context = None if wanted is None else wanted[:, window.start :]
        new, gap = slow_codes(model.lm, logits, window.frames, context)
        assert gap > 1e-4
        wanted = new if wanted is None else np.concatenate([wanted[:, : window.start], new], axis=1)
    np.testing.assert_array_equal(codes_of(model, [description])[0], wanted)


def test_what_is_continued_counts(text_model: Callable[[str], MusicGen]) -> None:
    model = text_model("mono")
    model.set_generation_params(use_sampling=False, duration=1.0)
    clip = 0.1 * mx.random.normal((1, RATE // 2), key=mx.random.key(1))
    description = [(0, CALM), (0.2, DRUMS), (0.7, FULL)]
    _, codes = model.generate_continuation(clip, RATE, [description], return_tokens=True)
    prompt = np.array(model.compression_model.encode(clip[None]))[0]
    logits = section_logits(model, in_frames(description), model.guidance.coef)
    wanted, gap = slow_codes(model.lm, logits, 50, prompt)
    assert gap > 1e-4
    np.testing.assert_array_equal(np.array(codes)[0], wanted)


# Cost


def test_no_step_costs_more_but_those_of_a_cross_fade(
    text_model: Callable[[str], MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model("mono")
    rows: list[int] = []
    projected: list[int] = []
    predict, project = LM.predict, CrossAttention.project_kv

    def count_rows(lm: LM, x: mx.array, steps: int) -> mx.array:
        rows.append(len(x))
        return predict(lm, x, steps)

    def count_projections(layer: CrossAttention, conditions: mx.array) -> tuple[mx.array, mx.array]:
        projected.append(len(rows))
        return project(layer, conditions)

    monkeypatch.setattr(LM, "predict", count_rows)
    monkeypatch.setattr(CrossAttention, "project_kv", count_projections)
    model.generate([[(0, CALM), (0.2, DRUMS), (0.6, FULL, 0.2)]])
    # 50 frames and the delay of the last codebook.
    assert rows == [2] * 30 + [3] * 10 + [2] * 13
    assert set(projected) == {0}


# A model with a prefix


def test_a_prefix_begins_a_new_window_with_the_section(melody_model: MusicGen) -> None:
    model = MusicGen("melody", melody_model._bundle)
    model.set_generation_params(use_sampling=False, duration=1.0)
    got = codes_of(model, [[(0, CALM), (0.4, DRUMS), (0.8, FULL)]])
    wanted = np.zeros((1, got.shape[1], 0), np.int32)
    for text, end in ((CALM, 0.4), (DRUMS, 0.8), (FULL, 1.0)):
        inputs = model.prepare_inputs([text], [1])
        if wanted.shape[2]:
            inputs = replace(inputs, prompt=mx.array(wanted))
        params = model.make_params(use_sampling=False, duration=end)
        parts = [np.array(codes) for codes, _ in alone(model._decode(inputs, params, itertools.repeat(10)))]
        wanted = np.concatenate(parts, axis=2)
    np.testing.assert_array_equal(got, wanted)
    assert (got != codes_of(model, [CALM])).any()


def test_rows_of_a_prefix_model_share_their_borders(melody_model: MusicGen) -> None:
    model = MusicGen("melody", melody_model._bundle)
    model.set_generation_params(use_sampling=False, duration=0.6)
    rows = [[(0, CALM), (0.3, DRUMS)], [(0, FULL), (0.3, CALM)]]
    together = codes_of(model, rows)
    for row, description in enumerate(rows):
        np.testing.assert_array_equal(codes_of(model, [description])[0], together[row])
    with pytest.raises(UsageError, match="can't share a batch"):
        model.generate([rows[0], CALM])
    with pytest.raises(UsageError, match="can't cross-fade"):
        model.generate([[(0, CALM), (0.3, DRUMS, 0.1)]])


def test_clips_of_a_prefix_model_with_other_borders_are_made_in_other_batches(
    melody_model: MusicGen, text_model: Callable[[str], MusicGen]
) -> None:
    requests = [
        ClipRequest(CALM, 1, 0.6),
        ClipRequest(CALM, 2, 0.6, sections=(Section(0.3, DRUMS),)),
        ClipRequest(FULL, 3, 0.6, sections=(Section(0.3, CALM),)),
    ]
    waiting = WaitingClips(plan_clips(melody_model, requests))
    assert [len(waiting.take(melody_model)) for _ in range(2)] == [1, 2]
    mono = text_model("mono")
    assert len(WaitingClips(plan_clips(mono, requests)).take(mono)) == 3
    list(generate_clips(melody_model, requests))
    with pytest.raises(FieldError, match="can't cross-fade"):
        plan_clips(melody_model, [ClipRequest(CALM, 1, 0.6, sections=(Section(0.3, DRUMS, 0.1),))])


@pytest.mark.parametrize(
    ("borders", "wanted"),
    [
        ([10], [Window(0, 0, 10, 0), Window(1, 0, 50, 10), Window(2, 30, 50, 20), Window(3, 60, 40, 20)]),
        ([70], [Window(0, 0, 50, 0), Window(1, 30, 40, 20), Window(2, 50, 50, 20)]),
        ([5, 99], [Window(0, 0, 5, 0), Window(1, 0, 50, 5), Window(2, 30, 50, 20), Window(3, 60, 39, 20)]),
    ],
)
def test_windows_end_at_borders(borders: list[int], wanted: list[Window]) -> None:
    windows = plan_windows(100, 50, 30, borders=borders)
    assert windows[: len(wanted)] == wanted
    ends = [0, *(window.start + window.frames for window in windows)]
    assert {*borders} <= {*ends}
    assert ends[-1] == 100
    for window, known in zip(windows, ends, strict=False):
        assert window.start + window.context_frames == known
        assert window.frames <= 50


# Clips


def test_a_clip_that_continues_another_counts_its_own_seconds(
    text_model: Callable[[str], MusicGen], tmp_path: Path
) -> None:
    from audiocraft_mlx.audio.formats import WAV
    from audiocraft_mlx.audio.write import write_audio

    model = text_model("mono")
    path = tmp_path / "source.wav"
    write_audio(path, np.full((1, RATE // 2), 0.1, np.float32), RATE, WAV)
    request = ClipRequest(CALM, 1, 0.5, source=path, sections=[Section(0.2, DRUMS, 0.1)])
    (plan,) = plan_clips(model, [request])
    assert plan.description == [Section(0.0, CALM), Section(0.7, DRUMS, 0.1)]


def test_the_command_of_a_clip_with_sections_makes_it_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        *("--section", f"0: {CALM}", "--section", f"12.5: {DRUMS}", "--section", f"24~4: {FULL}"),
        *("-d", "30", "--seed", "3", "-m", "small"),
    ]
    command = parse(words)
    assert isinstance(command, GenerateClips)
    (request,) = command.requests
    assert request.prompt == CALM
    assert request.sections == (Section(12.5, DRUMS), Section(24, FULL, 4))
    metadata = describe_request(request, OutputOptions(), ModelOptions("small"))
    again = parse(shlex.split(metadata.to_command())[1:])
    assert isinstance(again, GenerateClips)
    assert again.requests == command.requests
    assert GenerationMetadata.from_json(metadata.to_json()).to_command() == metadata.to_command()

    from audiocraft_mlx.audio.formats import WAV
    from audiocraft_mlx.audio.write import write_audio

    path = tmp_path / "a.wav"
    write_audio(path, np.zeros((1, 3200), np.float32), RATE, WAV, metadata.to_tags())
    show_info(path)
    lines = capsys.readouterr().out.splitlines()
    assert f"  section: 12.5: {DRUMS}" in lines
    assert f"  section: 24~4: {FULL}" in lines


def test_a_request_is_the_same_in_json() -> None:
    request = ClipRequest(CALM, 1, 30, sections=(Section(12, DRUMS), Section(24, FULL, 4)))
    values = json.loads(json.dumps(request.to_dict()))
    assert values["sections"][1] == {"start": 24.0, "text": FULL, "fade": 4.0}
    assert ClipRequest.from_dict(values) == request
    assert ClipRequest.from_dict({**values, "sections": [[12, DRUMS], [24, FULL, 4]]}) == request
    assert "sections" not in ClipRequest(CALM).to_dict()


# What is wrong


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("12: drums come in", Section(12, "drums come in")),
        (" 24 ~ 4 :full: loud", Section(24, "full: loud", 4)),
        ("0.5~.25:x", Section(0.5, "x", 0.25)),
        ("1:30: d", Section(90, "d")),
        ("1:02.5 ~4:x", Section(62.5, "x", 4)),
        ("1: 30: d", Section(1, "30: d")),
        ("1:30 bars: d", Section(1, "30 bars: d")),
    ],
)
def test_a_section_is_read_from_a_text(text: str, section: Section) -> None:
    assert parse_section(text) == section
    assert parse_section(str(section)) == section


@pytest.mark.parametrize(
    "text", ["", "drums", "drums: 12", "12:", "12: ", "-1: x", "nan: x", "1~inf: x", "1~: x"]
)
def test_a_text_that_is_no_section_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be SECONDS: TEXT"):
        parse_section(text)


def test_a_long_text_that_is_no_section_is_shown_short() -> None:
    with pytest.raises(UsageError) as error:
        parse_section("x" * 5000)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (["9: a", "5: b"], "in order: the one at 5 s comes after the one at 9 s"),
        (["5: a", "5: b"], "in order"),
        (["30: a"], "beyond the end of the clip, at 30 s"),
        (["40: a"], "beyond the end of the clip, at 30 s"),
        (["0: a"], "the prompt is what is played from 0 on"),
        (["28~3: a"], "cross-fades over 3 s, and lasts 2 s"),
        (["5~3: a", "7: b"], "cross-fades over 3 s, and lasts 2 s"),
    ],
)
def test_sections_that_do_not_fit_are_one_line(
    sections: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for section in sections for word in ("--section", section)]
    assert main(["piano", "-d", "30", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--section: " in error
    assert message in error


def test_the_first_section_has_nothing_to_fade_from() -> None:
    with pytest.raises(FieldError, match="nothing before it"):
        ClipRequest(duration=30, sections=(Section(0, "a", 1),))
    with pytest.raises(UsageError, match="nothing before it"):
        split_description([(0, "a", 1), (5, "b")])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([(1, "a")], "the first section begins at 1 s"),
        ([(0, "a"), (0, "b")], "in order"),
        ([], "a list of .seconds, text."),
        ([(0, 1)], "must be a string, not 1"),
        ([(0, "a"), "b"], "must be .seconds, text."),
        ([(0, "a"), (1, "b", -1)], "its cross-fade must be"),
        ([(0, "a"), (float("nan"), "b")], "the beginning of a section must be"),
        ({"start": 0}, "a list of .seconds, text."),
        (5, "a list of .seconds, text."),
    ],
)
def test_a_description_that_is_none_is_refused(description: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_description(description)


def test_a_section_of_less_than_a_frame_is_refused(text_model: Callable[[str], MusicGen]) -> None:
    model = text_model("mono")
    for later in ([(0.004, "b")], [(0.5, "b"), (0.504, "c")], [(0.995, "b")]):
        with pytest.raises(UsageError, match="shorter than a frame"):
            model.stream([[(0, "a"), *later]])
        with pytest.raises(UsageError, match="shorter than a frame"):
            plan_clips(model, [ClipRequest("a", 1, 1.0, sections=later)])
    with pytest.raises(UsageError, match="beyond the end of the clip"):
        model.generate([[(0, "a"), (2, "b")]])


def test_rounding_does_not_let_fades_of_a_row_overlap() -> None:
    sections = [Section(0.212, "b", 0.032), Section(0.244, "c", 0.756)]
    assert frame_sections("a", sections, 50, 50) == (
        FrameSection(0, "a"),
        FrameSection(11, "b", 1),
        FrameSection(12, "c", 38),
    )
