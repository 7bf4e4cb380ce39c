"""What all routes share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from audiocraft_mlx.server.answers import ClientGoneError
from audiocraft_mlx.server.service import Service
from audiocraft_mlx.server.spooling import Uploads

T = TypeVar("T")
# Files that are decoded or converted at a time.
_WORKERS = 2


class Context:
    """One for each application.

    Attributes:
        service: what makes the music.
        uploads: bodies that are files.
        needs_token: whether calls need one.
        stopping: set when the server is about to end: what waits or streams must end.
    """

    def __init__(self, service: Service, spool: Path | None, needs_token: bool) -> None:
        self.service = service
        self.needs_token = needs_token
        self.uploads = Uploads(spool)
        self.stopping = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._workers = asyncio.Semaphore(_WORKERS)

    def stop(self) -> None:
        """From any thread, or a signal's handler."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.stopping.set)

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, which may take seconds, in a thread; few at a time.

        The end of the process doesn't wait for it.
        """
        async with self._workers:
            return await in_daemon_thread(function, *args)


async def in_daemon_thread(function: Callable[..., T], *args: Any) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="musicgen-mlx worker").start()
    return await future


async def unless_gone(request: Request, awaitable: Awaitable[T]) -> T:
    """Its result. Raises `ClientGoneError` if the client closes the connection before.

    The request's body must have been read.
    """
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _of_app(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextOfApp = Annotated[Context, Depends(_of_app)]


def client_of(request: Request) -> str:
    """Whose jobs are counted together."""
    return request.client.host if request.client is not None else "unknown"
