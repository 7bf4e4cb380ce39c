"""The raw body of a request as a file on disk."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import Request
from starlette.requests import ClientDisconnect

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import write_error
from audiocraft_mlx.server.answers import ClientGoneError
from audiocraft_mlx.server.service import BusyError

# Each may take the disk space of a whole body.
_MAX_UPLOADS = 8
_RETRY_SECONDS = 5


class Uploads:
    """`folder`: where the files are while they are used; None: the system's."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Path]:
        """The body, which is removed at the end. Its size is limited before (security.py).

        Raises:
            UsageError: it is empty.
            BusyError: too many others arrive at this moment.
            OutputError: it can't be written.
        """
        if self._count >= _MAX_UPLOADS:
            raise BusyError("too many files are being sent; try again later", _RETRY_SECONDS)
        self._count += 1
        path: Path | None = None
        try:
            path = await self._spool(request)
            yield path
        finally:
            self._count -= 1
            if path is not None:
                with suppress(OSError):
                    path.unlink()

    async def _spool(self, request: Request) -> Path:
        folder = self._folder or Path(tempfile.gettempdir())
        path: Path | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-", delete=False) as file:
                path = Path(file.name)
                async for chunk in request.stream():
                    file.write(chunk)
                size = file.tell()
            if size == 0:
                raise UsageError("the body is empty; send an audio file")
            return path
        except BaseException as error:
            if path is not None:
                with suppress(OSError):
                    path.unlink()
            if isinstance(error, OSError):
                raise write_error(folder, error) from error
            if isinstance(error, ClientDisconnect):
                raise ClientGoneError from error
            raise
