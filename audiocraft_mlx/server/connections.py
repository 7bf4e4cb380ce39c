"""Limits that uvicorn has not: of connections, and of time for the headers of a request."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Closes a connection on which no request begins, or whose headers don't end.

    If there are too many it closes the oldest one without a request: without that a few clients that ask for
    nothing could take all files that the process may open, and no job could be made, nor anybody connect.

    uvicorn's `timeout_keep_alive` is for the time between two requests only; a body's time is in security.py.
    """

    header_seconds: ClassVar[float] = 30.0
    most: ClassVar[int] = 256
    """Connections at a time."""
    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._start()
        open_ones = [each for each in self.connections if isinstance(each, TimedProtocol)]
        if len(open_ones) > self.most:
            idle = [each for each in open_ones if each._is_idle and each is not self]
            min(idle, key=lambda each: each._since, default=self)._drop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # it has all headers
            self._cancel()
        elif self._timer is None and self.conn.trailing_data[0]:  # the beginning of another request
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _drop(self) -> None:
        self.connections.discard(self)  # it is closed a moment later
        self.transport.abort()

    def _start(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
