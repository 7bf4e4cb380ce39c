"""What `MusicGen` promises its users, on a tiny model."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.decoding.windows import Window, plan_windows
from audiocraft_mlx.models.musicgen import MusicGen


@pytest.fixture(scope="module")
def loaded(transformers_folder: Callable[[str], Path]) -> MusicGen:
    return MusicGen.get_pretrained(str(transformers_folder("mono")))


@pytest.fixture
def model(loaded: MusicGen) -> MusicGen:
    """A model with all parameters as they are at first."""
    return MusicGen(loaded.name, loaded._bundle)


def tokens_of(model: MusicGen, prompts: list[str | None], **params: object) -> np.ndarray:
    model.set_generation_params(**params)
    return np.array(model.generate(prompts, return_tokens=True)[1])


def test_generate_gives_float_audio_and_integer_tokens_of_the_documented_shapes(model: MusicGen) -> None:
    model.set_generation_params(duration=0.5, seed=1)
    audio = model.generate(["rock", "jazz"])
    assert isinstance(audio, mx.array)
    assert audio.dtype == mx.float32
    assert audio.shape == (2, 1, 25 * 640)
    both = model.generate(["rock", "jazz"], return_tokens=True)
    assert isinstance(both, tuple)
    assert both[1].dtype == mx.int32
    assert both[1].shape == (2, 4, 25)
    np.testing.assert_array_equal(both[0], audio)
    np.testing.assert_array_equal(model.generate_audio(both[1]), audio)


@pytest.mark.parametrize("duration", [0.02, 0.1, 0.29, 0.3, 1.13, 2.0, 2.3])
def test_a_clip_has_exactly_the_frames_of_its_duration(model: MusicGen, duration: float) -> None:
    model.max_duration = 1.0
    tokens = tokens_of(model, ["rock"], duration=duration, extend_stride=0.5, use_sampling=False)
    assert tokens.shape == (1, 4, int(duration * 50))
    assert tokens.min() >= 0
    assert tokens.max() < 64


@pytest.mark.parametrize("longest", [10, 37, 50])
@pytest.mark.parametrize("prompt", [0, 3, 9])
def test_windows_make_every_number_of_frames(longest: int, prompt: int) -> None:
    for frames in range(prompt + 1, 200):
        for stride in (1, longest // 2, longest - 1):
            windows = plan_windows(frames, longest, stride, prompt)
            assert windows[0].context_frames == prompt
            assert all(0 <= w.context_frames < w.frames <= longest for w in windows)
            assert prompt + sum(w.frames - w.context_frames for w in windows) == frames


@pytest.mark.parametrize("prompt", [50, 51, 120, 1999])
def test_windows_go_on_from_a_prompt_of_any_length(prompt: int) -> None:
    windows = plan_windows(2000, 50, 30, prompt)
    assert prompt == windows[0].start + windows[0].context_frames
    assert windows[0].context_frames >= 50 - 30 or windows[0].start == 0
    assert all(0 <= w.context_frames < w.frames <= 50 for w in windows)
    assert windows[-1].start + windows[-1].frames == 2000


def test_windows_of_the_defaults_are_the_references() -> None:
    assert plan_windows(1820, 1500, 900) == [Window(0, 0, 1500, 0), Window(1, 900, 920, 600)]


def test_the_same_seed_makes_the_same_music_and_another_one_another(model: MusicGen) -> None:
    first = tokens_of(model, ["rock"], duration=0.5, seed=3)
    np.testing.assert_array_equal(tokens_of(model, ["rock"], duration=0.5, seed=3), first)
    assert (tokens_of(model, ["rock"], duration=0.5, seed=4) != first).any()


def test_without_a_seed_every_generation_is_new(model: MusicGen) -> None:
    first = tokens_of(model, ["rock"], duration=0.5)
    assert (tokens_of(model, ["rock"], duration=0.5) != first).any()


def test_a_row_is_made_again_alone_by_its_own_seed(model: MusicGen) -> None:
    prompts = ["rock", "a much longer prompt than that", None]
    together = tokens_of(model, prompts, duration=0.5, seed=2**32 - 1)
    for row, prompt in enumerate(prompts):
        alone = tokens_of(model, [prompt], duration=0.5, seed=(2**32 - 1 + row) % 2**32)
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_longer_clip_begins_like_a_shorter_one(model: MusicGen) -> None:
    short = tokens_of(model, ["rock"], duration=0.4, seed=5)
    long = tokens_of(model, ["rock"], duration=0.8, seed=5)
    # Its last frames are made while the delay pattern runs out.
    np.testing.assert_array_equal(long[:, :, :17], short[:, :, :17])


def test_windows_draw_different_numbers(model: MusicGen) -> None:
    model.max_duration = 0.2
    tokens = tokens_of(model, [None], duration=1.0, extend_stride=0.18, seed=0, temperature=1000.0, top_k=0)
    windows = [tokens[0, :, start : start + 9] for start in (1, 10, 19, 28)]
    assert all((a != b).any() for a, b in itertools.pairwise(windows))


@pytest.mark.parametrize(("duration", "steps"), [(0.5, 28), (1.5, 83)])
def test_the_callback_is_called_once_a_step(model: MusicGen, duration: float, steps: int) -> None:
    calls: list[tuple[int, int]] = []
    model.max_duration = 1.0
    model.set_generation_params(duration=duration, extend_stride=0.5)
    model.set_custom_progress_callback(lambda done, total: calls.append((done, total)))
    model.generate(["rock"], progress=True)
    windows = plan_windows(int(duration * 50), 50, 25)
    assert len(calls) == sum(w.frames - w.context_frames + 3 for w in windows)
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total in calls} == {len(calls)}


def test_progress_shows_a_bar_on_the_terminal_only_when_asked(
    model: MusicGen, capsys: pytest.CaptureFixture[str]
) -> None:
    model.set_generation_params(duration=0.1)
    model.generate(["rock"])
    assert capsys.readouterr() == ("", "")
    model.generate(["rock"], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "8/8" in shown.err


def test_guidance_changes_the_music_and_an_empty_prompt_makes_it_nothing(model: MusicGen) -> None:
    params = {"duration": 0.5, "use_sampling": False}
    guided, unguided = (tokens_of(model, ["rock"], cfg_coef=coef, **params) for coef in (3.0, 1.0))
    assert (guided != unguided).any()
    guided, unguided = (tokens_of(model, [""], cfg_coef=coef, **params) for coef in (3.0, 1.0))
    np.testing.assert_array_equal(guided, unguided)


def test_temperature_zero_is_greedy(model: MusicGen) -> None:
    greedy = tokens_of(model, ["rock"], duration=0.5, use_sampling=False)
    np.testing.assert_array_equal(tokens_of(model, ["rock"], duration=0.5, temperature=0.0), greedy)
    np.testing.assert_array_equal(tokens_of(model, ["rock"], duration=0.5, top_k=1), greedy)


def test_parameters_that_are_left_out_take_the_models_own_defaults(model: MusicGen) -> None:
    model.set_generation_params(top_k=3, temperature=0.5, cfg_coef=7.0, seed=1)
    model.set_generation_params()
    assert (model.sampling.top_k, model.sampling.temperature, model.guidance.coef) == (250, 1.0, 3.0)
    assert (model.duration, model.extend_stride, model.seed) == (30.0, 18.0, None)


@pytest.mark.parametrize(
    "params",
    [
        {"duration": 0},
        {"duration": -1.0},
        {"duration": float("nan")},
        {"duration": float("inf")},
        {"duration": 0.019},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"cfg_coef": float("nan")},
        {"extend_stride": 0.0},
        {"extend_stride": 30.0},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
        {"duration": "8"},
        {"top_p": "0.9"},
        {"temperature": "hot"},
        {"cfg_coef": None, "top_k": "250"},
    ],
)
def test_values_out_of_range_are_refused_and_change_nothing(
    model: MusicGen, params: dict[str, object]
) -> None:
    before = (model.sampling, model.guidance, model.seed, model.duration, model.extend_stride)
    with pytest.raises(UsageError) as failure:
        model.set_generation_params(**params)
    assert len(str(failure.value).splitlines()) == 1
    assert (model.sampling, model.guidance, model.seed, model.duration, model.extend_stride) == before


@pytest.mark.parametrize("descriptions", ["rock", [], [3], None, [["rock"]]])
def test_descriptions_must_be_a_list_of_texts(model: MusicGen, descriptions: object) -> None:
    with pytest.raises(UsageError):
        model.generate(descriptions)


@pytest.mark.parametrize("shape", [(4, 10), (1, 3, 10), (1, 4, 0)])
def test_tokens_of_a_wrong_shape_are_refused(model: MusicGen, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="tokens"):
        model.generate_audio(mx.zeros(shape, mx.int32))


@pytest.mark.parametrize("value", [-1, 64, 2**30])
def test_tokens_that_are_no_codes_are_refused(model: MusicGen, value: int) -> None:
    with pytest.raises(UsageError, match="codes"):
        model.generate_audio(mx.full((1, 4, 5), value, mx.int32))


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_a_number_of_samples_must_be_a_whole_one(model: MusicGen, number: object) -> None:
    with pytest.raises(UsageError, match="num_samples"):
        model.generate_unconditional(number)


def test_max_duration_may_be_lowered_but_not_raised(model: MusicGen) -> None:
    model.max_duration = 12
    assert model.max_duration == 12.0
    for seconds in (31.0, 0.0, float("nan"), -1.0):
        with pytest.raises(UsageError):
            model.max_duration = seconds


def test_a_stride_beyond_the_lowered_window_is_refused_only_when_it_is_needed(model: MusicGen) -> None:
    model.set_generation_params(duration=0.5)
    model.max_duration = 1.0
    assert model.generate(["rock"]).shape[2] == 25 * 640
    model.duration = 1.5
    with pytest.raises(UsageError, match="extend_stride"):
        model.generate(["rock"])


def test_neither_torch_nor_transformers_is_imported(transformers_folder: Callable[[str], Path]) -> None:
    code = f"""
import sys
from audiocraft_mlx.models.musicgen import MusicGen
model = MusicGen.get_pretrained({str(transformers_folder("mono-bin"))!r})
model.set_generation_params(duration=0.1)
model.generate(["rock"])
print(sorted({{"torch", "transformers"}} & {{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_generations_do_not_add_up_in_memory(transformers_folder: Callable[[str], Path]) -> None:
    code = f"""
import gc
import mlx.core as mx
from audiocraft_mlx.models.musicgen import MusicGen
model = MusicGen.get_pretrained({str(transformers_folder("mono"))!r})
model.set_generation_params(duration=0.2)
model.generate(["rock", "a longer prompt"])
gc.disable()  # nothing may depend on it: the next generation's caches would lie beside the last one's
before = mx.get_active_memory()
for _ in range(5):
    model.generate(["rock", "a longer prompt"])
print(mx.get_active_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 0
