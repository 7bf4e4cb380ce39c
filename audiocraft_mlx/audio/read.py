"""Reads audio files, and only the part that is needed."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from audiocraft_mlx.audio.decoders import Decoder, open_decoder, read_header_seconds
from audiocraft_mlx.audio.level import require_float_scale
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath, read_error
from audiocraft_mlx.validation import validate_number


@dataclass(frozen=True)
class DecodedAudio:
    """Audio float32 `[C, T]`, nominally in [-1, 1], and its sample rate in Hz."""

    audio: np.ndarray
    rate: int
    bits: int
    """Per sample, that a file needs to keep the samples unchanged."""


@dataclass(frozen=True)
class AudioInfo:
    """What is in an audio file."""

    description: str
    """Its format, for people."""
    rate: int
    channels: int
    frames: int
    """Samples per channel."""


def read_audio(path: StrPath, offset: float = 0.0, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """`decode_audio`, but only the audio float32 `[C, T]` and its sample rate."""
    decoded = decode_audio(path, offset, seconds)
    return decoded.audio, decoded.rate


def decode_audio(path: StrPath, offset: float = 0.0, seconds: float | None = None) -> DecodedAudio:
    """Read the audio file at `path`.

    Args:
        offset: seconds after the start, or if negative before the end, where to begin; a file shorter than a
            negative offset is read from its start.
        seconds: read at most this long a part. Memory is needed for that part only.

    Raises:
        UsageError: there is no such file, it is empty, damaged or not audio, has NaN or infinite samples
            or another full scale than 1, or ends before `offset`.
    """
    validate_number("offset", offset, "a number of seconds", lambda _: True)
    if seconds is not None:
        validate_number("seconds", seconds, "None or more than 0", lambda length: length > 0)
    path = Path(path)
    with _opened(path) as decoder:
        return _decode(path, decoder, offset, seconds)


def read_info(path: StrPath) -> AudioInfo:
    """What is in the audio file at `path`. Raises `UsageError` if it can't be read."""
    with _opened(Path(path)) as decoder:
        return AudioInfo(decoder.description, decoder.rate, decoder.channels, _length(decoder))


def read_duration(path: StrPath) -> float:
    """Seconds of audio in the file at `path`, as its header states them: right for files that are whole.

    Only a file whose header doesn't state it is decoded. Raises `UsageError` if it can't be read.
    """
    path = Path(path)
    with _opened_file(path) as stream:
        seconds = read_header_seconds(path, stream)
    if seconds is not None:
        return seconds
    info = read_info(path)
    return info.frames / info.rate


def read_pieces(path: StrPath, seconds: float) -> Iterator[DecodedAudio]:
    """All of the audio file at `path`, in pieces of `seconds`; memory is needed for one of them.

    Each has `seconds * rate` samples per channel, rounded up, and the last one those that are left.

    Raises `UsageError` as `decode_audio`, in the midst of a damaged file.
    """
    validate_number("seconds", seconds, "more than 0", lambda length: length > 0)
    path = Path(path)
    with _opened(path) as decoder:
        size = math.ceil(seconds * decoder.rate)
        blocks: list[np.ndarray] = []
        missing = size
        for block in decoder.blocks():
            while len(block):
                blocks.append(block[:missing])
                block = block[missing:]
                missing -= len(blocks[-1])
                if not missing:
                    yield _joined(path, decoder, blocks)
                    blocks, missing = [], size
        if blocks:
            yield _joined(path, decoder, blocks)


@contextmanager
def _opened(path: Path) -> Iterator[Decoder]:
    with _opened_file(path) as stream:
        yield open_decoder(path, stream)


@contextmanager
def _opened_file(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UsageError(f"{path} is {kind}; give the name of an audio file")
        # Opened here: libsndfile doesn't report why it can't open a file.
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise read_error(path, error) from error


def _decode(path: Path, decoder: Decoder, offset: float, seconds: float | None) -> DecodedAudio:
    rate = decoder.rate
    frames = decoder.frames
    if offset < 0 and frames is None:
        frames = _length(decoder)
    if frames == 0:
        raise UsageError(f"{path} has no samples; give an audio file that isn't empty")
    start = int(offset * rate) if offset >= 0 else max(0, (frames or 0) + int(offset * rate))
    count = None if seconds is None else max(1, int(seconds * rate))
    blocks = [] if frames is not None and start >= frames else [*decoder.blocks(start, count)]
    if not blocks and start:
        length = _length(decoder)
        if start >= length:
            raise UsageError(
                f"{path} ends after {length / rate:g} s; choose an offset before that, not {offset:g} s"
            )
    if not blocks:
        raise UsageError(f"{path} is damaged: it is shorter than its header says; convert it to WAV")
    return _joined(path, decoder, blocks)


def _joined(path: Path, decoder: Decoder, blocks: list[np.ndarray]) -> DecodedAudio:
    audio = np.concatenate([np.ascontiguousarray(block.T) for block in blocks], axis=1)
    require_float_scale(audio, str(path))
    return DecodedAudio(audio, decoder.rate, decoder.bits)


def _length(decoder: Decoder) -> int:
    """Samples per channel, by decoding all of them if it must be."""
    return sum(map(len, decoder.blocks())) if decoder.frames is None else decoder.frames
