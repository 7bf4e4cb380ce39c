"""What happens, for everybody who wants to know."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Lock
from typing import Any, Literal

from audiocraft_mlx.server.schema import Event
from audiocraft_mlx.server.wakeup import Wakeup

KEPT = 128
"""Events that a client may miss while it connects again."""
Kind = Literal["job", "removed", "progress", "peaks", "models", "reset"]
_FREQUENT = ("progress", "peaks")
_PAUSE = 0.1
"""Seconds that a reader waits for more after a frequent event: waking it takes time from the generation."""


class Broadcaster:
    """The last events. A reader has a place among them, and no queue: a slow one takes no memory."""

    def __init__(self, kept: int = KEPT) -> None:
        # Numbers begin again with each process.
        self._prefix = secrets.token_hex(4)
        self._lock = Lock()
        self._events: deque[Event] = deque(maxlen=kept)
        self._count = self._last_rare = 0
        self._changed, self._rare = Wakeup(), Wakeup()
        self._closed = False

    def publish(self, kind: Kind, data: Any) -> None:
        """`data` as JSON has it."""
        with self._lock:
            self._count += 1
            self._events.append(Event(id=self._id(self._count), event=kind, data=data))
            if kind not in _FREQUENT:
                self._last_rare = self._count
        self._changed.notify()
        if kind not in _FREQUENT:
            self._rare.notify()

    def subscribe(self, last_id: str | None = None) -> AsyncIterator[Event]:
        """The events after that with `last_id`, or from now on; after `reset` those from then on."""
        with self._lock:
            place = self._count if last_id is None else self._place_of(last_id)
        return self._events_from(place)

    def close(self) -> None:
        """End all iterators."""
        self._closed = True
        self._changed.notify()
        self._rare.notify()

    async def _events_from(self, place: int | None) -> AsyncIterator[Event]:
        pausing = False
        while not self._closed:
            event = None
            with self._lock:
                now = self._count
                # One at a time: who is slow may lose the next ones meanwhile.
                if place is None or now - place > len(self._events):
                    event, place = Event(id=self._id(now), event="reset", data=None), now
                elif place < now:
                    event, place = self._events[place - now], place + 1
            if event is not None:
                yield event
                pausing = pausing or event.event in _FREQUENT
                continue
            if pausing:
                pausing = False
                rare = self._rare.wait_until(lambda seen=now: self._closed or self._last_rare > seen)  # type: ignore[misc]
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(rare, _PAUSE)
                continue
            await self._changed.wait_until(lambda seen=now: self._closed or self._count > seen)  # type: ignore[misc]

    def _id(self, number: int) -> str:
        return f"{self._prefix}-{number}"

    def _place_of(self, id: str) -> int | None:
        prefix, _, number = id.partition("-")
        if prefix != self._prefix or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        return int(number) if int(number) <= self._count else None
