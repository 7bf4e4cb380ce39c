"""A picture of a clip: its waveform and its mel spectrogram."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from audiocraft_mlx.errors import OutputError, UsageError

_N_FFT, _HOP, _MELS = 2048, 512, 128
_RANGE_DB = 80.0


def mel_spectrogram(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The mel spectrogram of mono `audio` `[samples]`.

    Returns:
        Levels `[mels, frames]` in dB, 0 the loudest, and the bands' centres in Hz.
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
    """Raise `UsageError` if there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        raise UsageError("a picture needs matplotlib; install it with: pip install 'musicgen-mlx[plot]'")


def plot(path: Path, audio: np.ndarray, sample_rate: int, title: str) -> None:
    """Draw `audio` float32 `[channels, samples]` into a PNG file, with `title` above.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    seconds = np.arange(audio.shape[1]) / sample_rate
    figure = Figure(figsize=(11, 6), layout="constrained")
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    figure.suptitle(title, wrap=True, parse_math=False)
    for channel, name in zip(audio, ("left", "right") if len(audio) == 2 else ("mono",), strict=True):
        wave.plot(seconds, channel, linewidth=0.4, alpha=0.8, label=name)
    wave.set(ylabel="amplitude", xlim=(0, audio.shape[1] / sample_rate))
    if len(audio) == 2:
        wave.legend(loc="upper right")
    levels, centres = mel_spectrogram(audio.mean(axis=0), sample_rate)
    drawn = spectrum.pcolormesh(
        np.arange(levels.shape[1]) * _HOP / sample_rate,
        np.arange(_MELS),
        levels,
        cmap="magma",
        rasterized=True,
    )
    ticks = [hertz for hertz in (100, 300, 1000, 3000, 10000) if hertz < centres[-1]]
    spectrum.set_yticks(np.interp(ticks, centres, np.arange(_MELS)), [f"{hertz:,}" for hertz in ticks])
    spectrum.set(xlabel="time (s)", ylabel="mel frequency (Hz)")
    figure.colorbar(drawn, ax=spectrum, label="level (dB)")
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise OutputError(
            f"{path} can't be written: {error.strerror or error}; choose another place"
        ) from error
