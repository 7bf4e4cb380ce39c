"""A part of a clip made anew by a model that goes on step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx import UsageError
from audiocraft_mlx.audio.part import crossfade_part
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.metadata import describe_request
from audiocraft_mlx.clips.parts import parse_part, part_text
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.clips.source import read_source
from audiocraft_mlx.decoding.likelihood import following_loss
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.models.replaced_part import (
    ALIKE,
    MARGIN_SECONDS,
    candidate_seeds,
    choose_take,
    frames_of_part,
    losses_of_takes,
    margin_frames,
)

RANDOM = np.random.default_rng(3)
RATE = 32000


@pytest.fixture(scope="module")
def loaded(transformers_folder: Callable[[str], Path]) -> MusicGen:
    return MusicGen.get_pretrained(str(transformers_folder("mono")))


@pytest.fixture
def model(loaded: MusicGen) -> MusicGen:
    """A model with all parameters as they are at first."""
    return MusicGen(loaded.name, loaded._bundle)


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return (0.1 * RANDOM.standard_normal((channels, round(seconds * rate)))).astype(np.float32)


def random_codes(model: MusicGen, frames: int, rows: int = 1) -> mx.array:
    config = model.lm.config
    return mx.array(
        RANDOM.integers(0, config.cardinality, (rows, config.num_codebooks, frames)).astype(np.int32)
    )


# The loss


def slow_loss(model: MusicGen, text: str | None, codes: np.ndarray, first: int) -> float:
    """Step by step from the definition: the code of codebook k for frame t stands at step 1 + t + delay k."""
    codebooks, frames = codes.shape
    delays, special = model.lm.config.delays, model.lm.special_token_id
    steps = np.full((codebooks, 1 + frames + max(delays)), special, np.int32)
    for k in range(codebooks):
        for t in range(frames):
            steps[k, 1 + t + delays[k]] = codes[k, t]
    conditions = model.text_conditioner.encode([text])
    entropies = []
    for k in range(codebooks):
        for t in range(first, frames):
            step = 1 + t + delays[k]
            logits = np.array(model.lm(mx.array(steps[None, :, :step]), conditions))[0, k, -1].astype(
                np.float64
            )
            highest = logits.max()
            entropies.append(highest + math.log(np.exp(logits - highest).sum()) - logits[codes[k, t]])
    return float(np.mean(entropies))


@pytest.mark.parametrize(("text", "frames", "first"), [(None, 9, 5), ("rock", 7, 0), ("a longer one", 6, 5)])
def test_the_loss_is_that_of_a_slow_reference(
    model: MusicGen, text: str | None, frames: int, first: int
) -> None:
    codes = random_codes(model, frames, rows=2)
    conditions = model.text_conditioner.encode([text, text])
    losses = following_loss(model.lm, conditions, codes, first)
    expected = [slow_loss(model, text, np.array(row), first) for row in codes]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_the_loss_of_a_take_is_that_of_what_follows_it(model: MusicGen) -> None:
    context, takes, following = (random_codes(model, n, r) for n, r in ((6, 1), (4, 3), (5, 1)))
    conditions = model.text_conditioner.encode([None])
    losses = losses_of_takes(model.lm, conditions, context, takes, following, 100)
    for take, loss in zip(takes, losses, strict=True):
        whole = np.concatenate([context[0], take, following[0]], axis=1)
        assert loss == pytest.approx(slow_loss(model, None, whole, 10), rel=1e-4)
    seen = losses_of_takes(model.lm, conditions, context, takes[:1], following, 8)[0]
    assert seen == pytest.approx(slow_loss(model, None, whole_end(takes[0], following[0]), 3), rel=1e-4)


def whole_end(take: mx.array, following: mx.array) -> np.ndarray:
    return np.concatenate([take, following], axis=1)[:, -8:]


def test_the_likeliest_take_is_chosen_and_of_those_alike_the_one_that_is_heard_least() -> None:
    losses = np.array([1.0, 0.5, 0.5 + ALIKE / 2, 0.5 + 2 * ALIKE])
    asked = []

    def fluxes(takes: list[int]) -> list[float]:
        asked.append(takes)
        return [0.3, 0.2]

    assert choose_take(losses, fluxes) == 2
    assert asked == [[1, 2]]
    assert choose_take(np.array([1.0, 0.5, 2.0]), fluxes) == 1
    assert len(asked) == 1


# What is seen


@pytest.mark.parametrize(
    ("frames", "part", "expected"),
    [
        (500, (200, 300), (0, 400)),  # all of a short clip
        (5000, (2000, 2200), (2300 - 1500, 2300)),  # one window
        (5000, (2000, 3400), (2000 - 600, 3500)),  # several: the context of windows
        (5000, (100, 200), (0, 300)),
        (5000, (4900, 5000), (3507, 5000)),  # nothing follows
    ],
)
def test_context_and_what_follows(frames: int, part: tuple[int, int], expected: tuple[int, int]) -> None:
    found = frames_of_part(frames, part, 1500, 900, 50)
    assert (found.context, found.following_end) == expected
    assert (found.start, found.end) == part


def test_seeds_of_takes_are_those_of_no_other_clip() -> None:
    seeds = [seed for clip in range(1000) for seed in candidate_seeds(clip, 64)]
    assert len(set(seeds)) == len(seeds)
    assert candidate_seeds(7, 2)[0] == 7


@pytest.mark.parametrize("part", [(0.5, 0.8), (0.0, 0.3), (0.3, 1.4)])
def test_greedy_codes_are_those_of_continuing_what_is_before(
    model: MusicGen, part: tuple[float, float]
) -> None:
    model.max_duration = 1.0
    model.set_generation_params(use_sampling=False, extend_stride=0.6, duration=1.0)
    codes, clip = random_codes(model, 75), noise(1.5)
    params = model.params
    inputs = model.prepare_infill(["rock"], [5], [clip], RATE, [part], params, codes=[codes[0]], candidates=2)
    got: list[mx.array] = []
    list(model.generate_stream(inputs, params, on_codes=got.append))
    made = np.concatenate([np.array(chunk) for chunk in got], axis=2)
    margin, (start, end) = margin_frames(50), (round(time * 50) for time in part)
    lead = min(start, margin)
    np.testing.assert_array_equal(made[:, :, :lead], np.array(codes)[:, :, start - lead : start])

    context = max(0, start - max(50 - (min(75, end + 25) - start), 50 - 30))
    before = [np.array(codes)[0, :, context:start]]
    model.set_generation_params(
        use_sampling=False, extend_stride=0.6, duration=(end + margin - context + 0.5) / 50
    )
    given = {"prompt_codes": before} if start else {}
    plain: list[mx.array] = []
    list(
        model.generate_stream(
            model.prepare_inputs(["rock"], [5], **given), model.params, on_codes=plain.append
        )
    )
    expected = np.concatenate([np.array(chunk) for chunk in plain], axis=2)
    np.testing.assert_array_equal(made[:, :, lead:], expected)
    assert made.shape[2] - lead == end - start + margin


def test_the_chosen_take_is_the_one_of_its_seed(model: MusicGen) -> None:
    model.set_generation_params(duration=1.0, seed=4)
    clip = noise(2.0)
    params = model.params
    inputs = model.prepare_infill([None], [4], [clip], RATE, [(0.6, 1.0)], params, candidates=3)
    got: list[mx.array] = []
    audio = np.concatenate(
        [np.array(a) for a in model.generate_stream(inputs, params, on_codes=got.append)], axis=2
    )
    codes = np.concatenate([np.array(chunk) for chunk in got], axis=2)
    assert inputs.prompt is not None
    each = []
    for seed in candidate_seeds(4, 3):
        alone = model.prepare_inputs([None], [seed], prompt_codes=[np.array(inputs.prompt)[0]])
        made: list[mx.array] = []
        list(
            model.generate_stream(
                alone, model.make_params(duration=(50 + 7 + 0.5) / 50), on_codes=made.append
            )
        )
        each.append(np.concatenate([np.array(chunk) for chunk in made], axis=2))
    assert sum(np.array_equal(codes[:, :, 7:], take) for take in each) == 1
    assert audio.shape == (1, 1, (7 + 20 + 7) * 640)


def test_infill_in_python(model: MusicGen) -> None:
    model.set_generation_params(duration=1.0, seed=1)
    clips = np.stack([noise(1.6), noise(1.6)])
    new = np.array(model.generate_infill(clips, RATE, [(0.7, 1.0)], ["rock", None]))
    assert new.shape == clips.shape
    for made, clip in zip(new, clips, strict=True):
        changed = np.flatnonzero((made != clip)[0]) / RATE
        assert 0.58 <= changed.min() <= 0.72
        assert 0.9 <= changed.max() <= 1.1
    one = np.array(model.generate_infill(clips[0], RATE, [(0.7, 1.0)], ["rock"], candidates=1))
    other = model.generate_infill(clips[0], RATE, [(0.7, 1.0)], ["rock"], negative="jazz", candidates=1)
    assert not np.array_equal(one, np.array(other))
    with pytest.raises(UsageError, match="the audio has one dimension"):
        model.generate_infill(noise(30)[0], RATE, [(0.7, 1.0)], ["rock"])
    with pytest.raises(UsageError, match="one part of the clip"):
        model.generate_infill(clips, RATE, [(0.1, 0.2), (0.5, 0.6)])
    with pytest.raises(UsageError, match="the end of a hole must be from 0 to the end of the clip"):
        model.generate_infill(clips, RATE, [(0.1, 2.0)])
    with pytest.raises(UsageError, match="candidates must be an integer of at least 1"):
        model.prepare_infill([None], [1], [clips[0]], RATE, [(0.1, 0.2)], model.params, candidates=0)


# The joins


@pytest.mark.parametrize("rate", [8000, 32000, 44100])
@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (0.0, 1.0), (1.0, 2.0), (0.9, 0.93), (0.0, 2.0)])
def test_only_the_part_and_its_crossfades_change(rate: int, start: float, end: float) -> None:
    source = noise(2, rate, channels=2)
    begin = max(0.0, math.floor(start * 50) / 50 - MARGIN_SECONDS)
    new = noise(math.ceil(end * 50) / 50 + MARGIN_SECONDS - begin)
    result = crossfade_part(source, rate, start, end, new, RATE, begin, rate)
    assert result.audio.shape == source.shape
    changed = np.flatnonzero((result.audio != source).any(axis=0))
    assert max(0, (start - 0.121) * rate) <= changed[0] <= (start + 0.03) * rate
    assert (end - 0.121) * rate <= changed[-1] <= (end + 0.121) * rate
    assert len(result.fades) == (start > 0) + (end < 2)
    inside = [fade for fade in result.fades if fade[1] - fade[0] > 0.031 * rate]
    assert not inside


def test_a_part_that_was_interrupted_is_put_in_as_far_as_it_goes() -> None:
    source = noise(2)
    for seconds in (0.0001, 0.1, 0.14, 0.3):
        audio = crossfade_part(source, RATE, 0.5, 1.5, noise(seconds), RATE, 0.36, RATE).audio
        assert audio.shape == source.shape
        np.testing.assert_array_equal(
            audio[:, round((0.36 + seconds) * RATE) :], source[:, round((0.36 + seconds) * RATE) :]
        )


def test_the_best_place_is_within_reach() -> None:
    """A silence that both have in common is where they are joined."""
    source, new = noise(2), noise(2)
    for audio in (source, new):
        audio[:, round(1.41 * RATE) : round(1.57 * RATE)] = 0
    result = crossfade_part(source, RATE, 0.5, 1.5, new[:, : round(1.64 * RATE)], RATE, 0.0, RATE)
    begin, end = result.fades[-1]
    assert 1.41 <= begin / RATE <= end / RATE <= 1.57


# The command


@pytest.mark.parametrize(
    ("subtype", "rate", "channels"), [("PCM_16", 32000, 1), ("PCM_24", 44100, 2), ("FLOAT", 22050, 1)]
)
def test_all_else_in_the_file_stays_as_it_is(
    subtype: str,
    rate: int,
    channels: int,
    tmp_path: Path,
    transformers_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    song, out = tmp_path / "song.wav", tmp_path / "out.wav"
    soundfile.write(song, noise(2, rate, channels).T * 12, rate, subtype)
    folder = str(transformers_folder("mono"))
    options = ["--edit", str(song), "--replace", "0.8-1.1", "--candidates", "2", "--seed", "1"]
    assert main(["rock", "-m", folder, *options, "-o", str(out), "--no-open"]) == 0
    dtype = "float32" if subtype == "FLOAT" else "int32"
    (before, _), (after, out_rate) = (soundfile.read(p, dtype=dtype, always_2d=True) for p in (song, out))
    assert (out_rate, soundfile.info(out).subtype, after.shape) == (rate, subtype, before.shape)
    changed = np.flatnonzero((before != after).any(axis=1)) / rate
    assert 0.67 < changed[0] < 0.85
    assert 0.97 < changed[-1] < 1.23
    capsys.readouterr()
    assert main(["--info", str(out)]) == 0
    assert "--replace 0.8-1.1 --candidates 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", "3"], "--candidates are takes of a part of a file; they need --edit"),
        (
            ["--edit", "a.wav", "--replace", "1-2", "--candidates", "0"],
            "--candidates: must be an integer from 1",
        ),
        (
            ["--edit", "a.wav", "--replace", "1-2", "--melody", "b.wav"],
            "--edit and --melody don't go together",
        ),
        (["--edit", "a.wav", "--replace", "1-2", "-d", "8"], "--edit and --duration don't go together"),
        (["--edit", "a.wav", "--replace", "x"], "must be two times, such as 8-12"),
        (["--edit", "missing.wav", "--replace", "1-2"], "missing.wav"),
        (
            ["-m", "magnet-small-10s", "--edit", "a.wav", "--replace", "1-2", "--candidates", "2"],
            "--candidates: the model magnet-small-10s can't use it; a MAGNeT sees both sides",
        ),
    ],
)
def test_what_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["piano", "-m", "demo", *options]) == 2
    assert message in capsys.readouterr().err


def test_parts_as_text_and_the_record() -> None:
    assert parse_part("8-12") == (8, 12)
    assert parse_part("1:02.5-1:10") == (62.5, 70)
    assert part_text((62.5, 70.0)) == "62.5-70"
    assert parse_part(part_text((1e-05, 1.1))) == (1e-05, 1.1)
    for text in ("", "8", "8-", "8-8", "9-8", "-1-2", "1:2:3-4", "nan-inf", "٣-٤"):
        with pytest.raises(UsageError, match="must"):
            parse_part(text)
    request = ClipRequest("drums", 3, source=Path("a.wav"), replace=(8, 12.5), candidates=4)
    assert request.duration == 4.5
    assert ClipRequest.from_dict(request.to_dict() | {"replace": [8, 12.5]}) == request
    metadata = describe_request(request, OutputOptions(), ModelOptions("facebook/musicgen-small"))
    assert metadata.to_command() == "musicgen-mlx drums --seed 3 --edit a.wav --replace 8-12.5 --candidates 4"
    with pytest.raises(UsageError, match="candidates are takes of a part; they need replace"):
        ClipRequest("drums", candidates=3)


def test_alac_of_24_bits_keeps_them(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.caf", noise(0.1).T, RATE, "ALAC_24", format="CAF")
    assert read_source(tmp_path / "a.caf").bits == 24
