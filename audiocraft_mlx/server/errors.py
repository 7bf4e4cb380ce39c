"""The errors that a client can understand and fix, beside those of the package."""

from __future__ import annotations

import errno

from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError

DISK_FULL = "the server's disk is full; free some space"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException) -> bool:
    """Whether it is an `OutputError` of a full disk. Its message names the file, which helps no client."""
    cause = error.__cause__
    return isinstance(error, OutputError) and isinstance(cause, OSError) and cause.errno in _FULL


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
