"""Plots a clip: its waveform, its mel spectrogram, and its melody or style condition."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import write_file

_N_FFT, _HOP, _MELS = 2048, 512, 128
_RANGE_DB = 80.0
_PITCHES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


def mel_spectrogram(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The mel spectrogram of mono `audio`, float `[samples]`.

    Returns:
        Levels `[mels, frames]` in dB relative to the loudest, and the bands' centres `[mels]` in Hz.
    """
    padded = np.pad(audio, _N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_N_FFT), axis=1)) ** 2
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_N_FFT, 1 / sample_rate)
    rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    mel = np.maximum(0, np.minimum(rising, falling)) @ power.T
    levels = 10 * np.log10(np.maximum(mel, 1e-12))
    return np.maximum(levels - levels.max(), -_RANGE_DB), points[1:-1]


def require_matplotlib() -> None:
    """Raise `UsageError` if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib; install it with: pip install 'musicgen-mlx[plot]'")


@dataclass(frozen=True)
class Chromagram:
    """A melody condition: `frames` float `[n, 12]`, the pitch classes from C up, every `hop` seconds."""

    frames: np.ndarray
    hop: float


@dataclass(frozen=True)
class StyleExcerpt:
    """A style condition: the excerpt, mono float32 `[samples]`, that starts at second `start` of its file."""

    audio: np.ndarray
    sample_rate: int
    start: float


def save_plot(
    path: Path,
    audio: np.ndarray,
    sample_rate: int,
    title: str,
    condition: Chromagram | StyleExcerpt | None = None,
) -> None:
    """Plot `audio` float32 `[channels, samples]` into a PNG file.

    A melody's chromagram, or the mel spectrogram of a style's excerpt, is plotted below.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    seconds = np.arange(audio.shape[1]) / sample_rate
    heights = (1, 2) if condition is None else (1, 2, 1.2)
    figure = Figure(figsize=(11, 2 * sum(heights)), layout="constrained")
    wave, spectrogram, *rest = figure.subplots(len(heights), 1, height_ratios=heights)
    spectrogram.sharex(wave)
    figure.suptitle(title, wrap=True, parse_math=False)
    for channel, name in zip(audio, ("left", "right") if len(audio) == 2 else ("mono",), strict=True):
        wave.plot(seconds, channel, linewidth=0.4, alpha=0.8, label=name)
    wave.set(ylabel="amplitude", xlim=(0, audio.shape[1] / sample_rate))
    wave.tick_params(labelbottom=False)
    if len(audio) == 2:
        wave.legend(loc="upper right")
    mesh = _draw_spectrogram(spectrogram, audio.mean(axis=0), sample_rate)
    figure.colorbar(mesh, ax=spectrogram, label="level (dB)")
    spectrogram.set(ylabel="mel frequency (Hz)", xlabel="time (s)")
    if isinstance(condition, Chromagram):
        rest[0].sharex(wave)
        _draw_chromagram(rest[0], condition, audio.shape[1] / sample_rate)
    elif condition is not None:
        _draw_spectrogram(rest[0], condition.audio, condition.sample_rate, condition.start)
        rest[0].set(ylabel="style excerpt (Hz)", xlabel="time in the style's file (s)")
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw_spectrogram(panel: Any, audio: np.ndarray, sample_rate: int, start: float = 0.0) -> Any:
    """Draw the mel spectrogram of mono `audio` from second `start` on; the mesh, for a colour bar."""
    levels, centres = mel_spectrogram(audio, sample_rate)
    ticks = [hertz for hertz in (100, 300, 1000, 3000, 10000) if hertz < centres[-1]]
    panel.set_yticks(np.interp(ticks, centres, np.arange(_MELS)), [f"{hertz:,}" for hertz in ticks])
    times = start + np.arange(levels.shape[1]) * _HOP / sample_rate
    return panel.pcolormesh(times, np.arange(_MELS), levels, cmap="magma", rasterized=True)


def _draw_chromagram(panel: Any, melody: Chromagram, seconds: float) -> None:
    frames = melody.frames[: int(seconds / melody.hop) + 1]
    panel.pcolormesh(
        np.arange(len(frames) + 1) * melody.hop,
        np.arange(len(_PITCHES) + 1) - 0.5,
        frames.T,
        cmap="Greys",
        rasterized=True,
    )
    panel.set_yticks(np.arange(len(_PITCHES)), _PITCHES)
    panel.set(ylabel="melody (pitch class)", xlabel="time (s)")
