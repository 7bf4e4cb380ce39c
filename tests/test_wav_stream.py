"""WAV written from start to end."""

from __future__ import annotations

import errno
import io

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.wav_stream import ContinuationWavStream, WavStream
from audiocraft_mlx.errors import OutputError

from .fake_model import raiser

NOISE = np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32)


def read(data: bytes) -> tuple[np.ndarray, int]:
    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return audio.T, rate


@pytest.mark.parametrize(("bits", "step"), [(16, 2**-16), (24, 2**-24), (32, 0)])
@pytest.mark.parametrize("channels", [1, 2])
def test_chunks_of_any_size_give_the_same_audio(bits: int, step: float, channels: int) -> None:
    file = io.BytesIO()
    stream = WavStream(file, channels, 16000, bits)
    for start in range(0, 3000, 700):
        stream.write(NOISE[:channels, start : start + 700])
    audio, rate = read(file.getvalue())
    assert rate == 16000
    np.testing.assert_allclose(audio, NOISE[:channels], atol=step)
    assert stream.peak == np.abs(NOISE[:channels]).max()


def test_the_header_has_the_usual_unknown_lengths() -> None:
    file = io.BytesIO()
    WavStream(file, 1, 32000, 16)
    header = file.getvalue()
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff" * 4
    assert (header[:4], header[8:16], header[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")


def test_the_file_is_valid_wherever_it_is_cut_off() -> None:
    file = io.BytesIO()
    WavStream(file, 2, 32000, 16).write(NOISE)
    for size in (48, 1001, 5000):
        audio, _ = read(file.getvalue()[:size])
        np.testing.assert_allclose(audio, NOISE[:, : (size - 44) // 4], atol=2**-15)


@pytest.mark.parametrize("bits", [16, 24])
def test_samples_beyond_full_scale_are_clipped(bits: int) -> None:
    file = io.BytesIO()
    WavStream(file, 1, 32000, bits).write(np.array([[1.5, -1.5, 1.0, -1.0]], np.float32))
    audio, _ = read(file.getvalue())
    np.testing.assert_allclose(audio[0], [1, -1, 1, -1], atol=2**-14)


def test_a_full_disk_is_reported_and_a_closed_pipe_is_passed_on() -> None:
    file = io.BytesIO()
    stream = WavStream(file, 1, 32000, 16)
    file.write = raiser(OSError(errno.ENOSPC, "No space left on device"))  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="standard output can't be written: No space left on device"):
        stream.write(NOISE[:1])
    file.write = raiser(BrokenPipeError())  # type: ignore[method-assign]
    with pytest.raises(BrokenPipeError):
        stream.write(NOISE[:1])


@pytest.mark.parametrize(("source_channels", "channels"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_continuation_follows_its_source(source_channels: int, channels: int) -> None:
    file, source, new = io.BytesIO(), NOISE[:source_channels, :1000], NOISE[:channels, 1000:]
    stream = ContinuationWavStream(file, channels, 16000, 32, source)
    stream.write(new[:, :1000])
    stream.write(new[:, 1000:])
    audio, _ = read(file.getvalue())
    assert audio.shape == (max(source_channels, channels), 3000)
    np.testing.assert_array_equal(audio[:, :1000], np.broadcast_to(source, (len(audio), 1000)))
    # The joint is smoothed over 10 ms.
    np.testing.assert_allclose(audio[:, 1000], audio[:, 999], atol=1e-6)
    np.testing.assert_array_equal(audio[:, 1160:], np.broadcast_to(new[:, 160:], (len(audio), 1840)))
