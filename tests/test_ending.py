"""`--ending`: where a clip stops, and that nothing before it changes."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.audio.ending import end_audio, natural_ending
from audiocraft_mlx.audio.loudness import fade_out
from audiocraft_mlx.clips.finishing import finish_audio
from audiocraft_mlx.clips.metadata import describe_request
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.clips.source import SourceClip
from audiocraft_mlx.errors import UsageError

RATE = 16000


def drums(bpm: float, seconds: float, first: float = 0.0) -> np.ndarray:
    """A beat over a drone, a low and louder one on the first of every four; the first bar at `first`."""
    times = np.arange(round(seconds * RATE)) / RATE
    audio = 0.03 * np.sin(2 * np.pi * 220 * times)
    for index, start in enumerate(np.arange(first, seconds, 60 / bpm)):
        since = times[round(start * RATE) :] - start
        pitch, level = (80, 0.8) if index % 4 == 0 else (900, 0.4)
        audio[-len(since) :] += level * np.sin(2 * np.pi * pitch * since) * np.exp(-since / 0.04)
    return audio[None].astype(np.float32)


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal((1, round(seconds * RATE)))
    return (level * samples).astype(np.float32)


@pytest.mark.parametrize(("bpm", "first", "bar"), [(120, 0.0, 6.0), (120, 0.37, 6.37), (150, 0.2, 6.6)])
def test_the_fade_begins_at_the_last_bar_line(bpm: float, first: float, bar: float) -> None:
    found = natural_ending(drums(bpm, 8, first), RATE)
    assert found.kind == "bar"
    assert abs(found.start / RATE - bar) <= 0.02
    assert found.end - found.start == RATE


def test_a_known_tempo_is_taken() -> None:
    found = natural_ending(drums(90, 9), RATE, bpm=90)
    assert found.kind == "bar"
    assert abs(found.start / RATE - 8 / 3 * 3) <= 0.02  # the fourth bar's beginning


def test_a_pause_is_preferred_to_a_bar_line() -> None:
    audio = drums(120, 8)
    audio[:, round(7.1 * RATE) : round(7.4 * RATE)] *= 1e-4
    found = natural_ending(audio, RATE)
    assert found.kind == "pause"
    assert abs(found.start / RATE - 7.1) <= 0.011
    assert abs(found.end / RATE - 7.3) <= 0.011


def test_silence_at_the_end_is_cut_but_for_two_seconds_at_most() -> None:
    audio = noise(8)
    audio[:, 5 * RATE :] = 0
    found = natural_ending(audio, RATE)
    assert (found.kind, found.start) == ("pause", 6 * RATE)


def test_without_a_beat_the_last_second_fades_out() -> None:
    for audio in (noise(8), 0.1 * np.sin(np.arange(8 * RATE)[None] * 0.1).astype(np.float32)):
        found = natural_ending(audio, RATE)
        assert (found.kind, found.start, found.end) == ("fade", 7 * RATE, 8 * RATE)


@pytest.mark.parametrize("seconds", [0.0001, 0.02, 0.3, 1.0, 2.5, 5.0])
@pytest.mark.parametrize("make", [noise, lambda seconds: drums(120, seconds), lambda s: 0 * noise(s)])
@pytest.mark.parametrize("fade", [None, 0.5, 60.0])
def test_a_clip_of_any_length_has_an_ending_within_two_seconds(seconds: float, make, fade) -> None:
    audio = make(seconds)
    found = natural_ending(audio, RATE, fade)
    assert 0 <= found.start <= found.end <= audio.shape[1]
    assert found.end >= max(audio.shape[1] / 2, audio.shape[1] - 2 * RATE)
    ended = end_audio(audio, RATE, "natural", fade)
    assert ended.shape == (1, found.end)
    np.testing.assert_array_equal(ended[:, : found.start], audio[:, : found.start])


def test_cut_and_fade() -> None:
    audio = noise(4)
    assert end_audio(audio, RATE, "cut") is audio
    for fade in (-1.0, math.nan):
        with pytest.raises(UsageError, match="the fade-out must be a number of seconds"):
            end_audio(audio, RATE, "natural", fade)
    with pytest.raises(UsageError, match=r"must be \[channels, samples\], not \[1, "):
        end_audio(audio[None], RATE, "natural")
    np.testing.assert_array_equal(
        end_audio(mx.array(audio), RATE, "natural"), end_audio(audio, RATE, "natural")
    )
    np.testing.assert_array_equal(end_audio(audio, RATE, "fade"), fade_out(audio, RATE, 2))
    np.testing.assert_array_equal(end_audio(audio, RATE, "fade", 0.5), fade_out(audio, RATE, 0.5))
    with pytest.raises(UsageError, match="ending must be one of cut, fade, natural, not 'abrupt'"):
        end_audio(audio, RATE, "abrupt")


def test_what_a_clip_continues_stays_as_it_is() -> None:
    source = SourceClip(drums(120, 8), RATE)
    new = noise(1, 0.01)
    new[:, RATE // 2 :] = 0
    finished = finish_audio(new, RATE, OutputOptions(ending="natural"), source)
    audio = finished.as_array()
    np.testing.assert_array_equal(audio[:, : 8 * RATE], source.audio)
    assert 8.4 <= audio.shape[1] / RATE <= 9
    assert not finished.is_as_generated


def test_a_clip_that_is_cut_is_as_it_was_made() -> None:
    finished = finish_audio(noise(1), RATE, OutputOptions(ending="cut"))
    assert finished.is_as_generated
    np.testing.assert_array_equal(finished.as_array(), noise(1))


def test_the_option_and_its_record() -> None:
    output = OutputOptions(ending="natural", fade_out=1.5)
    assert OutputOptions.from_dict(output.to_dict()) == output
    metadata = describe_request(ClipRequest("piano", 7), output, ModelOptions("facebook/musicgen-small"))
    assert metadata.to_command() == "musicgen-mlx piano --seed 7 --fade-out 1.5 --ending natural"
    with pytest.raises(UsageError, match="ending must be one of cut, fade, natural, not 'soft'"):
        OutputOptions(ending="soft")
    with pytest.raises(UsageError, match="ending cut doesn't fade out; leave fade_out out"):
        OutputOptions(ending="cut", fade_out=1.0)
