"""Audio and MIDI from clients: measured without being kept in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.audio.decoders import open_decoder
from audiocraft_mlx.conditioning.midi import is_midi, read_midi
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error, write_file
from audiocraft_mlx.server.store import AudioShape

_MAX_CHANNELS = 64
# Of the longest audio: samples of both channels in a second. More channels, or higher rates, make it shorter.
_MAX_SAMPLES_PER_SECOND = 2 * 48_000


def measure_audio(path: Path, most_seconds: float, name: str) -> AudioShape:
    """The size of the audio in a file; all of it is decoded once, block by block. Of MIDI see `AudioShape`.

    Raises `UsageError`: it is no audio, damaged, MIDI without notes, empty or longer than `most_seconds` of
    48 kHz in stereo would be. The message calls it `name`.
    """
    if is_midi(path):
        with _named(path, name):
            return AudioShape.of_notes(read_midi(path).duration)
    samples = 0
    with _named(path, name), path.open("rb") as stream:
        decoder = open_decoder(path, stream)
        rate, channels = decoder.rate, decoder.channels
        if not 0 < channels <= _MAX_CHANNELS:
            raise UsageError(f"{path} has {channels} channels; mix it to mono or stereo")
        # A header may say anything: what is decoded counts.
        for block in decoder.blocks():
            samples += len(block)
            if samples > most_seconds * rate:
                raise UsageError(f"{path} is longer than {most_seconds:g} s; give a part of it")
            if samples * channels > most_seconds * _MAX_SAMPLES_PER_SECOND:
                raise UsageError(
                    f"{path} is too long for {channels} channels at {rate} Hz; give a part of it, or mix it"
                    " to stereo at 48000 Hz"
                )
    if not samples:
        raise UsageError(f"{name} has no samples; give audio that isn't empty")
    return AudioShape(rate, channels, samples)


def require_audio(path: Path, name: str) -> None:
    """Raise `UsageError` if a file is no audio, as far as its beginning tells. The message has `name`."""
    with _named(path, name), path.open("rb") as stream:
        next(iter(open_decoder(path, stream).blocks()), None)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically. Raises `OutputError`."""

    def write(file: BinaryIO) -> None:
        with source.open("rb") as stream:
            shutil.copyfileobj(stream, file, 1 << 20)

    write_file(target, write)


@contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Errors about the file at `path` call it `name`: clients don't know where it is."""
    try:
        yield
    except (OSError, UsageError) as error:
        reason = read_error(path, error) if isinstance(error, OSError) else error
        raise UsageError(str(reason).replace(str(path), name)) from error
