"""WAV on standard output while it is being made."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from audiocraft_mlx.audio.write import to_pcm
from audiocraft_mlx.clips.source import SourceClip, broadcast_channels, smooth_joint
from audiocraft_mlx.errors import OutputError

# The usual way to say that a length isn't known yet: readers go on to the end.
_UNKNOWN = 0xFFFFFFFF
_PCM, _FLOAT = 1, 3


class WavStream:
    """A WAV file that is written from its beginning to its end, and is valid wherever it breaks off.

    Attributes:
        peak: the largest absolute sample so far; what is beyond 1 was cut off, in 16 and 24 bits.
    """

    def __init__(self, file: BinaryIO, channels: int, sample_rate: int, bits: int) -> None:
        """Write the header. Raises `OutputError` or, if the reader has gone, `BrokenPipeError`."""
        self._file, self._bits = file, bits
        self.peak = 0.0
        frame = channels * bits // 8
        kind = _FLOAT if bits == 32 else _PCM
        layout = struct.pack("<HHIIHH", kind, channels, sample_rate, sample_rate * frame, frame, bits)
        self._put(
            b"RIFF" + struct.pack("<I", _UNKNOWN) + b"WAVE"
            b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", _UNKNOWN)
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


class ClipStream(WavStream):
    """A clip in such a file, behind what it goes on from if there is such: at the model's rate."""

    def __init__(
        self, file: BinaryIO, channels: int, sample_rate: int, bits: int, original: SourceClip | None
    ) -> None:
        self._channels = channels if original is None else max(channels, len(original.audio))
        self._rate = sample_rate
        self._before: np.ndarray | None = None
        super().__init__(file, self._channels, sample_rate, bits)
        if original is not None:
            self._before = original.at(sample_rate, self._channels)
            super().write(self._before)

    def write(self, audio: np.ndarray) -> None:
        audio = broadcast_channels(audio, self._channels)
        if self._before is not None:
            audio = smooth_joint(self._before, audio, self._rate)
            self._before = None
        super().write(audio)
