"""Plays audio while it is being made, once there is enough of it that the sound won't stop in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from audiocraft_mlx.cli.common import print_stderr
from audiocraft_mlx.errors import UsageError

# The speed so far is not a promise.
_MARGIN = 0.9


def require_sounddevice() -> None:
    """Raise `UsageError` if there is nothing to play with."""
    if find_spec("sounddevice") is None:
        raise UsageError("--play needs sounddevice; install it with: pip install 'musicgen-mlx[play]'")


def lead(seconds_to_make: float, speed: float, chunk: float) -> float:
    """Seconds of audio that must be there before it is played, so that it is never used up.

    `speed` is in seconds of audio per second; what isn't made yet comes in pieces of `chunk` seconds.
    """
    behind = seconds_to_make * (1 / (speed * _MARGIN) - 1)
    return chunk + max(0.0, behind)


class Player:
    """Plays one clip on the system's own output; without one it says so and does nothing."""

    def __init__(self, seconds: float, sample_rate: int, channels: int, tell: Callable[[str], None]) -> None:
        """`seconds` will be fed in all, but for what came before them. `tell` says when it begins."""
        self._seconds, self._rate, self._tell = seconds, sample_rate, tell
        self._made = self._before = self._first = 0.0
        self._since: float | None = None
        self._thread: Thread | None = None
        self._queue: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self._stream: Any = None
        self._stopped = False
        try:
            # Not before it is asked for: it looks for devices when it is imported.
            import sounddevice

            self._stream = sounddevice.OutputStream(
                samplerate=sample_rate, channels=channels, dtype="float32", latency="high"
            )
            self._error: type[Exception] = sounddevice.PortAudioError
        # PortAudio's own errors, and OSError where the library itself is missing.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            print_stderr(f"nothing is played: no audio device can be used ({reason})")

    def feed_before(self, audio: np.ndarray) -> None:
        """Play first what there was already, float32 `[channels, n]`."""
        self._before += audio.shape[1] / self._rate
        self._queue.put(audio)

    def feed(self, audio: np.ndarray) -> None:
        """Play float32 `[channels, n]` next, when all before it was played."""
        now = time.perf_counter()
        chunk = audio.shape[1] / self._rate
        self._queue.put(audio)
        self._made += chunk
        if self._since is None:
            # What came before the first piece isn't how fast the next ones come.
            self._since, self._first = now, self._made
            return
        if self._thread is None and now > self._since:
            speed = (self._made - self._first) / (now - self._since)
            ready = self._before + self._made
            if ready >= lead(self._seconds - self._made, speed, chunk):
                self._start(f"playing, with {ready:.1f} s ahead: it is made at {speed:.2f}x real time")

    def finish(self) -> None:
        """Play what is left, to its end."""
        if self._thread is None:
            self._start("playing")
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Be silent at once."""
        self._stopped = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self, said: str) -> None:
        if self._stream is None:
            return
        self._tell(said)
        self._thread = Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        try:
            self._stream.start()
            while not self._stopped and (audio := self._queue.get()) is not None:
                # A tenth of a second at a time: so soon it can be stopped.
                for start in range(0, audio.shape[1], self._rate // 10):
                    if self._stopped:
                        break
                    piece = np.clip(audio[:, start : start + self._rate // 10], -1, 1)
                    self._stream.write(np.ascontiguousarray(piece.T))
            if self._stopped:
                self._stream.abort()
            else:
                self._stream.stop()  # when all was heard
            self._stream.close()
        except self._error as error:
            print_stderr(f"playing has ended: {' '.join(str(error).split())}")
