"""WAV that is written from its beginning to its end."""

from __future__ import annotations

import errno
import io

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.wav_stream import WavStream
from audiocraft_mlx.errors import OutputError

from .fake_model import raiser

NOISE = np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32)


def read(data: bytes) -> tuple[np.ndarray, int]:
    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return audio.T, rate


@pytest.mark.parametrize(("bits", "step"), [(16, 2**-16), (24, 2**-24), (32, 0)])
@pytest.mark.parametrize("channels", [1, 2])
def test_it_holds_the_audio_however_it_comes(bits: int, step: float, channels: int) -> None:
    file = io.BytesIO()
    stream = WavStream(file, channels, 16000, bits)
    for start in range(0, 3000, 700):
        stream.write(NOISE[:channels, start : start + 700])
    audio, rate = read(file.getvalue())
    assert rate == 16000
    np.testing.assert_allclose(audio, NOISE[:channels], atol=step)
    assert stream.peak == np.abs(NOISE[:channels]).max()


def test_the_lengths_are_unknown_in_the_way_that_readers_know() -> None:
    file = io.BytesIO()
    WavStream(file, 1, 32000, 16)
    header = file.getvalue()
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff" * 4
    assert (header[:4], header[8:16], header[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")


def test_it_is_valid_wherever_it_breaks_off() -> None:
    file = io.BytesIO()
    WavStream(file, 2, 32000, 16).write(NOISE)
    for size in (48, 1001, 5000):
        audio, _ = read(file.getvalue()[:size])
        np.testing.assert_allclose(audio, NOISE[:, : (size - 44) // 4], atol=2**-15)


@pytest.mark.parametrize("bits", [16, 24])
def test_what_is_beyond_full_scale_is_cut_off_and_not_wrapped_around(bits: int) -> None:
    file = io.BytesIO()
    WavStream(file, 1, 32000, bits).write(np.array([[1.5, -1.5, 1.0, -1.0]], np.float32))
    audio, _ = read(file.getvalue())
    np.testing.assert_allclose(audio[0], [1, -1, 1, -1], atol=2**-14)


def test_a_full_disk_is_one_line_and_a_closed_pipe_is_passed_on() -> None:
    file = io.BytesIO()
    stream = WavStream(file, 1, 32000, 16)
    file.write = raiser(OSError(errno.ENOSPC, "No space left on device"))  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="standard output can't be written: No space left on device"):
        stream.write(NOISE[:1])
    file.write = raiser(BrokenPipeError())  # type: ignore[method-assign]
    with pytest.raises(BrokenPipeError):
        stream.write(NOISE[:1])
