"""Writes audio to files: whole or not at all, and never clipped."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from audiocraft_mlx.audio.formats import WAV, Format
from audiocraft_mlx.audio.recipe import Recipe
from audiocraft_mlx.audio.tags import add_tags
from audiocraft_mlx.errors import OutputError, UsageError

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


def unused_path(path: Path) -> Path:
    """`path`, or if that exists the first free one of `name-2.wav`, `name-3.wav`, … beside it."""
    free, number = path, 2
    while os.path.lexists(free):
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def check_writable(path: Path) -> None:
    """Make sure that a file can be written at `path`, before the minutes that it takes to fill it.

    Raises:
        OutputError: the folder doesn't exist or can't be written, or `path` is no regular file.
    """
    try:
        folder = _mode(path.parent)
        if not stat.S_ISDIR(folder):
            what = "is not a folder" if folder else "does not exist"
            raise OutputError(
                f"{path} can't be written: {path.parent} {what}; choose another folder or create it"
            )
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            raise OutputError(f"{path} is a folder; give the name of a file in it")
        if mode and not stat.S_ISREG(mode):
            raise OutputError(f"{path} is not a regular file; choose another name")
        probe = _temporary_beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _not_written(path, error) from error


def check_size(path: Path, format: Format, channels: int, samples: int) -> None:
    """Make sure that so much audio fits into one file of the format.

    Raises:
        OutputError: it is more than the 4 GiB that a WAV file can hold.
    """
    if format.name == "wav" and (format.bits or 0) // 8 * channels * samples > _MOST_WAV_BYTES:
        raise OutputError(
            f"{path}: so much audio doesn't fit into a WAV file (4 GiB); choose a shorter duration or flac"
        )


def write_audio(
    path: Path, audio: np.ndarray, sample_rate: int, format: Format = WAV, recipe: Recipe | None = None
) -> float:
    """Write `audio`, float32 [channels, samples] nominally in [-1, 1], with `recipe` in the file's tags.

    The file appears at once, replacing what had its name, or not at all. Audio that goes beyond full
    scale is scaled down as a whole.

    Returns:
        The peak of `audio`; above 1 the file is that much quieter.

    Raises:
        OutputError: the audio isn't finite or doesn't suit the format, or the file can't be written.
        UsageError: `audio` has another shape or no samples.
    """
    if audio.ndim != 2 or audio.size == 0:
        raise UsageError(
            f"{path}: audio must be [channels, samples] and not empty, but is {list(audio.shape)}"
        )
    check_size(path, format, *audio.shape)
    peak = float(np.abs(audio).max())
    if not np.isfinite(peak):
        raise OutputError(f"{path}: the audio has values that are no finite numbers; try another seed")

    # Encoded in memory: libsndfile doesn't say why writing to a disk failed.
    try:
        encoded = _encoded(audio / max(peak, 1.0), sample_rate, format)
    except soundfile.SoundFileError as error:
        raise OutputError(f"{path}: {format.name} can't hold this audio ({error}); try wav") from error
    if recipe:
        add_tags(encoded, recipe)
    _replace(path, encoded.getbuffer())
    return peak


def check_wav_size(path: Path, channels: int, samples: int) -> None:
    """`check_size` of a 16-bit WAV file."""
    check_size(path, WAV, channels, samples)


def write_wav(path: Path, audio: np.ndarray, sample_rate: int) -> float:
    """`write_audio` into a 16-bit WAV file."""
    return write_audio(path, audio, sample_rate)


def _encoded(audio: np.ndarray, sample_rate: int, format: Format) -> io.BytesIO:
    """The whole file, without tags."""
    if format.bits == 16:
        audio = np.rint(audio * 32767).astype(np.int16)
    elif format.bits == 24:
        audio = np.rint(audio * 8388607).astype(np.int32) << 8  # libsndfile takes the upper 24 bits
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded,
        "w",
        samplerate=sample_rate,
        channels=len(audio),
        format=format.name.upper(),
        subtype=_SUBTYPES[format.name, format.bits],
        **_QUALITY.get(format.name, {}),
    ) as file:
        for start in range(0, audio.shape[1], _SAMPLES_AT_ONCE):
            file.write(audio[:, start : start + _SAMPLES_AT_ONCE].T)
    return encoded


def _replace(path: Path, content: memoryview) -> None:
    """Put a file with `content` at `path`, at once or not at all."""
    temporary = _temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            # Some file systems find out only now that they are full; and after a power failure the name must
            # not lead to what was never written.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interruption leaves no half file either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise


def _temporary_beside(path: Path) -> Path:
    # Not made from the file's own name, which may already be as long as the file system allows.
    return path.with_name(f".musicgen-{secrets.token_hex(8)}.part")


def _mode(path: Path) -> int:
    """The kind and permissions of what is at `path`, 0 for nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0


def _not_written(path: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space" if full else "choose another name or folder"
    return OutputError(f"{path} can't be written: {error.strerror or error}; {hint}")
