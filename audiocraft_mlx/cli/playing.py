"""Plays audio while it is generated, from when there is enough buffered that it won't stop in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from audiocraft_mlx.cli.common import print_stderr
from audiocraft_mlx.clips.defaults import CHUNK_SECONDS
from audiocraft_mlx.errors import UsageError

# The speed may drop.
_MARGIN = 0.9


def require_sounddevice() -> None:
    """Raise `UsageError` if sounddevice is missing."""
    if find_spec("sounddevice") is None:
        raise UsageError("--play needs sounddevice; install it with: pip install 'musicgen-mlx[play]'")


def required_buffer(seconds_left: float, speed: float) -> float:
    """Seconds of audio to buffer before playing, so that the buffer is never empty.

    `seconds_left` are still to be generated, at `speed` seconds of audio per second, in chunks of at most
    `CHUNK_SECONDS`.
    """
    chunk, slowdown = min(CHUNK_SECONDS, seconds_left), 1 / (speed * _MARGIN)
    # Until the next chunk is there, and until the last one is.
    return max(chunk * slowdown, chunk + seconds_left * (slowdown - 1))


class Player:
    """Plays one clip on the default audio device; without one it prints a line and does nothing."""

    def __init__(
        self, seconds: float, sample_rate: int, channels: int, report: Callable[[str], None]
    ) -> None:
        """`seconds` will be written, without the prompt. `report` gets a line when playing starts."""
        self._seconds, self._rate, self._report = seconds, sample_rate, report
        self._generated = self._prompt = self._first = 0.0
        self._since: float | None = None
        self._thread: Thread | None = None
        self._queue: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self._stream: Any = None
        self._stopped = False
        try:
            # Imported here: importing it looks for devices.
            import sounddevice

            self._stream = sounddevice.OutputStream(
                samplerate=sample_rate, channels=channels, dtype="float32", latency="high"
            )
            self._error: type[Exception] = sounddevice.PortAudioError
        # PortAudio's own errors, and OSError where the library itself is missing.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            print_stderr(f"nothing is played: no audio device can be used ({reason})")

    def write_prompt(self, audio: np.ndarray) -> None:
        """Play the prompt first, float32 `[channels, n]`."""
        self._prompt += audio.shape[1] / self._rate
        self._queue.put(audio)

    def write(self, audio: np.ndarray) -> None:
        """Play float32 `[channels, n]` after all that was written before."""
        now = time.perf_counter()
        chunk = audio.shape[1] / self._rate
        self._queue.put(audio)
        self._generated += chunk
        if self._since is None:
            # The time before the first chunk isn't that of the next ones.
            self._since, self._first = now, self._generated
            return
        if self._thread is None and now > self._since:
            speed = (self._generated - self._first) / (now - self._since)
            ready = self._prompt + self._generated
            if ready >= required_buffer(self._seconds - self._generated, speed):
                self._start(f"playing, with {ready:.1f} s ahead: it is made at {speed:.2f}x real time")

    def finish(self) -> None:
        """Play the rest, and wait for its end."""
        if self._thread is None:
            self._start("playing")
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Stop at once."""
        self._stopped = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self, message: str) -> None:
        if self._stream is None:
            return
        self._report(message)
        self._thread = Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        try:
            self._stream.start()
            while not self._stopped and (audio := self._queue.get()) is not None:
                # A tenth of a second at a time, so that it can be stopped that soon.
                for start in range(0, audio.shape[1], self._rate // 10):
                    if self._stopped:
                        break
                    block = np.clip(audio[:, start : start + self._rate // 10], -1, 1)
                    self._stream.write(np.ascontiguousarray(block.T))
            if self._stopped:
                self._stream.abort()
            else:
                self._stream.stop()  # after all was played
            self._stream.close()
        except self._error as error:
            print_stderr(f"playing has ended: {' '.join(str(error).split())}")
