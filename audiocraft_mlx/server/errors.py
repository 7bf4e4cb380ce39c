"""The errors that a client can understand and fix, beside those of the package."""

from __future__ import annotations

import errno
import sqlite3

from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError

DISK_FULL = "the server's disk is full; free some space"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def public_message(error: MusicGenError) -> str:
    """What clients are told. Where the server has its files is for its log only."""
    cause = error.__cause__
    if isinstance(error, OutputError) and isinstance(cause, OSError):
        if cause.errno in _FULL:
            return DISK_FULL
        return f"the server can't write its files ({cause.strerror or 'an error'}); its log says more"
    if isinstance(error, OutputError) and isinstance(cause, sqlite3.Error) and str(error) != DISK_FULL:
        return f"the server can't write its history ({cause}); its log says more"
    return str(error)


class NotFoundError(MusicGenError):
    """There is no such job, clip, audio or model. `param`: the field with its id or name, in JSON."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BusyError(MusicGenError):
    """Too many jobs wait. `retry_after`: seconds after which it may be tried again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidFieldError(UsageError):
    """A field of a `JobRequest` is invalid. `param`: its name in JSON."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
