"""What is left of a clip when it has been made: its file, its stems, its picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.loudness import fade_out, normalize_audio
from audiocraft_mlx.audio.plot import Chromagram, StyleExcerpt, save_plot
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.audio.splice import append_continuation
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.cli.arguments import LUFS
from audiocraft_mlx.clips.planning import Clip, free
from audiocraft_mlx.clips.source import SourceClip

if TYPE_CHECKING:
    from audiocraft_mlx.networks.htdemucs import HTDemucs


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path
    channels: int
    samples: int
    sample_rate: int
    peak: float
    """Of the audio; above 1 it was scaled down."""

    def __str__(self) -> str:
        layout = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return f"{self.path}: {layout}, {self.samples / self.sample_rate:.2f} s, {self.sample_rate} Hz"


class Results:
    """Finishes clips in the way that the arguments say."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        model_rate: int,
        original: SourceClip | None = None,
        separator: HTDemucs | None = None,
        picture_of_heard: Callable[[int], Chromagram | StyleExcerpt | None] = lambda seed: None,
    ) -> None:
        self._arguments = arguments
        self._model_rate = model_rate
        self._original, self._separator = original, separator
        self._picture_of_heard = picture_of_heard
        self._format = arguments.chosen_format
        if original is not None:
            self._format = original.format(self._format, arguments.bit_depth)

    def write(self, clip: Clip, recording: AudioSpool) -> tuple[Written, list[Path]]:
        """The clip's own file, and those of its stems.

        Raises `OutputError`.
        """
        audio, rate = self._finished(recording)
        written = self._write(clip, audio, rate)
        if self._separator is None:
            return written, []
        return written, self._write_stems(clip, written, _whole(audio))

    def write_unfinished(self, clip: Clip, recording: AudioSpool) -> Written:
        """The file alone, of a clip that was interrupted. Raises `OutputError`."""
        return self._write(clip, *self._finished(recording))

    def draw(self, clip: Clip, recording: AudioSpool) -> None:
        """The clip's picture, if it gets one. Raises `OutputError`."""
        if clip.picture is not None:
            audio, rate = self._finished(recording)
            # A melody begins with the new music, and where that is the original's end only the ear says.
            heard = None if self._original is not None else self._picture_of_heard(clip.metadata.seed)
            save_plot(clip.picture, _whole(audio), rate, clip.metadata.prompt, heard)

    def _finished(self, recording: AudioSpool) -> tuple[np.ndarray | AudioSpool, int]:
        """The clip as it is heard, and its sample rate; in memory only if it is changed."""
        arguments, rate = self._arguments, self._model_rate
        audio: np.ndarray | AudioSpool = recording
        if self._original is not None:
            rate = self._original.rate_in(self._format, rate)
            original = self._original
            audio = append_continuation(
                original.audio, original.rate, recording.read(), self._model_rate, rate
            )
        if arguments.normalize != "none":
            lufs = LUFS if arguments.lufs is None else arguments.lufs
            audio = normalize_audio(_whole(audio), rate, arguments.normalize, lufs)
        if arguments.fade_out is not None:
            audio = fade_out(_whole(audio), rate, arguments.fade_out)
        return audio, rate

    def _write(self, clip: Clip, audio: np.ndarray | AudioSpool, rate: int) -> Written:
        assert clip.path is not None
        path = free(clip.path, self._arguments)
        peak = write_audio(path, audio, rate, self._format, clip.metadata.to_tags())
        channels, samples = (audio.channels, audio.samples) if isinstance(audio, AudioSpool) else audio.shape
        return Written(path, channels, samples, rate, peak)

    def _write_stems(self, clip: Clip, written: Written, audio: np.ndarray) -> list[Path]:
        network, path, rate = self._separator, written.path, written.sample_rate
        assert network is not None
        # As loud as the clip's own file: together they are what it is.
        whole = audio / max(1.0, written.peak)
        mix = convert_audio(whole, rate, network.sample_rate, network.channels)
        paths = []
        for name, stem in zip(network.sources, network.separate(mx.array(mix[None]))[0], strict=True):
            part = convert_audio(np.asarray(stem), network.sample_rate, rate, len(whole))
            paths.append(free(path.with_stem(f"{path.stem}-{name}"), self._arguments))
            write_audio(paths[-1], part[:, : whole.shape[1]], rate, self._format, clip.metadata.to_tags())
        return paths


def _whole(audio: np.ndarray | AudioSpool) -> np.ndarray:
    return audio.read() if isinstance(audio, AudioSpool) else audio
