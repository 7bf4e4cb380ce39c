"""The errors that a client can understand and fix, beside those of the package."""

from __future__ import annotations

from audiocraft_mlx.errors import MusicGenError, UsageError


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
