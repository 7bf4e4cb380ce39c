"""Writes audio to files: whole or not at all, and never clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from audiocraft_mlx.audio.formats import WAV, AudioFormat
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.tags import add_tags
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import write_file

# How libsndfile calls the encodings.
_SUBTYPES: dict[tuple[str, int | None], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
    ("mp3", None): "MPEG_LAYER_III",
    ("ogg", None): "VORBIS",
}
# MP3 at its best (320 kbit/s from 32 kHz on), as audiocraft writes it; the others at libsndfile's defaults.
_QUALITY = {"mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.0}}
# The RIFF header counts the bytes in 32 bits. A mebibyte of them is left to headers and tags.
_MOST_WAV_BYTES = 2**32 - 2**20
# libsndfile's Ogg encoder takes as much stack as it is given audio at once, and crashes on minutes of it.
_SAMPLES_AT_ONCE = 2**16


def check_wav_size(path: Path, format: AudioFormat, channels: int, samples: int) -> None:
    """Make sure that so much audio fits into one file of the format.

    Raises:
        OutputError: it is more than the 4 GiB that a WAV file can hold.
    """
    if format.name == "wav" and (format.bits or 0) // 8 * channels * samples > _MOST_WAV_BYTES:
        raise OutputError(
            f"{path}: so much audio doesn't fit into a WAV file (4 GiB); choose a shorter duration or flac"
        )


def write_audio(
    path: Path,
    audio: np.ndarray | AudioSpool,
    sample_rate: int,
    format: AudioFormat = WAV,
    metadata: GenerationMetadata | None = None,
) -> float:
    """Write `audio`, float32 [channels, samples] nominally in [-1, 1], with `metadata` in the file's tags.

    The file appears at once, replacing what had its name, or not at all. Audio that goes beyond full
    scale is scaled down as a whole. In 16 and 24 bits a sample counts 2**15 and 2**23 to full scale, as in
    what reads such files: samples that came from one go into one unchanged.

    Returns:
        The peak of `audio`; above 1 the file is that much quieter.

    Raises:
        OutputError: the audio isn't finite or doesn't suit the format, or the file can't be written.
        UsageError: `audio` has another shape or no samples.
    """
    if isinstance(audio, AudioSpool):
        shape, peak = (audio.channels, audio.samples), audio.peak
    else:
        shape, peak = audio.shape, float(np.abs(audio).max(initial=0))
    if len(shape) != 2 or 0 in shape:
        raise UsageError(f"{path}: audio must be [channels, samples] and not empty, but is {list(shape)}")
    check_wav_size(path, format, *shape)
    if not np.isfinite(peak):
        raise OutputError(f"{path}: the audio has values that are no finite numbers; try another seed")
    blocks = audio.blocks() if isinstance(audio, AudioSpool) else _blocks(audio)

    def fill(file: BinaryIO) -> None:
        try:
            _encode(file, (block / max(peak, 1.0) for block in blocks), shape[0], sample_rate, format)
        except soundfile.SoundFileError as error:
            raise OutputError(f"{path}: {format.name} can't hold this audio ({error}); try wav") from error
        if metadata:
            add_tags(file, metadata)

    write_file(path, fill)
    return peak


def write_wav(path: Path, audio: np.ndarray, sample_rate: int) -> float:
    """`write_audio` into a 16-bit WAV file."""
    return write_audio(path, audio, sample_rate)


def to_pcm(audio: np.ndarray, bits: int) -> np.ndarray:
    """Samples, nominally in [-1, 1], as int32 of so many bits; what goes beyond full scale is cut off."""
    full = 2 ** (bits - 1)
    return np.clip(np.rint(audio * float(full)), -full, full - 1).astype(np.int32)


class _ErrorCapturingFile:
    """A file that libsndfile writes into, which knows that writing may fail, but not how to say why."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.read = file.seek, file.tell, file.read
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                return self._file.write(data)
            except BaseException as error:  # an interruption, too, would get lost on its way through C
                self.error = error
        return len(data)


def _encode(
    file: BinaryIO, blocks: Iterable[np.ndarray], channels: int, sample_rate: int, format: AudioFormat
) -> None:
    """Write the whole file, without tags."""
    sink = _ErrorCapturingFile(file)
    with soundfile.SoundFile(
        sink,
        "w",
        samplerate=sample_rate,
        channels=channels,
        format=format.name.upper(),
        subtype=_SUBTYPES[format.name, format.bits],
        **_QUALITY.get(format.name, {}),
    ) as encoder:
        for block in blocks:
            if format.bits in (16, 24):
                block = to_pcm(block, format.bits) << 32 - format.bits  # libsndfile takes the upper bits
            for start in range(0, block.shape[1], _SAMPLES_AT_ONCE):
                encoder.write(block[:, start : start + _SAMPLES_AT_ONCE].T)
            if sink.error:
                break
    if sink.error:
        raise sink.error


def _blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, audio.shape[1], _SAMPLES_AT_ONCE):
        yield audio[:, start : start + _SAMPLES_AT_ONCE]
