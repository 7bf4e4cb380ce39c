"""Saves clips as files, with how they were made in their tags."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from audiocraft_mlx.audio.write import check_wav_size, write_audio
from audiocraft_mlx.clips.codes import MAX_FRAMES, ClipCodes
from audiocraft_mlx.clips.finishing import FinishedAudio
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.planning import new_samples
from audiocraft_mlx.clips.requests import ClipRequest, OutputOptions
from audiocraft_mlx.clips.source import SourceClip
from audiocraft_mlx.files import StrPath

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel


@dataclass(frozen=True)
class SavedFile:
    """A file that was written."""

    path: Path
    channels: int
    samples: int
    """Per channel."""
    sample_rate: int
    peak: float
    """Above 1: what the audio was scaled down by."""

    def __str__(self) -> str:
        layout = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return f"{self.path}: {layout}, {self.samples / self.sample_rate:.2f} s, {self.sample_rate} Hz"


def save_clip(
    path: StrPath,
    clip: FinishedAudio,
    metadata: GenerationMetadata | None = None,
    codes: ClipCodes | None = None,
) -> SavedFile:
    """Write `clip` to `path`, atomically, with its `codes` if they are those of its samples.

    Raises `OutputError`.
    """
    path = Path(path)
    tags = None if metadata is None else metadata.to_tags()
    if tags is not None and codes is not None and codes.frames <= MAX_FRAMES and clip.is_as_generated:
        tags = replace(tags, codes=codes.to_text())
    peak = write_audio(
        path,
        clip.audio,
        clip.sample_rate,
        clip.audio_format,
        tags,
        clip.keeps_level,
        None if clip.loop is None else clip.loop.chunks,
    )
    return SavedFile(path, clip.channels, clip.samples, clip.sample_rate, peak)


def check_size(path: Path, request: ClipRequest, output: OutputOptions, model: GenModel) -> None:
    """Make sure, before it is generated, that the clip fits into a file of its format.

    The source must have been read. Raises `OutputError`.
    """
    samples, channels = new_samples(model, request), model.audio_channels
    source = request.source if isinstance(request.source, SourceClip) else None
    audio_format = output.file_format(source)
    if source is not None:
        rate = source.output_rate(audio_format, model.sample_rate)
        samples = int((samples / model.sample_rate + source.audio.shape[1] / source.rate) * rate)
        channels = max(channels, len(source.audio))
    check_wav_size(path, audio_format, channels, samples)
