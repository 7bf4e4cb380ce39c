"""A clip's file in another format."""

from __future__ import annotations

from pathlib import Path

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.read import decode_audio
from audiocraft_mlx.audio.resample import resample
from audiocraft_mlx.audio.tags import read_tags
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.clips.source import SourceClip

# Of an MP3 where the clip's own isn't possible.
_MP3_RATE = 48_000


def convert_file(path: Path, target: Path, audio_format: str) -> Path:
    """The clip at `path`, with its tags, as `target`, if that isn't there yet. Raises `OutputError`."""
    if target.is_file():
        return target
    decoded = decode_audio(path)
    source = SourceClip(decoded.audio, decoded.rate, decoded.bits)
    chosen = source.lossless_format(AudioFormat(audio_format, None))
    rate = source.output_rate(chosen, _MP3_RATE)
    write_audio(target, resample(decoded.audio, decoded.rate, rate), rate, chosen, read_tags(path), True)
    return target
