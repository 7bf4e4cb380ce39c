"""Audio in chunks while it is made, from where one is, and of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.models.audiogen import AudioGen
from audiocraft_mlx.models.musicgen import MusicGen

RATE = 32000


@pytest.fixture(scope="module", params=["mono", "stereo", "audiogen"])
def model(request: pytest.FixtureRequest, goldens: Path, hub_cache: Path) -> MusicGen | AudioGen:
    kind = AudioGen if request.param == "audiogen" else MusicGen
    return kind.get_pretrained(str(goldens / "goldens" / request.param))


@pytest.fixture(scope="module")
def mono(transformers_folder: Callable[[str], Path]) -> MusicGen:
    return MusicGen.get_pretrained(str(transformers_folder("mono")))


def in_windows(model: MusicGen | AudioGen, **params: object) -> None:
    """Have the model make 2.4 s in windows of 1 s."""
    model.max_duration = 1.0
    model.set_generation_params(duration=2.4, extend_stride=0.6, seed=11, **params)


@pytest.mark.parametrize("frames", [1, 7, 50])
def test_the_chunks_put_together_are_the_whole(model: MusicGen | AudioGen, frames: int) -> None:
    in_windows(model)
    whole = np.array(model.generate(["rock", None]))
    hop = round(model.sample_rate / model.frame_rate)
    chunks = [np.array(chunk) for chunk in model.stream(["rock", None], chunk_seconds=frames / 50)]
    assert {chunk.shape[2] for chunk in chunks[:-1]} == {frames * hop}
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-5)


@pytest.mark.parametrize("chunk_seconds", ["chunk_seconds", "first_chunk_seconds"])
@pytest.mark.parametrize("frames", [1, 7, 50])
def test_the_first_chunk_comes_as_soon_as_the_codec_can_tell_it(
    model: MusicGen | AudioGen, frames: int, chunk_seconds: str
) -> None:
    model.max_duration = 2.0
    model.set_generation_params(duration=2.0)
    steps: list[int] = []
    model.set_custom_progress_callback(lambda done, total: steps.append(done))
    try:
        next(model.stream(["rock"], progress=True, **{chunk_seconds: frames / 50}))
    finally:
        model.set_custom_progress_callback(None)
    lookahead_frames = model.compression_model.make_decoder_stream().lookahead_frames
    assert steps[-1] <= frames + lookahead_frames + max(model.lm.config.delays)


def test_the_first_chunks_may_be_short_and_grow(model: MusicGen | AudioGen) -> None:
    in_windows(model)
    whole = np.array(model.generate(["rock", None]))
    hop = round(model.sample_rate / model.frame_rate)
    stream = model.stream(["rock", None], chunk_seconds=0.5, first_chunk_seconds=0.1)
    chunks = [np.array(chunk) for chunk in stream]
    assert [chunk.shape[2] // hop for chunk in chunks] == [5, 10, 20, 25, 25, 25, 10]
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-5)


def test_a_continuation_streams_what_is_new(mono: MusicGen) -> None:
    in_windows(mono)
    clip = 0.3 * mx.random.normal((1, RATE), key=mx.random.key(3))
    whole = np.array(mono.generate_continuation(clip, RATE, ["rock"]))
    new = [
        np.array(c) for c in mono.stream(["rock"], prompt=clip, prompt_sample_rate=RATE, chunk_seconds=0.2)
    ]
    assert whole.shape[2] == 120 * 640
    np.testing.assert_allclose(np.concatenate(new, axis=2), whole[:, :, 50 * 640 :], atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "rate", "channels"),
    [(1, RATE, 1), (639, RATE, 1), (641, RATE, 1), (90000, 44100, 2), (60000, RATE, 1), (3, 8000, 2)],
)
def test_a_prompt_of_any_length_rate_and_channels_is_continued(
    mono: MusicGen, samples: int, rate: int, channels: int
) -> None:
    in_windows(mono)
    clip = 0.3 * mx.random.normal((1, channels, samples), key=mx.random.key(3))
    audio, codes = mono.generate_continuation(clip, rate, return_tokens=True)
    assert audio.shape == (1, 1, 120 * 640)
    assert codes.shape == (1, 4, 120)


@pytest.mark.parametrize(
    ("prompt", "rate", "message"),
    [
        (mx.ones((1, 1, 3 * RATE)), RATE, "nothing is left to generate"),
        (mx.ones((1, 1, 120 * 640)), RATE, "nothing is left to generate"),
        (mx.ones((1, 1, 0)), RATE, "some samples"),
        (mx.ones((0, 1, 10)), RATE, "empty"),
        (mx.ones(100), RATE, "channels, samples"),
        (mx.full((1, 1, 100), mx.nan), RATE, "NaN or infinite"),
        (mx.full((1, 1, 100), 13107.0), RATE, "up to 13107, where full scale is 1; divide them by 32768"),
        (mx.ones((1, 1, 100), mx.int16), RATE, "must be float samples"),
        (np.ones((1, 1, 100), np.int16), RATE, "must be float samples"),
        (mx.ones((1, 1, 100)), 0, "sample rate"),
        (mx.ones((2, 1, 100)), RATE, "1 descriptions, but 2 prompts"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(
    mono: MusicGen, prompt: mx.array, rate: int, message: str
) -> None:
    in_windows(mono)
    with pytest.raises(UsageError, match=message):
        mono.generate_continuation(prompt, rate, ["rock"])


@pytest.mark.parametrize("seconds", [0.0, 0.001, float("nan"), "1"])
def test_a_chunk_is_at_least_a_frame(mono: MusicGen, seconds: object) -> None:
    with pytest.raises(UsageError, match="chunk_seconds"):
        mono.stream(["rock"], chunk_seconds=seconds)
    with pytest.raises(UsageError, match="first_chunk_seconds"):
        mono.stream(["rock"], first_chunk_seconds=seconds)


def test_every_duration_has_its_frames(mono: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    # The plan decides; runs in windows go through the networks in the next test.
    mono.max_duration = 30.0
    for tenths in range(1, 1801):
        mono.set_generation_params(duration=tenths / 10)
        frames = int(tenths / 10 * 50)
        counted = _planned(mono, frames)
        assert counted == frames


def test_every_duration_has_its_frames_through_the_networks(mono: MusicGen) -> None:
    mono.max_duration = 1.0
    for tenths in range(1, 41):
        mono.set_generation_params(duration=tenths / 10, extend_stride=0.6, seed=0)
        audio, codes = mono.generate(["rock"], return_tokens=True)
        frames = int(tenths / 10 * 50)
        assert (codes.shape[2], audio.shape[2]) == (frames, frames * 640)


def _planned(model: MusicGen, frames: int) -> int:
    from audiocraft_mlx.decoding.windows import plan_windows

    windows = plan_windows(
        frames, int(model.max_duration * model.frame_rate), int(model.extend_stride * model.frame_rate)
    )
    return sum(window.frames - window.context_frames for window in windows)


def test_memory_does_not_grow_with_the_length() -> None:
    model = MusicGen.get_pretrained("demo")
    model.max_duration = 2.0
    model.set_generation_params(duration=16, extend_stride=1.0, seed=1)
    kept = []
    for chunk in model.stream(["piano"]):
        del chunk
        kept.append(mx.get_active_memory())
    # What is alive differs a little with where in its window a chunk ends.
    assert max(kept[8:]) < max(kept[:8]) + 100_000
