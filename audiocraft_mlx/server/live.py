"""The audio of clips, to be read while it is made and afterwards."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from audiocraft_mlx.audio.splice import broadcast_channels, smooth_joint
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.server.peaks import PeakMeter
from audiocraft_mlx.server.store import AudioShape
from audiocraft_mlx.server.wakeup import Wakeup

_log = logging.getLogger(__name__)
# Samples per channel of a block that is read.
_BLOCK = 1 << 15


class ClipAudio:
    """The audio of a clip that is made, or was.

    Attributes:
        sample_rate: samples per second.
        channels: 1 or 2.
        samples: per channel, that it has in the end.
        is_file: it is read from the clip's file, whose level may be another one than while it was made.
    """

    sample_rate: int
    channels: int
    samples: int
    is_file = False

    def blocks(self, start: int = 0) -> AsyncIterator[np.ndarray]:
        """float32 `[channels, n]` from sample `start` on, as they are made; ends early if its job does.

        Reads from disk: a slow reader holds nothing back and keeps nothing in memory.
        """
        raise NotImplementedError


class LiveClip:
    """The audio of a clip while it is made: its source if it continues one, then the model's.

    It is on disk in files without a name, which go when the last reader has gone.

    Attributes:
        shape: what it will have.
        ready: samples that can be read.
        ended: nothing more will come.
        peaks: so far.
        new: the model's audio alone.
        readers: how many read it while it is made.
    """

    def __init__(self, shape: AudioShape) -> None:
        self.shape = shape
        self.ready, self.ended, self.peaks = 0, False, b""
        self.readers = 0
        self.new: AudioSpool | None = None
        self._head: AudioSpool | None = None
        self._source: np.ndarray | None = None
        self._prefix = 0
        self._meter = PeakMeter(shape.sample_rate)
        self._changed = Wakeup()

    def begin(self, folder: Path, new: AudioShape, source: np.ndarray | None) -> None:
        """The model begins. Raises `OutputError`.

        Args:
            folder: of the files.
            new: what the model will make.
            source: what is continued, float32 `[C, T]` at the model's rate.
        """
        self.new = AudioSpool(new.channels, folder / "audio")
        weakref.finalize(self, self.new.close)
        if source is None:
            return
        self._head = AudioSpool(self.shape.channels, folder / "audio")
        weakref.finalize(self, self._head.close)
        self._source = broadcast_channels(source, self.shape.channels)
        self._prefix = self._source.shape[1]
        self.shape = replace(self.shape, samples=self._prefix + new.samples)
        self._head.append(self._source)
        self._add(self._source)

    def append(self, audio: np.ndarray) -> tuple[int, bytes]:
        """Add float32 `[channels, n]`; the new peaks, and how many there were. Raises `OutputError`."""
        assert self.new is not None
        before = len(self.peaks)
        self.new.append(audio)
        audio = broadcast_channels(audio, self.shape.channels)
        if self._source is not None and self._head is not None:
            # As in `ContinuationWavStream`: only the joint differs from the model's audio.
            audio = smooth_joint(self._source, audio, self.shape.sample_rate)
            self._head.append(audio)
            self._source = None
        self._add(audio)
        return before, self.peaks[before:]

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self._changed.notify()

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to `count` samples from `start` on, which are ready."""
        assert self.new is not None
        if self._head is not None and start < self._head.samples:
            return self._head.part(start, count)
        return broadcast_channels(self.new.part(start - self._prefix, count), self.shape.channels)

    async def wait_for(self, samples: int) -> None:
        """Return when more than `samples` are ready, or nothing more will come."""
        await self._changed.wait_until(lambda: self.ended or self.ready > samples)

    def _add(self, audio: np.ndarray) -> None:
        self.peaks += self._meter.add(audio)
        if self.ready + audio.shape[1] == self.shape.samples:
            self.peaks += self._meter.finish()
        self.ready += audio.shape[1]
        self._changed.notify()


class LiveAudio(ClipAudio):
    """A `LiveClip` to a reader."""

    def __init__(self, clip: LiveClip) -> None:
        self._clip = clip
        self.sample_rate, self.channels = clip.shape.sample_rate, clip.shape.channels
        self.samples = clip.shape.samples

    async def blocks(self, start: int = 0) -> AsyncIterator[np.ndarray]:
        position = max(0, start)
        self._clip.readers += 1
        try:
            while position < self.samples:
                await self._clip.wait_for(position)
                count = min(self._clip.ready, self.samples) - position
                if count <= 0:
                    return
                block = self._clip.read(position, min(count, _BLOCK))
                position += block.shape[1]
                yield block
        finally:
            self._clip.readers -= 1


class FileAudio(ClipAudio):
    """A clip's file."""

    is_file = True

    def __init__(self, path: Path, shape: AudioShape) -> None:
        self._path = path
        self.sample_rate, self.channels, self.samples = shape.sample_rate, shape.channels, shape.samples

    async def blocks(self, start: int = 0) -> AsyncIterator[np.ndarray]:
        import soundfile

        position = max(0, start)
        try:
            file = await asyncio.to_thread(soundfile.SoundFile, self._path)
        except soundfile.LibsndfileError as error:  # removed or damaged meanwhile: it ends early
            _log.warning("%s", error)
            return
        try:
            await asyncio.to_thread(file.seek, min(position, file.frames))
            while position < self.samples:
                count = min(_BLOCK, self.samples - position)
                read = await asyncio.to_thread(file.read, count, "float32", True)
                # A format may lose some samples at the end: readers were told how many there are.
                block = read.T if len(read) else np.zeros((self.channels, count), np.float32)
                position += block.shape[1]
                yield block
        finally:
            file.close()
