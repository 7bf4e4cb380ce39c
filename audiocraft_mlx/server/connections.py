"""A limit of time for the headers of a request, which uvicorn has not."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Closes a connection on which no request begins, or whose headers don't end.

    uvicorn's `timeout_keep_alive` is for the time between two requests only; a body's time is in security.py.
    """

    header_seconds: ClassVar[float] = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # it has all headers
            self._cancel()
        elif self._timer is None and self.conn.trailing_data[0]:  # the beginning of another request
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
