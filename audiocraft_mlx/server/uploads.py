"""Audio from clients: measured without being kept in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.audio.decoders import open_decoder
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error, write_file
from audiocraft_mlx.server.store import AudioShape

_MAX_CHANNELS = 64


def measure_audio(path: Path, most_seconds: float, name: str) -> AudioShape:
    """The size of the audio in a file; all of it is decoded once, block by block.

    Raises `UsageError`: it is no audio, damaged, empty or longer than `most_seconds`. The message calls it
    `name`.
    """
    try:
        with path.open("rb") as stream:
            decoder = open_decoder(path, stream)
            rate, channels = decoder.rate, decoder.channels
            if not 0 < channels <= _MAX_CHANNELS:
                raise UsageError(f"{path} has {channels} channels; mix it to mono or stereo")
            samples = 0
            # A header may say anything: what is decoded counts.
            for block in decoder.blocks():
                samples += len(block)
                if samples > most_seconds * rate:
                    raise UsageError(f"{path} is longer than {most_seconds:g} s; give a part of it")
    except OSError as error:
        raise _renamed(read_error(path, error), path, name) from error
    except UsageError as error:
        raise _renamed(error, path, name) from error
    if not samples:
        raise UsageError(f"{name} has no samples; give audio that isn't empty")
    return AudioShape(rate, channels, samples)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically. Raises `OutputError`."""

    def write(file: BinaryIO) -> None:
        with source.open("rb") as stream:
            shutil.copyfileobj(stream, file, 1 << 20)

    write_file(target, write)


def _renamed(error: UsageError, path: Path, name: str) -> UsageError:
    return UsageError(str(error).replace(str(path), name))
