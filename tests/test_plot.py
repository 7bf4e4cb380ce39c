from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx import OutputError, UsageError
from audiocraft_mlx.audio import plot as plot_module
from audiocraft_mlx.audio.plot import (
    Chromagram,
    Envelope,
    MelSpectrogram,
    StyleExcerpt,
    check_plotting,
    mel_spectrogram,
    save_plot,
)
from audiocraft_mlx.audio.spool import AudioSpool

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
    save_plot(str(path), np.stack([tone(440)] * channels), RATE, "$5 worth of music, 100 % piano")
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


PROMPTS = [
    "a $5 and $6 piano",
    "\\frac{ $x$",
    "线 piano 🎹 \x00\x1b",
    "a\nb\n" * 50,
    "word " * 5000,
    "x" * 9999,
    "",
]


@pytest.mark.parametrize("title", PROMPTS, ids=lambda title: title[:8])
def test_a_title_is_text(tmp_path: Path, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_plotting(title)
        save_plot(tmp_path / "clip.png", tone(440)[None], RATE, title)
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("title", PROMPTS, ids=lambda title: title[:8])
def test_a_title_has_no_characters_that_cannot_be_drawn(title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_module.save_figure(plot_module._figure(title, 1), io.BytesIO())


def test_what_no_font_has_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_module, "_FALLBACK_FONTS", ("No Such Font",))
    text, families = plot_module._drawable("线\u3000piano \U0001f3b9\ufe0f\u200d, für é\x1b")
    assert text == "? piano ?, für é"
    assert "No Such Font" not in families


def test_an_installed_font_is_used_for_what_the_first_one_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    # matplotlib brings both.
    lacking = plot_module._characters(["STIXGeneral"]) - plot_module._characters(["DejaVu Sans"])
    title = "a " + next(character for character in map(chr, sorted(lacking)) if character.isprintable())
    monkeypatch.setattr(plot_module, "_FALLBACK_FONTS", ("No Such Font", "STIXGeneral"))
    text, families = plot_module._drawable(title)
    assert (text, families[-1]) == (title, "STIXGeneral")
    assert plot_module._drawable("a piano")[1] == families[:-1]


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg", ""])
@pytest.mark.parametrize("settings", ["", "text.usetex: True\n"])
def test_no_backend_is_needed(tmp_path: Path, backend: str, settings: str) -> None:
    script = """
from pathlib import Path
import numpy as np
from audiocraft_mlx.audio.plot import check_plotting, save_plot
check_plotting("a $5 and $6 piano")
save_plot(Path("clip.png"), np.zeros((1, 640), np.float32), 32000, "a $5 and $6 piano")
import os
print(os.environ["MPLBACKEND"])
"""
    (tmp_path / "matplotlibrc").write_text(settings)
    environment = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{backend}\n", "")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(plot_module, "save_figure", fail)
    with pytest.raises(UsageError, match=r"^matplotlib can't draw a plot \(no fonts\)"):
        check_plotting("piano")


@pytest.mark.parametrize("blocks", [[7, 640, 63353], [64000], [1] * 50 + [63950]])
def test_blocks_do_not_change_what_is_plotted(blocks: list[int]) -> None:
    audio = np.random.default_rng(0).standard_normal((2, 64000)).astype(np.float32)
    envelope, mel = Envelope(2, 64000), MelSpectrogram(64000, RATE)
    for block in np.split(audio, np.cumsum(blocks)[:-1], axis=1):
        envelope.add(block)
        mel.add(block[0])
    step = envelope.samples_per_column
    assert step == 32
    np.testing.assert_array_equal(envelope.low, audio.reshape(2, -1, step).min(axis=2))
    np.testing.assert_array_equal(envelope.high, audio.reshape(2, -1, step).max(axis=2))
    np.testing.assert_allclose(mel.levels(), mel_spectrogram(audio[0], RATE)[0], atol=1e-6)


def test_a_short_clips_spectrogram_has_all_frames_and_a_long_ones_their_means() -> None:
    audio = np.random.default_rng(0).standard_normal(RATE * 80).astype(np.float32)
    short, _ = mel_spectrogram(audio[:RATE], RATE)
    assert short.shape == (128, RATE // 512 + 1)
    long = MelSpectrogram(len(audio), RATE)
    long.add(audio)
    assert long.levels().shape[1] == 1667
    assert long.column_seconds == 3 * 512 / RATE


def test_a_long_clips_spectrogram_takes_some_frames_of_each_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 4000
    audio = np.concatenate([0.1 * tone(220, 450), tone(440, 450)])[:: RATE // rate]
    computed = []
    add_frames = MelSpectrogram._add_frames

    def count(self: MelSpectrogram, frames: np.ndarray, columns: np.ndarray) -> None:
        computed.extend(columns)
        add_frames(self, frames, columns)

    monkeypatch.setattr(MelSpectrogram, "_add_frames", count)
    monkeypatch.setattr(plot_module, "_MAX_COLUMNS", 100)
    levels, centres = mel_spectrogram(audio, rate)
    assert {*np.bincount(computed)[:-1]} <= {*range(9, 17)}, "of the 71 frames of a column"
    half = levels.shape[1] // 2
    for part, hertz in ((levels[:, : half - 1], 220), (levels[:, half + 1 :], 440)):
        assert part.shape[1] > 40
        assert np.ptp(part.max(axis=0)) < 0.3
        assert {abs(np.log2(centres[band] / hertz)) < 0.15 for band in part.argmax(axis=0)} == {True}
    assert levels[:, : half - 1].max() == pytest.approx(-20, abs=3)


def test_the_length_of_a_clip_costs_no_memory(tmp_path: Path) -> None:
    peaks = []
    rate = 4000
    for minutes in (4, 12):
        spool = AudioSpool(2, tmp_path / "clip.wav")
        for _ in range(minutes):
            spool.append(np.stack([tone(440, 60 * rate / RATE)] * 2))
        tracemalloc.start()
        try:
            save_plot(tmp_path / "clip.png", spool, rate, "a long clip")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        spool.close()
    assert max(peaks) < 50e6
    assert peaks[1] < 1.1 * peaks[0]
