"""WAV on standard output while it is generated."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from audiocraft_mlx.audio.splice import broadcast_channels, smooth_joint
from audiocraft_mlx.audio.write import to_pcm
from audiocraft_mlx.errors import OutputError

# The usual length of a WAV file whose length isn't known yet: readers read to its end.
_UNKNOWN_SIZE = 0xFFFFFFFF
# Format tags of the WAV header.
_PCM, _FLOAT = 1, 3


class WavStream:
    """A WAV file written from start to end, and valid wherever it is cut off.

    Attributes:
        peak: the largest absolute sample so far; in 16 and 24 bits, samples beyond 1 were clipped.
    """

    def __init__(self, file: BinaryIO, channels: int, sample_rate: int, bits: int) -> None:
        """Write the header. Raises `OutputError` or, if the reader has gone, `BrokenPipeError`."""
        self._file, self._bits = file, bits
        self.peak = 0.0
        frame_bytes = channels * bits // 8
        tag = _FLOAT if bits == 32 else _PCM
        header = struct.pack(
            "<HHIIHH", tag, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, bits
        )
        self._put(
            b"RIFF" + struct.pack("<I", _UNKNOWN_SIZE) + b"WAVE"
            b"fmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", _UNKNOWN_SIZE)
        )

    def write(self, audio: np.ndarray) -> None:
        """Add float `[channels, n]`. Raises as the constructor."""
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0)))
        if self._bits == 32:
            self._put(audio.T.astype("<f4").tobytes())
            return
        samples = to_pcm(audio, self._bits).T.astype("<i4", order="C")
        self._put(samples.view(np.uint8).reshape(-1, 4)[:, : self._bits // 8].tobytes())

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"standard output can't be written: {error.strerror}; free some space"
            ) from error


class ContinuationWavStream(WavStream):
    """A source clip, then the music that continues it, written to it as it is generated."""

    def __init__(
        self, file: BinaryIO, channels: int, sample_rate: int, bits: int, source: np.ndarray
    ) -> None:
        """Write the header and `source`, float32 `[C, T]` at `sample_rate`, with at least `channels`."""
        self._channels, self._rate = max(channels, len(source)), sample_rate
        super().__init__(file, self._channels, sample_rate, bits)
        self._source: np.ndarray | None = broadcast_channels(source, self._channels)
        super().write(self._source)

    def write(self, audio: np.ndarray) -> None:
        audio = broadcast_channels(audio, self._channels)
        if self._source is not None:
            audio = smooth_joint(self._source, audio, self._rate)
            self._source = None
        super().write(audio)
