"""From a clip's new music to the audio of its file: after its source, normalized, ended; its stems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from audiocraft_mlx.audio.ending import end_audio
from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.loop import Loop, LoopMeasure
from audiocraft_mlx.audio.loop_chunks import LoopChunks
from audiocraft_mlx.audio.loudness import normalize_audio
from audiocraft_mlx.audio.part import crossfade_part
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.audio.splice import append_continuation, replace_part
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.clips.loops import LoopShape
from audiocraft_mlx.clips.requests import DEFAULT_LUFS, OutputOptions
from audiocraft_mlx.clips.source import SourceClip

if TYPE_CHECKING:
    from audiocraft_mlx.networks.htdemucs import HTDemucs


# What of a loop comes around at its ends while stems are separated.
_AROUND_SECONDS = 2.0


@dataclass(frozen=True)
class FinishedLoop:
    """A clip whose end goes on at its beginning; see `Loop`."""

    join: tuple[int, int]
    """The samples from which and up to which it was cross-faded, or made anew; they may go around its end."""
    is_filled: bool
    stretch: float
    measure: LoopMeasure
    chunks: LoopChunks

    def __str__(self) -> str:
        join, rate = self.measure.join, self.chunks.rate
        error = self.measure.beat_error
        beside = "moments" if error is None else "beats"
        beat = "" if error is None else f"; the beat is off by {1000 * abs(error):.0f} ms"
        stretched = f"; stretched by {100 * self.stretch:.1f} %" if abs(self.stretch) > 5e-4 else ""
        start, end = (sample / rate for sample in self.join)
        how = f"joined at {start:.2f} s, where"
        if self.is_filled:
            how = f"made anew from {start:.2f} s, {end - start:.2f} s long, at whose edges"
        return (
            f"{how} the sound changes {join.score:.2f} times as much as at its strongest "
            f"{beside}{beat}{stretched}"
        )


@dataclass(frozen=True, eq=False)
class FinishedAudio:
    """A clip as its file holds it: float32 `[channels, samples]`; in memory only if it was changed."""

    audio: np.ndarray | AudioSpool
    sample_rate: int
    audio_format: AudioFormat
    keeps_level: bool = False
    """It begins with a source, whose samples stay as they are where the format can hold them."""
    is_as_generated: bool = False
    """Neither normalized, nor with another end, nor beyond full scale; no loop."""
    loop: FinishedLoop | None = None

    @property
    def channels(self) -> int:
        return self.audio.channels if isinstance(self.audio, AudioSpool) else self.audio.shape[0]

    @property
    def samples(self) -> int:
        """Per channel."""
        return self.audio.samples if isinstance(self.audio, AudioSpool) else self.audio.shape[1]

    def as_array(self) -> np.ndarray:
        return _as_array(self.audio)

    def in_memory(self) -> FinishedAudio:
        return replace(self, audio=self.as_array())


@dataclass(frozen=True)
class Replacement:
    """The part of a source that new music takes the place of, in seconds."""

    start: float
    end: float
    new_start: float
    """Where the new music begins: in whole frames of codes, at `start` or a little before."""
    new_end: float
    """Where it ends: at `end`, or a little after."""
    crossfades: bool = False
    """It overlaps with the source at both ends, and is cross-faded there."""


def finish_audio(
    audio: AudioSpool | np.ndarray,
    sample_rate: int,
    output: OutputOptions,
    source: SourceClip | None = None,
    replacement: Replacement | None = None,
    loop: Loop | None = None,
    shape: LoopShape | None = None,
) -> FinishedAudio:
    """The clip with the new music `audio`, float32 `[channels, samples]` at the model's `sample_rate`.

    It follows `source`, or is the `replacement` of a part of it. If a `loop` of a `shape` was made of it,
    that is the clip.

    It may be the part of a clip that was generated before it was cancelled.
    """
    rate, audio_format, before = sample_rate, output.file_format(source), 0
    if source is not None:
        rate = source.output_rate(audio_format, sample_rate)
        new = _as_array(audio)
        if replacement is None:
            before = round(source.audio.shape[1] * rate / source.rate)
            audio = append_continuation(
                source.audio, source.rate, new, sample_rate, rate, not source.follows_exactly
            )
        else:
            part = (source.audio, source.rate, replacement.start, replacement.end)
            given = (*part, new, sample_rate, replacement.new_start, rate)
            audio = crossfade_part(*given).audio if replacement.crossfades else replace_part(*given)
    finished_loop = None
    if loop is not None and shape is not None:
        audio, chunks = loop.audio, shape.chunks(loop, rate)
        finished_loop = FinishedLoop(loop.join, loop.is_filled, loop.stretch, loop.measure, chunks)
    if output.normalize != "none":
        lufs = DEFAULT_LUFS if output.lufs is None else output.lufs
        audio = normalize_audio(_as_array(audio), rate, output.normalize, lufs)
    if output.changes_end:
        audio = end_audio(_as_array(audio), rate, output.ending or "fade", output.fade_out, before)
    as_made = output.normalize == "none" and not output.changes_end and loop is None
    if as_made:
        peak = audio.peak if isinstance(audio, AudioSpool) else float(np.abs(audio).max(initial=0))
        as_made = peak <= 1
    keeps_level = source is not None and output.normalize == "none"
    return FinishedAudio(audio, rate, audio_format, keeps_level, as_made, finished_loop)


def separate_stems(
    clip: FinishedAudio, peak: float, separator: HTDemucs
) -> Iterator[tuple[str, FinishedAudio]]:
    """The name and the audio of each stem of `clip`, as loud as in its file: their sum is what that holds.

    `peak` is that of `clip`: if it is above 1, the file was scaled down.
    """
    import mlx.core as mx

    audio = clip.as_array() / max(1.0, peak)
    samples = audio.shape[1]
    # Its stems are loops, too.
    around = 0 if clip.loop is None else min(samples, round(_AROUND_SECONDS * clip.sample_rate))
    audio = np.pad(audio, ((0, 0), (around, around)), mode="wrap")
    mix = convert_audio(audio, clip.sample_rate, separator.sample_rate, separator.channels)
    stems = separator.separate(mx.array(mix[None]))[0]
    for name, stem in zip(separator.sources, stems, strict=True):
        part = convert_audio(np.asarray(stem), separator.sample_rate, clip.sample_rate, len(audio))
        yield name, replace(clip, audio=part[:, around : around + samples])


def _as_array(audio: np.ndarray | AudioSpool) -> np.ndarray:
    return audio.read() if isinstance(audio, AudioSpool) else audio
