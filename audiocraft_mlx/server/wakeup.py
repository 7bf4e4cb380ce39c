"""Wakes coroutines, of any event loop, from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Lock


class Wakeup:
    """Coroutines that wait for a change. Who changes something pays no more than one call for each."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            with suppress(RuntimeError):  # its loop is closed
                future.get_loop().call_soon_threadsafe(_resolve, future)

    async def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Return when `is_true`, which is asked after each `notify`."""
        while True:
            future = asyncio.get_running_loop().create_future()
            # First registered, then asked: else a change in between would be missed.
            with self._lock:
                self._waiting.add(future)
            try:
                if is_true():
                    return
                await future
            finally:
                with self._lock:
                    self._waiting.discard(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
