"""Writes audio files: atomically, and never clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from audiocraft_mlx.audio.checksum import audio_checksum
from audiocraft_mlx.audio.formats import WAV, AudioFormat
from audiocraft_mlx.audio.loop_chunks import LoopChunks
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.tags import AudioTags, add_tags, has_mutagen, libsndfile_comment
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import StrPath, write_file

T = TypeVar("T")

# libsndfile's names of the encodings.
_SUBTYPES: dict[tuple[str, int | None], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
    ("mp3", None): "MPEG_LAYER_III",
    ("ogg", None): "VORBIS",
}
# MP3 at its best (320 kbit/s from 32 kHz on), as audiocraft writes it; the others with libsndfile's defaults.
_QUALITY = {"mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.0}}
# The RIFF header counts bytes in 32 bits. 1 MiB is reserved for headers and tags.
_MAX_WAV_BYTES = 2**32 - 2**20
# libsndfile's Ogg encoder needs stack in proportion to a block, and crashes on blocks of minutes.
_BLOCK_SAMPLES = 2**16


def check_wav_size(path: Path, audio_format: AudioFormat, channels: int, samples: int) -> None:
    """Check that this much audio fits into one file of the format.

    Raises:
        OutputError: it is more than the 4 GiB that a WAV file can hold.
    """
    frame_bytes = (audio_format.bits or 0) // 8 * channels
    if audio_format.name == "wav" and frame_bytes * samples > _MAX_WAV_BYTES:
        raise OutputError(
            f"{path}: this much audio doesn't fit into a WAV file (4 GiB); choose a shorter duration or flac"
        )


def write_audio(
    path: StrPath,
    audio: np.ndarray | AudioSpool,
    sample_rate: int,
    audio_format: AudioFormat = WAV,
    tags: AudioTags | None = None,
    keep_level: bool = False,
    loop: LoopChunks | None = None,
) -> float:
    """Write `audio`, float32 `[channels, samples]` nominally in [-1, 1], with `tags`; atomically.

    Audio that exceeds full scale is scaled down as a whole, but in 32 bits not with `keep_level`. Full scale
    is 2**15 in 16 bits and 2**23 in 24, as when such files are read: samples read from one are written back
    unchanged. A WAV file gets the chunks of a `loop`.

    Returns:
        What the file was scaled down by if it is above 1: the peak of `audio`, or 1 if it kept its level.

    Raises:
        OutputError: the audio has NaN or infinite samples or doesn't fit the format, or the file can't be
            written.
        UsageError: `audio` has another shape or no samples.
    """
    path = Path(path)
    if isinstance(audio, AudioSpool):
        shape, peak = (audio.channels, audio.samples), audio.peak
    else:
        shape, peak = audio.shape, float(np.abs(audio).max(initial=0))
    if len(shape) != 2 or 0 in shape:
        raise UsageError(f"{path}: audio must be [channels, samples] and not empty, but is {list(shape)}")
    check_wav_size(path, audio_format, *shape)
    if not np.isfinite(peak):
        raise OutputError(f"{path}: the audio has NaN or infinite samples; try another seed")
    blocks = audio.blocks() if isinstance(audio, AudioSpool) else _blocks(audio)
    if keep_level and audio_format.bits == 32:
        peak = min(peak, 1.0)
    import soundfile

    with_mutagen = has_mutagen()
    comment = libsndfile_comment(tags, audio_format.name) if tags and not with_mutagen else None

    def write_fn(file: BinaryIO) -> None:
        scaled = (block / max(peak, 1.0) for block in blocks)
        try:
            _encode(file, scaled, shape[0], sample_rate, audio_format, comment)
        except soundfile.SoundFileError as error:
            raise OutputError(
                f"{path}: {audio_format.name} can't hold this audio ({error}); try wav"
            ) from error
        if loop is not None and audio_format.name == WAV.name:
            loop.append_to(file)
        if tags and with_mutagen:
            if tags.codes is not None:
                add_tags(file, replace(tags, codes=f"{audio_checksum(file)} {tags.codes}"))
            else:
                add_tags(file, tags)

    write_file(path, write_fn)
    return peak


def write_wav(path: StrPath, audio: np.ndarray, sample_rate: int) -> float:
    """`write_audio` into a 16-bit WAV file."""
    return write_audio(path, audio, sample_rate)


def to_pcm(audio: np.ndarray, bits: int) -> np.ndarray:
    """Samples, nominally in [-1, 1], as int32 with the range of `bits` bits; clipped to full scale."""
    full = 2 ** (bits - 1)
    return np.clip(np.rint(audio * float(full)), -full, full - 1).astype(np.int32)


class _ErrorCapturingFile:
    """A file for libsndfile to write to, which keeps the first exception, that libsndfile would lose.

    Seeking and asking for the position write, too: what is in the file's buffer.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        return self._unless_failed(lambda: self._file.write(data), len(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._unless_failed(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._unless_failed(self._file.tell, 0)

    def read(self, size: int = -1) -> bytes:
        return self._unless_failed(lambda: self._file.read(size), b"")

    def _unless_failed(self, call: Callable[[], T], otherwise: T) -> T:
        if self.error is None:
            try:
                return call()
            except BaseException as error:  # an interruption would be lost in C, too
                self.error = error
        return otherwise

    @contextmanager
    def raising_its_error(self) -> Iterator[None]:
        """Raise the exception at the end: it is the reason for what libsndfile raised, if it did."""
        try:
            yield
        finally:
            if self.error:
                raise self.error from None


def _encode(
    file: BinaryIO,
    blocks: Iterable[np.ndarray],
    channels: int,
    sample_rate: int,
    audio_format: AudioFormat,
    comment: str | None,
) -> None:
    """Write the whole file, with libsndfile's `comment`."""
    import soundfile

    sink = _ErrorCapturingFile(file)
    with (
        sink.raising_its_error(),
        soundfile.SoundFile(
            sink,
            "w",
            samplerate=sample_rate,
            channels=channels,
            format=audio_format.name.upper(),
            subtype=_SUBTYPES[audio_format.name, audio_format.bits],
            **_QUALITY.get(audio_format.name, {}),
        ) as encoder,
    ):
        # In WAV it follows the audio, which simple readers expect at a fixed offset; elsewhere it goes first.
        if comment and audio_format.name != "wav":
            encoder.comment = comment
        for block in blocks:
            if audio_format.bits in (16, 24):
                # libsndfile takes the upper bits.
                block = to_pcm(block, audio_format.bits) << 32 - audio_format.bits
            for start in range(0, block.shape[1], _BLOCK_SAMPLES):
                encoder.write(block[:, start : start + _BLOCK_SAMPLES].T)
            if sink.error:
                break
        if comment and audio_format.name == "wav":
            encoder.comment = comment


def _blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, audio.shape[1], _BLOCK_SAMPLES):
        yield audio[:, start : start + _BLOCK_SAMPLES]
