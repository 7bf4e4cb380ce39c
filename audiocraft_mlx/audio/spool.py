"""Generated audio on disk until its file is written: its length costs no memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from audiocraft_mlx.files import write_error

# Samples per channel read back at a time.
_BLOCK = 1 << 18


class AudioSpool:
    """The audio of one clip so far.

    Attributes:
        channels: of the audio.
        samples: per channel.
        peak: the largest absolute sample; NaN if there is a NaN.
    """

    def __init__(self, channels: int, path: Path) -> None:
        """An empty spool for a clip that will be written to `path`.

        Its data is in an unnamed file in the same folder, which disappears with the process.

        Raises:
            OutputError: that file can't be made.
        """
        self.channels, self.samples, self.peak = channels, 0, 0.0
        self._path = path
        try:
            self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115, open as long as the spool
        except OSError as error:
            raise write_error(self._path, error) from error

    def append(self, chunk: np.ndarray) -> None:
        """Add float `[channels, n]`. Raises `OutputError` if the disk is full."""
        interleaved = np.ascontiguousarray(chunk.T, np.float32)
        try:
            # At an explicit position, so that the rest of an interrupted write is overwritten.
            self._file.seek(self._bytes(self.samples))
            self._file.write(interleaved.data)
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
        # Python's `max` would lose NaN.
        self.peak = float(np.maximum(self.peak, np.abs(interleaved).max(initial=0)))
        self.samples += len(interleaved)

    def blocks(self) -> Iterator[np.ndarray]:
        """The audio in blocks, float32 `[channels, n]`."""
        for start in range(0, self.samples, _BLOCK):
            self._file.seek(self._bytes(start))
            data = self._file.read(self._bytes(min(_BLOCK, self.samples - start)))
            yield np.frombuffer(data, np.float32).reshape(-1, self.channels).T

    def part(self, start: int, count: int) -> np.ndarray:
        """Up to `count` samples from `start` on, float32 `[channels, n]`; for any thread, while it grows."""
        size = self._bytes(max(0, min(count, self.samples - start)))
        data = os.pread(self._file.fileno(), size, self._bytes(start))
        return np.frombuffer(data, np.float32).reshape(-1, self.channels).T

    def read(self) -> np.ndarray:
        """The whole audio, float32 `[channels, samples]`."""
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *self.blocks()], axis=1)

    def close(self) -> None:
        with suppress(OSError):  # what is still to be written isn't needed
            self._file.close()

    def _bytes(self, samples: int) -> int:
        return samples * self.channels * np.dtype(np.float32).itemsize
