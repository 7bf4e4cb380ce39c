"""Names of files, and how they come to be there: whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.errors import OutputError


def next_free_path(path: Path) -> Path:
    """`path`, or if that exists the first free one of `name-2.wav`, `name-3.wav`, … beside it."""
    free, number = path, 2
    while os.path.lexists(free):
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def check_writable(path: Path) -> None:
    """Make sure that a file can be written at `path`, before the minutes that it takes to fill it.

    Raises:
        OutputError: the folder doesn't exist or can't be written, or `path` is no regular file.
    """
    try:
        folder = _mode(path.parent)
        if not stat.S_ISDIR(folder):
            what = "is not a folder" if folder else "does not exist"
            raise OutputError(
                f"{path} can't be written: {path.parent} {what}; choose another folder or create it"
            )
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            raise OutputError(f"{path} is a folder; give the name of a file in it")
        if mode and not stat.S_ISREG(mode):
            raise OutputError(f"{path} is not a regular file; choose another name")
        probe = _temporary_beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise write_error(path, error) from error


def replace_file(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Put a file at `path` with what `fill` writes into it, at once or not at all.

    Raises `OutputError` if it can't be written.
    """
    temporary = _temporary_beside(path)
    try:
        with temporary.open("x+b") as file:
            fill(file)
            # Some file systems find out only now that they are full; and after a power failure the name must
            # not lead to what was never written.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interruption leaves no half file either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_error(path: Path, error: OSError) -> OutputError:
    """What to say of a file that can't be written at `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space" if full else "choose another name or folder"
    return OutputError(f"{path} can't be written: {error.strerror or error}; {hint}")


def _temporary_beside(path: Path) -> Path:
    # Not made from the file's own name, which may already be as long as the file system allows.
    return path.with_name(f".musicgen-{secrets.token_hex(8)}.part")


def _mode(path: Path) -> int:
    """The kind and permissions of what is at `path`, 0 for nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
