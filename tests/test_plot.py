from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx import OutputError, UsageError
from audiocraft_mlx.audio import plot as plot_module
from audiocraft_mlx.audio.plot import Chromagram, StyleExcerpt, mel_spectrogram, save_plot

RATE = 32000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


@pytest.mark.parametrize("hertz", [220.0, 1000.0, 6000.0])
def test_a_tone_is_loudest_in_its_own_band(hertz: float) -> None:
    levels, centres = mel_spectrogram(tone(hertz), RATE)
    loudest = centres[levels.mean(axis=1).argmax()]
    assert abs(np.log2(loudest / hertz)) < 0.15
    assert levels.max() == 0
    assert levels.min() >= -80


def test_time_goes_from_left_to_right() -> None:
    levels, _ = mel_spectrogram(np.concatenate([np.zeros(RATE, np.float32), tone(500)]), RATE)
    half = levels.shape[1] // 2
    assert levels[:, : half - 4].max() < -60
    assert levels[:, half + 4 :].max() > -3


@pytest.mark.parametrize("channels", [1, 2])
def test_a_plot_is_a_png(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "clip.png"
    save_plot(path, np.stack([tone(440)] * channels), RATE, "$5 worth of music, 100 % piano")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 800
    assert height > 400


def test_a_condition_has_a_panel_of_its_own(tmp_path: Path) -> None:
    heights = []
    conditions = [None, Chromagram(np.eye(12, dtype=np.float32), 0.1), StyleExcerpt(tone(440), RATE, 4.0)]
    for index, condition in enumerate(conditions):
        save_plot(tmp_path / f"{index}.png", tone(440)[None], RATE, "piano", condition)
        heights.append(int.from_bytes((tmp_path / f"{index}.png").read_bytes()[20:24], "big"))
    assert heights[0] < heights[1] == heights[2]


def test_silence_and_very_short_clips_can_be_plotted(tmp_path: Path) -> None:
    for samples in (640, RATE):
        save_plot(tmp_path / "silence.png", np.zeros((1, samples), np.float32), RATE, "nothing")
        assert (tmp_path / "silence.png").stat().st_size > 1000


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        save_plot(tmp_path / "nowhere" / "clip.png", np.zeros((1, 640), np.float32), RATE, "")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"musicgen-mlx\[plot\]"):
        save_plot(tmp_path / "clip.png", np.zeros((1, 640), np.float32), RATE, "")
