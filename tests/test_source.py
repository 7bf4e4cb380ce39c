"""The clip that a continuation is generated from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.clips.requests import OutputOptions
from audiocraft_mlx.clips.source import SourceClip, read_condition_audio, read_source
from audiocraft_mlx.errors import UsageError

RATE = 32000


def sine(hertz: float, seconds: float = 0.5, phase: float = 0.0, rate: int = RATE) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate + phase)
    return wave[None].astype(np.float32)


def test_the_tail_is_of_whole_frames_at_the_models_rate() -> None:
    source = SourceClip(np.concatenate([sine(200), sine(300)]), RATE, 16)
    assert source.prompt_audio(0.1, RATE, 2, 640).shape == (2, 5 * 640)
    assert source.prompt_audio(0.115, RATE, 1, 640).shape == (1, 5 * 640)
    np.testing.assert_array_equal(source.prompt_audio(0.1, RATE, 2, 640), source.audio[:, -3200:])
    assert source.prompt_audio(99, 16000, 2, 320).shape == (2, 8000)
    assert source.prompt_audio(0.001, RATE, 1, 640).shape == (1, 32), "less than a frame is taken as it is"


def test_less_than_a_frame_is_warned_about() -> None:
    whole, short = SourceClip(sine(200), RATE), SourceClip(sine(200)[:, :100], RATE, name="short.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert whole.prompt_audio(0.02, RATE, 1, 640).shape == (1, 640)
    with pytest.warns(RuntimeWarning, match=r"^only 0\.0031 s of short\.wav are continued, less"):
        assert short.prompt_audio(5, RATE, 1, 640).shape == (1, 100)


def test_less_than_one_sample_at_the_models_rate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, [0.5], 48000)
    with pytest.raises(UsageError, match=rf"^{path} is too short: 1 sample\(s\) at 48000 Hz"):
        read_source(path).prompt_audio(5, RATE, 2, 640)
    with pytest.raises(UsageError, match=rf"^{path} is too short"):
        read_condition_audio(path, 5).require_samples(RATE)
    soundfile.write(path, [0.5] * 1000, 48000)
    assert read_source(path).prompt_audio(1e-6, RATE, 2, 640).shape == (2, 1)


@pytest.mark.parametrize(
    ("subtype", "chosen", "asked", "bits"),
    [
        ("PCM_16", "wav", None, 16),
        ("PCM_24", "wav", None, 24),
        ("FLOAT", "wav", None, 32),
        ("DOUBLE", "flac", None, 24),
        ("PCM_24", "wav", 16, 16),
        ("PCM_U8", "flac", None, 16),
        ("PCM_24", "mp3", None, None),
    ],
)
def test_there_are_bits_enough_for_the_source(
    tmp_path: Path, subtype: str, chosen: str, asked: int | None, bits: int | None
) -> None:
    soundfile.write(tmp_path / "a.wav", sine(200)[0], RATE, subtype=subtype)
    source = read_source(tmp_path / "a.wav")
    assert OutputOptions(chosen, asked).file_format(source) == AudioFormat(chosen, bits)


@pytest.mark.parametrize(
    ("name", "rate", "written"), [("mp3", 44100, 44100), ("mp3", 96000, RATE), ("flac", 96000, 96000)]
)
def test_the_rate_is_the_sources_where_the_format_has_it(name: str, rate: int, written: int) -> None:
    assert SourceClip(sine(200), rate, 16).output_rate(AudioFormat(name, None), RATE) == written
