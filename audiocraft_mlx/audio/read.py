"""Reads audio files: any format of libsndfile, and only the part that is needed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiocraft_mlx.audio.resample import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_number

# Frames read at a time: a header may claim more than the file holds, or than fits into memory.
_BLOCK = 1 << 20
# Full scale is 1, and files with the values of 16-bit samples as floats exist. Anything louder isn't audio.
_MAX_SAMPLE = 1e6
# -90 dB: the noise that 16-bit files have in place of silence.
_SILENCE = 10 ** (-90 / 20)


def read_audio(path: str | Path, offset: float = 0.0, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Read the audio file at `path`.

    Args:
        offset: seconds after the start, or if negative before the end, where to begin; a file shorter than a
            negative offset is read from its start.
        seconds: read at most this long a part. Memory is needed for that part only.

    Returns:
        Audio float32 `[C, T]`, nominally in [-1, 1], and its sample rate in Hz.

    Raises:
        UsageError: there is no such file, it is empty, damaged or not audio, has NaN or infinite samples,
            or ends before `offset`.
    """
    validate_number("offset", offset, "a number of seconds", lambda _: True)
    if seconds is not None:
        validate_number("seconds", seconds, "None or more than 0", lambda length: length > 0)
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UsageError(f"{path} is {kind}; give the name of an audio file")
        # Opened here: libsndfile doesn't report why it can't open a file, and guesses formats from names.
        with path.open("rb") as stream:
            return _read(path, stream.fileno(), offset, seconds)
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {error.strerror or error}; give another audio file"
        ) from error


def require_non_silent(audio: np.ndarray, name: str) -> None:
    """Raise `UsageError` if `audio` is silent: silence has no melody and no style.

    `name` is what the message calls it: the file's name, or what the user knows it by.
    """
    if np.abs(audio).max(initial=0) < _SILENCE:
        raise UsageError(f"{name} is silent; give audio that isn't")


def _read(path: Path, descriptor: int, offset: float, seconds: float | None) -> tuple[np.ndarray, int]:
    try:
        file = soundfile.SoundFile(descriptor, closefd=False)
    except soundfile.LibsndfileError as error:
        raise UsageError(
            f"{path} is not audio that can be read (WAV, FLAC, Ogg, MP3, AIFF, …); convert it to WAV"
        ) from error
    with file:
        rate, frames = file.samplerate, file.frames
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise UsageError(
                f"{path} is at {rate} Hz; convert it to a sample rate from {MIN_SAMPLE_RATE}"
                f" to {MAX_SAMPLE_RATE} Hz"
            )
        if frames == 0:
            raise UsageError(f"{path} has no samples; give an audio file that isn't empty")
        start = int(offset * rate) if offset >= 0 else max(0, frames + int(offset * rate))
        if start >= frames:
            raise UsageError(
                f"{path} ends after {frames / rate:g} s; choose an offset before that, not {offset:g} s"
            )
        count = frames - start if seconds is None else min(frames - start, max(1, int(seconds * rate)))
        try:
            if start:
                file.seek(start)
            blocks = list(_blocks(file, count))
        except soundfile.LibsndfileError as error:
            raise UsageError(f"{path} is damaged, or its length is unknown; convert it to WAV") from error
    if not blocks:
        raise UsageError(f"{path} is damaged: it is shorter than its header says; convert it to WAV")
    audio = np.concatenate(blocks, axis=1)
    if not max(audio.max(), -audio.min()) <= _MAX_SAMPLE:  # also false for NaN
        raise UsageError(
            f"{path} has samples that are NaN, infinite or far beyond full scale; export it again"
        )
    return audio, rate


def _blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """Up to `frames` frames in blocks `[C, T]`; fewer where the file ends early."""
    while frames > 0:
        block = file.read(min(frames, _BLOCK), dtype="float32", always_2d=True)
        if not len(block):
            return
        yield np.ascontiguousarray(block.T)
        frames -= len(block)
