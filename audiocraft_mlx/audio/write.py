"""Writes audio to WAV files: whole or not at all, and never clipped."""

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

from audiocraft_mlx.errors import OutputError, UsageError

_FULL_SCALE = 32767
# The RIFF header counts the bytes in 32 bits; the WAV header takes the first 44 of them.
_MOST_BYTES = 2**32 - 1 - 44


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


def check_wav_size(path: Path, channels: int, samples: int) -> None:
    """Make sure that so much audio fits into one 16-bit WAV file.

    Raises:
        OutputError: it is more than the 4 GiB that the format can hold.
    """
    if 2 * channels * samples > _MOST_BYTES:
        raise OutputError(
            f"{path}: so much audio doesn't fit into a WAV file (4 GiB); choose a shorter duration"
        )


def write_wav(path: Path, audio: np.ndarray, sample_rate: int) -> float:
    """Write `audio`, float32 [channels, samples] nominally in [-1, 1], as a 16-bit PCM WAV file.

    The file appears at once, replacing what had its name, or not at all. Audio that goes beyond full
    scale is scaled down as a whole.

    Returns:
        The peak of `audio`; above 1 the file is that much quieter.

    Raises:
        OutputError: the audio isn't finite or too long for the format, or the file can't be written.
        UsageError: `audio` has another shape or no samples.
    """
    if audio.ndim != 2 or audio.size == 0:
        raise UsageError(
            f"{path}: audio must be [channels, samples] and not empty, but is {list(audio.shape)}"
        )
    check_wav_size(path, *audio.shape)
    peak = float(np.abs(audio).max())
    if not np.isfinite(peak):
        raise OutputError(f"{path}: the audio has values that are no finite numbers; try another seed")

    # Encoded in memory: libsndfile doesn't say why writing to a disk failed.
    encoded = io.BytesIO()
    pcm = np.rint(audio / max(peak, 1.0) * _FULL_SCALE).astype(np.int16)
    soundfile.write(encoded, pcm.T, sample_rate, format="WAV", subtype="PCM_16")

    temporary = _temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(encoded.getbuffer())
        os.replace(temporary, path)
    except BaseException as error:  # an interruption leaves no half file either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise
    return peak


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
