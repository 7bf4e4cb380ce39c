"""Plots a clip: its waveform, its mel spectrogram, and its melody or style condition.

The clip is read in blocks, and what is plotted has the resolution of the picture: its length costs no memory.
"""

from __future__ import annotations

import io
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath, write_file

_N_FFT, _HOP, _MELS = 2048, 512, 128
_RANGE_DB = 80.0
_PITCHES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
# The picture is narrower than this many points.
_MAX_COLUMNS = 2048
# Frames of the spectrogram that are computed for a column of a long clip, evenly spread over it: nobody sees
# the others.
_FRAMES_PER_COLUMN = 16
# Samples per channel, and frames of the spectrogram, that are processed at a time.
_BLOCK, _FRAMES = 1 << 16, 256
# Fonts for the characters of a title that matplotlib's own font lacks, where they are installed: Chinese,
# Japanese and Korean on Linux and macOS, other scripts, symbols. Not Apple's and Noto's colour emoji:
# matplotlib can't draw bitmaps.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "PingFang HK",
    "Hiragino Sans GB",
    "Hiragino Sans",
    "Heiti TC",
    "Apple SD Gothic Neo",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Symbola",
    "Arial Unicode MS",
)
# The title's characters in a line, and its lines.
_TITLE_WIDTH, _TITLE_LINES = 110, 3
# The picture, in inches. From its left edge to its panels, to their right ends, and to the scale of colours.
_DPI, _WIDTH, _LEFT, _RIGHT, _SCALE, _SCALE_WIDTH = 110, 11.0, 0.85, 9.95, 10.15, 0.18
# Above and below each line of the title; each panel's height, and what is below it.
_ABOVE, _TITLE_LINE = 0.08, 0.22
_PANELS = ((1.7, 0.18), (3.4, 0.5), (2.0, 0.5))
# As in zlib: 3 takes a third of the time of 6, its default, for files a few percent larger.
_COMPRESSION = 3
# matplotlib's own, for which there is room, whatever the user's settings are.
_SIZES = {
    "font.size": 10.0,
    "figure.titlesize": "large",
    **{f"{part}.labelsize": "medium" for part in ("axes", "xtick", "ytick")},
}


class MelSpectrogram:
    """The mel spectrogram of mono audio that comes in blocks; frames that share a column are averaged,
    of a long clip some of them.

    Attributes:
        centres: of the bands, `[mels]` in Hz.
        column_seconds: the time from one column to the next.
    """

    def __init__(self, samples: int, sample_rate: int) -> None:
        frames = samples // _HOP + 1
        self._frames_per_column = math.ceil(frames / _MAX_COLUMNS)
        self._stride = math.ceil(self._frames_per_column / _FRAMES_PER_COLUMN)
        columns = math.ceil(frames / self._frames_per_column)
        self._power, self._frames = np.zeros((_MELS, columns)), np.zeros(columns, np.int64)
        self._done = 0
        self._pending = np.zeros(_N_FFT // 2, np.float32)
        top = 2595 * np.log10(1 + sample_rate / 2 / 700)
        points = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
        bins = np.fft.rfftfreq(_N_FFT, 1 / sample_rate)
        rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
        falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
        self._filters = np.maximum(0, np.minimum(rising, falling))
        self.centres = points[1:-1]
        self.column_seconds = self._frames_per_column * _HOP / sample_rate

    def add(self, audio: np.ndarray) -> None:
        """The next samples, float `[n]`."""
        for start in range(0, len(audio), _BLOCK):
            self._pending = np.concatenate([self._pending, audio[start : start + _BLOCK]])
            if len(self._pending) >= _N_FFT:
                frames = np.lib.stride_tricks.sliding_window_view(self._pending, _N_FFT)[::_HOP]
                numbers = np.arange(self._done, self._done + len(frames))
                chosen = np.flatnonzero(numbers % self._frames_per_column % self._stride == 0)
                for first in range(0, len(chosen), _FRAMES):
                    some = chosen[first : first + _FRAMES]
                    self._add_frames(frames[some], numbers[some] // self._frames_per_column)
                self._done += len(frames)
                self._pending = self._pending[len(frames) * _HOP :]

    def levels(self) -> np.ndarray:
        """Levels `[mels, columns]` in dB relative to the loudest, after all samples were added."""
        self.add(np.zeros(_N_FFT // 2, np.float32))
        levels = 10 * np.log10(np.maximum(self._power / np.maximum(self._frames, 1), 1e-12))
        return np.maximum(levels - levels.max(), -_RANGE_DB)

    def _add_frames(self, frames: np.ndarray, columns: np.ndarray) -> None:
        power = np.abs(np.fft.rfft(frames * np.hanning(_N_FFT), axis=1)) ** 2
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        self._power[:, columns[starts]] += np.add.reduceat(self._filters @ power.T, starts, axis=1)
        self._frames[columns[starts]] += np.diff(starts, append=len(columns))


class Envelope:
    """The lowest and the highest sample in each column of a waveform that comes in blocks.

    Attributes:
        low, high: float32 `[channels, columns]`.
        samples_per_column: 1 for a short clip.
    """

    def __init__(self, channels: int, samples: int) -> None:
        self.samples_per_column = math.ceil(samples / _MAX_COLUMNS)
        columns = math.ceil(samples / self.samples_per_column)
        self.low = np.full((channels, columns), np.inf, np.float32)
        self.high = np.full((channels, columns), -np.inf, np.float32)
        self._done = 0

    def add(self, audio: np.ndarray) -> None:
        """The next samples, float `[channels, n]`."""
        columns = np.arange(self._done, self._done + audio.shape[1]) // self.samples_per_column
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        places = columns[starts]
        self.low[:, places] = np.minimum(self.low[:, places], np.minimum.reduceat(audio, starts, axis=1))
        self.high[:, places] = np.maximum(self.high[:, places], np.maximum.reduceat(audio, starts, axis=1))
        self._done += audio.shape[1]


def mel_spectrogram(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The mel spectrogram of mono `audio`, float `[samples]`.

    Returns:
        Levels `[mels, columns]` in dB relative to the loudest, and the bands' centres `[mels]` in Hz.
    """
    spectrogram = MelSpectrogram(len(audio), sample_rate)
    spectrogram.add(audio)
    return spectrogram.levels(), spectrogram.centres


def require_matplotlib() -> None:
    """Raise `UsageError` if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib; install it with: pip install 'musicgen-mlx[plot]'")


def check_plotting(title: str) -> None:
    """Make sure that plots can be drawn, before the minutes that it takes to generate what they show.

    Raises:
        UsageError: matplotlib is missing, or fails.
    """
    require_matplotlib()
    try:
        with drawing():
            save_figure(_figure(title, 1), io.BytesIO())
    except Exception as error:  # whatever is wrong with its installation or its configuration
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"matplotlib can't draw a plot ({reason}); reinstall it, or omit the plot"
        ) from error


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
    path: StrPath,
    audio: np.ndarray | AudioSpool,
    sample_rate: int,
    title: str,
    condition: Chromagram | StyleExcerpt | None = None,
    join: tuple[int, int] | None = None,
) -> None:
    """Plot `audio` float32 `[channels, samples]` into a PNG file.

    A melody's chromagram, or the mel spectrogram of a style's excerpt, is plotted below. The `join` of a
    loop, the samples from which and up to which it was cross-faded, is marked.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    require_matplotlib()
    with drawing():
        figure = _figure(title, 2 if condition is None else 3)
        wave, spectrogram, *rest = figure.axes
        spectrogram.sharex(wave)
        seconds = _draw_clip(figure, wave, spectrogram, audio, sample_rate)
        if join is not None:
            _draw_join(wave, (join[0] / sample_rate, join[1] / sample_rate), seconds)
        if isinstance(condition, Chromagram):
            rest[0].sharex(wave)
            _draw_chromagram(rest[0], condition, seconds)
        elif condition is not None:
            excerpt = MelSpectrogram(len(condition.audio), condition.sample_rate)
            excerpt.add(condition.audio)
            _draw_spectrogram(rest[0], excerpt, condition.start)
            rest[0].set(ylabel="style excerpt (Hz)", xlabel="time in the style's file (s)")
        write_file(Path(path), lambda file: save_figure(figure, file))


@contextmanager
def drawing() -> Iterator[None]:
    """For drawing: without those of the user's settings that it may fail with, and without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _import_matplotlib().rc_context({"text.usetex": False, **_SIZES}):
            yield


def _import_matplotlib() -> Any:
    """matplotlib, whose import fails if `MPLBACKEND` names a backend that isn't there, as in a notebook."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        # For others in this process. Nothing here needs a backend.
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def _figure(title: str, panels: int) -> Any:
    """A figure with `panels`, below each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title, families = _drawable(title[: (_TITLE_LINES + 1) * _TITLE_WIDTH])
    # matplotlib's own wrapping takes "$" for mathematics.
    lines = textwrap.wrap(title, _TITLE_WIDTH, max_lines=_TITLE_LINES, placeholder=" …")
    # A layout that matplotlib looks for takes it as long as the rest of the drawing.
    places, bottom = [], _ABOVE + _TITLE_LINE * max(1, len(lines))
    for height, below in _PANELS[:panels]:
        places.append((bottom, height))
        bottom += height + below
    figure = Figure(figsize=(_WIDTH, bottom), dpi=_DPI)
    FigureCanvasAgg(figure)
    for top, height in places:
        figure.add_axes(_fractions(figure, _LEFT, top, _RIGHT - _LEFT, height))
    y = 1 - _ABOVE / bottom
    x = (_LEFT + _RIGHT) / 2 / _WIDTH
    figure.suptitle("\n".join(lines), parse_math=False, family=families, x=x, y=y)
    return figure


def _fractions(
    figure: Any, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A place in inches from the upper left corner → as matplotlib has it: fractions, from the lower left."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return left / whole_width, bottom / whole_height, width / whole_width, height / whole_height


def _drawable(title: str) -> tuple[str, list[str]]:
    """`title` with "?" for what no font has and without invisible characters, and the fonts for it."""
    from matplotlib import font_manager, rcParams

    families = list(rcParams["font.family"])
    if title.isascii() and title.isprintable():
        return title, families
    # White space, also of other scripts, is a space; control characters, joiners and variations are nothing.
    title = "".join(" " if c.isspace() else c for c in title)
    title = "".join(c for c in title if c.isprintable() and not "\ufe00" <= c <= "\ufe0f")
    missing = {ord(c) for c in title} - _characters(families)
    installed = {font.name for font in font_manager.fontManager.ttflist} if missing else set()
    for name in _FALLBACK_FONTS:
        if name in installed and missing & (characters := _characters([name])):
            families.append(name)
            missing -= characters
    return "".join("?" if ord(c) in missing else c for c in title), families


def _characters(families: list[str]) -> set[int]:
    """The characters that a font has; none of one that matplotlib can't read."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=families)))
        return set(font.get_charmap())
    except (OSError, RuntimeError, ValueError):
        return set()


def save_figure(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    # Not `savefig`, which draws a figure twice, the first time for its size.
    figure.canvas.print_png(file, pil_kwargs={"compress_level": _COMPRESSION})


def _draw_clip(
    figure: Any, wave: Any, spectrogram: Any, audio: np.ndarray | AudioSpool, sample_rate: int
) -> float:
    """Draw the waveform and the mel spectrogram; the length of the clip in seconds."""
    if isinstance(audio, AudioSpool):
        channels, samples, blocks = audio.channels, audio.samples, audio.blocks()
    else:
        (channels, samples), blocks = audio.shape, _blocks(audio)
    envelope, mel = Envelope(channels, samples), MelSpectrogram(samples, sample_rate)
    for block in blocks:
        envelope.add(block)
        mel.add(block.mean(axis=0))
    step = envelope.samples_per_column
    times = np.arange(envelope.low.shape[1]) * step / sample_rate
    names = ("left", "right") if channels == 2 else ("mono",)
    for low, high, name in zip(envelope.low, envelope.high, names, strict=True):
        line = low if step == 1 else np.stack([low, high], axis=1).ravel()
        wave.plot(np.repeat(times, len(line) // len(low)), line, linewidth=0.4, alpha=0.8, label=name)
    seconds = samples / sample_rate
    wave.set(ylabel="amplitude", xlim=(0, seconds))
    wave.tick_params(labelbottom=False)
    if channels == 2:
        wave.legend(loc="upper right")
    mesh = _draw_spectrogram(spectrogram, mel)
    _, bottom, _, height = spectrogram.get_position().bounds
    scale = figure.add_axes((_SCALE / _WIDTH, bottom, _SCALE_WIDTH / _WIDTH, height))
    figure.colorbar(mesh, cax=scale, label="level (dB)")
    spectrogram.set(ylabel="mel frequency (Hz)", xlabel="time (s)")
    return seconds


def _draw_join(wave: Any, join: tuple[float, float], seconds: float) -> None:
    """Mark a cross-fade from second to second, which may go around the end of the clip."""
    start, end = join
    parts = [(start, min(end, seconds)), (0.0, end - seconds)]
    for first, last in parts:
        if last > first:
            wave.axvspan(first, last, color="tab:red", alpha=0.4, linewidth=0)
    wave.axvline(start, color="tab:red", linewidth=0.8)
    left = start < seconds / 2
    wave.annotate(
        "join",
        (start, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 if left else -4, -4),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        color="tab:red",
    )


def _blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    return (audio[:, start : start + _BLOCK] for start in range(0, audio.shape[1], _BLOCK))


def _draw_spectrogram(panel: Any, spectrogram: MelSpectrogram, start: float = 0.0) -> Any:
    """Draw a mel spectrogram from second `start` on; the mesh, for a colour bar."""
    levels, centres = spectrogram.levels(), spectrogram.centres
    ticks = [hertz for hertz in (100, 300, 1000, 3000, 10000) if hertz < centres[-1]]
    panel.set_yticks(np.interp(ticks, centres, np.arange(_MELS)), [f"{hertz:,}" for hertz in ticks])
    # A column is around its time.
    width = spectrogram.column_seconds
    left = start - width / 2
    extent = (left, left + levels.shape[1] * width, -0.5, _MELS - 0.5)
    if not levels.any():  # silence: all of it is as loud as the loudest
        levels = np.full_like(levels, -_RANGE_DB)
    return _draw_image(panel, levels, extent, "magma", (float(levels.min()), 0.0))


def _draw_image(
    panel: Any,
    values: np.ndarray,
    extent: tuple[float, ...],
    colours: str,
    limits: tuple[float | None, float | None],
) -> Any:
    """`values` `[rows, columns]` from the lowest row up; `extent`: left, right, bottom and top.

    `limits`: the values of the first and the last colour, None for the lowest and the highest.
    """
    low, high = limits
    return panel.imshow(
        values,
        cmap=colours,
        vmin=low,
        vmax=high,
        extent=extent,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )


def _draw_chromagram(panel: Any, melody: Chromagram, seconds: float) -> None:
    frames = melody.frames[: int(seconds / melody.hop) + 1]
    extent = (0, len(frames) * melody.hop, -0.5, len(_PITCHES) - 0.5)
    _draw_image(panel, frames.T, extent, "Greys", (None, None))
    panel.set_yticks(np.arange(len(_PITCHES)), _PITCHES)
    panel.set(ylabel="melody (pitch class)", xlabel="time (s)")
