"""Audio as answers: files, and clips that are still being generated."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from audiocraft_mlx.server.answers import error_answer
from audiocraft_mlx.server.streaming import ClipEndedEarly, ClipStream

MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def audio_file(path: Path, name: str | None = None) -> FileResponse:
    """A finished file, also in ranges. With `name` it is to be saved, not played."""
    return FileResponse(
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


def stream_clip(request: Request, stream: ClipStream) -> Response:
    """A clip that is being generated or was; with its length and in ranges, if they are known beforehand."""
    headers = {"Accept-Ranges": "none"}
    status, first, count = 200, 0, stream.length
    if stream.length is not None:
        headers["Content-Length"] = str(stream.length)
    if stream.length is not None and stream.seekable:
        headers["Accept-Ranges"] = "bytes"
        wanted = None
        if "if-range" not in request.headers:  # it would name a version that we never gave
            wanted = _byte_range(request.headers.get("range", ""), stream.length)
        if wanted is not None:
            first, count = wanted.start, len(wanted)
            if not wanted:
                content_range = {"Content-Range": f"bytes */{stream.length}"}
                return error_answer(416, "the range is behind the end", headers=content_range)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{wanted.stop - 1}/{stream.length}"
            headers["Content-Length"] = str(count)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=stream.format.media_type)
    return AudioStream(_first(stream.chunks(first), count), stream.format.media_type, status, headers)


def _byte_range(header: str, length: int) -> range | None:
    """The one range that is asked for; None if there is none, or several; empty if it is behind the end."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return range(max(0, length - int(match[2])), length)
    first, end = int(match[1]), int(match[2]) + 1 if match[2] else length
    if end <= first:
        return None if match[2] and first < length else range(0)
    return range(first, min(end, length))


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
