"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import pydantic_core

from audiocraft_mlx.server.schema import Event

KEEP_ALIVE_SECONDS = 15.0
"""Proxies close connections on which nothing comes, and only writing tells that a reader is gone."""
_RETRY = b"retry: 1000\n\n"
"""Milliseconds until a browser connects again."""
_MOST_BYTES = 1 << 16
"""Of events that are sent together."""


async def event_stream(
    events: AsyncIterator[Event], stopping: asyncio.Event, keep_alive: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[bytes, None]:
    """Events as text, and a comment where there is none for a while; ends when `stopping` is set."""
    stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
    coming: asyncio.Future[Any] | None = None
    ready = b""
    try:
        yield _RETRY
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
                await asyncio.sleep(0)  # it may be there already
            if ready and not (coming.done() and len(ready) < _MOST_BYTES):
                yield ready
                ready = b""
            if not coming.done():
                await asyncio.wait({coming, stop}, timeout=keep_alive, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return
            if not coming.done():
                yield b": keep-alive\n\n"
                continue
            try:
                event: Event = coming.result()
            except StopAsyncIteration:
                if ready:
                    yield ready
                return
            coming = None
            ready += encode_event(event)
    finally:
        stop.cancel()
        if coming is not None:
            coming.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await coming
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def encode_event(event: Event) -> bytes:
    # JSON has no line breaks outside of strings, where they are escaped.
    data = pydantic_core.to_json(event.data, by_alias=True)
    return f"id: {event.id}\nevent: {event.event}\ndata: ".encode() + data + b"\n\n"
