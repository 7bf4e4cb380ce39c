"""Free file names and atomic writes: a file or a folder appears complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.errors import OutputError, UsageError


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


def check_new_folder(folder: Path) -> None:
    """Make sure that `write_folder` can make `folder`, before the minutes that it takes to fill it.

    Raises:
        OutputError: it has something in it, is no folder, or its parent doesn't exist or can't be written.
    """
    try:
        parent = folder.resolve().parent
        if not parent.is_dir():
            raise OutputError(f"{folder} can't be written: there is no folder {parent}; create it")
        if folder.is_dir():
            if any(folder.iterdir()):
                raise OutputError(f"{folder} is not empty; choose another folder, or remove it first")
        elif os.path.lexists(folder):
            raise OutputError(f"{folder} is a file; choose another name for the folder")
        probe = _temporary_beside(folder.resolve())
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise write_error(folder, error) from error


def write_file(path: Path, write_fn: Callable[[BinaryIO], None]) -> None:
    """Replace the file at `path` with what `write_fn` writes, atomically.

    Raises `OutputError` if it can't be written.
    """
    temporary = _temporary_beside(path)
    try:
        with temporary.open("x+b") as file:
            write_fn(file)
            # Some file systems report only now that they are full; and after a power failure the name must
            # not lead to data that was never written.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interruption leaves no partial file either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_folder(folder: Path, write_fn: Callable[[Path], None]) -> None:
    """Make `folder` atomically, with what `write_fn` writes into the (temporary) folder that it is given.

    Raises `OutputError` if it can't be written; see `check_new_folder`.
    """
    check_new_folder(folder)
    temporary = _temporary_beside(folder.resolve())
    try:
        temporary.mkdir()
        write_fn(temporary)
        os.replace(temporary, folder.resolve())
    except BaseException as error:  # an interruption leaves nothing either
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise


def read_error(path: Path, error: OSError, hint: str = "give an audio file") -> UsageError:
    """The error for a file of the user's that can't be read."""
    if isinstance(error, PermissionError):
        return UsageError(
            f"permission denied: {path} can't be read; allow it (chmod +r, and +x for its folders)"
        )
    return UsageError(f"{path} can't be read: {error.strerror or error}; {hint}")


def write_error(path: Path, error: OSError) -> OutputError:
    """The error for a file or folder that can't be written at `path`."""
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
