"""Audio as answers: files, and clips that are still being generated."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from audiocraft_mlx.server.answers import error_answer
from audiocraft_mlx.server.streaming import ClipEndedEarly, ClipStream

MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


class RangedFile(FileResponse):
    """A file, also in ranges: those of `_byte_range`, with errors of our shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_headers = Headers(scope=scope)
        wanted = request_headers.get("range")
        if wanted is not None:
            if self.stat_result is None:
                self.stat_result = await asyncio.to_thread(os.stat, self.path)
                self.set_stat_headers(self.stat_result)
            size = self.stat_result.st_size
            part = None
            if request_headers.get("if-range") in (None, self.headers["etag"], self.headers["last-modified"]):
                part = _byte_range(wanted, size)
            if part is not None and not part:
                return await _behind_the_end(size)(scope, receive, send)
            headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
            if part is not None:
                headers.append((b"range", f"bytes={part.start}-{part.stop - 1}".encode()))
            scope = {**scope, "headers": headers}
        await super().__call__(scope, receive, send)


def audio_file(path: Path, name: str | None = None) -> RangedFile:
    """A finished file, also in ranges. With `name` it is to be saved, not played."""
    return RangedFile(
        path,
        media_type=MEDIA_TYPES.get(path.suffix[1:], "application/octet-stream"),
        filename=name,
        # What an id stands for never changes.
        headers={"Cache-Control": "private, max-age=31536000, immutable"},
    )


class AudioStream(Response):
    """Sends chunks as they come; the connection is closed without an end if the clip has none.

    `if_cut_off` is called if the client goes away before all was sent, or the clip has no end.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        if_cut_off: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._chunks, self._if_cut_off = chunks, if_cut_off
        self._all_sent = False
        self.status_code, self.media_type, self.background = status, media_type, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            if self._if_cut_off is not None and not self._all_sent:
                await asyncio.shield(self._if_cut_off())

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        length, sent = self.headers.get("content-length"), 0
        async with aclosing(self._chunks) as chunks:
            try:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    sent += len(chunk)
                    # Who has the whole length may go at once.
                    self._all_sent = length is not None and sent >= int(length)
                    # If the connection takes all, or is gone, `send` doesn't wait: others have their turn.
                    await asyncio.sleep(0)
            except ClipEndedEarly:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._all_sent = True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def stream_clip(request: Request, stream: ClipStream, etag: str) -> Response:
    """A clip that is being generated or was; with its length and in ranges, if they are known beforehand.

    `etag` tells versions of it apart, whose ranges don't belong together.
    """
    headers = {"Accept-Ranges": "none"}
    status, first, count = 200, 0, stream.length
    if stream.length is not None:
        headers["Content-Length"] = str(stream.length)
    if stream.length is not None and stream.seekable:
        headers |= {"Accept-Ranges": "bytes", "ETag": etag}
        wanted = None
        if request.headers.get("if-range") in (None, etag):
            wanted = _byte_range(request.headers.get("range", ""), stream.length)
        if wanted is not None:
            first, count = wanted.start, len(wanted)
            if not wanted:
                return _behind_the_end(stream.length)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{wanted.stop - 1}/{stream.length}"
            headers["Content-Length"] = str(count)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=stream.format.media_type)
    return AudioStream(_first(stream.chunks(first), count), stream.format.media_type, status, headers)


def _behind_the_end(size: int) -> Response:
    headers = {"Content-Range": f"bytes */{size}"}
    return error_answer(416, f"the range is behind the end, at {size} bytes", headers=headers)


def _byte_range(header: str, length: int) -> range | None:
    """The one range that is asked for, empty if it is behind the end; None if none is valid, or several."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(0, length - int(match[2])), length)
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        return None
    return range(first, min(int(match[2]) + 1, length) if match[2] else length)


async def _first(chunks: AsyncGenerator[bytes, None], count: int | None) -> AsyncGenerator[bytes, None]:
    """The first `count` bytes."""
    async with aclosing(chunks):
        async for chunk in chunks:
            if count is None:
                yield chunk
                continue
            yield chunk[:count]
            count -= len(chunk)
            if count <= 0:
                return
