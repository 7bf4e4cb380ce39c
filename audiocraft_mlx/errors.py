"""The errors that a user can understand and fix.

Each message is one line that names the file or value at fault and says what to do. The command line
prints it as it is and exits with `exit_status`; any other exception is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence


class MusicGenError(Exception):
    """Base of the errors that this package raises on purpose."""

    exit_status = 1


class UsageError(MusicGenError, ValueError):
    """A value from the user is invalid: an option out of range, an argument of the wrong shape."""

    exit_status = 2


class UsageErrors(UsageError):
    """Several mistakes: a line for each.

    Attributes:
        messages: each of them.
    """

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = tuple(messages)


class CheckpointError(MusicGenError):
    """A checkpoint's files are missing, damaged, or describe a model that is not supported."""


class DownloadError(MusicGenError):
    """A file could not be downloaded from the Hub."""


class OutputError(MusicGenError):
    """A file could not be written."""


class ClusterError(MusicGenError):
    """Several machines can't do together what they should."""
