"""Free file names and atomic writes: a file or a folder appears complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.errors import OutputError, UsageError

StrPath = str | os.PathLike[str]
"""The path of a file, as Python users give it."""

_PART = re.compile(r"\.musicgen-[0-9a-f]{16}\.part")


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
        target = follow_links(path)
        folder = _mode(target.parent)
        if not stat.S_ISDIR(folder):
            what = "is not a folder" if folder else "does not exist"
            raise OutputError(
                f"{path} can't be written: {target.parent} {what}; choose another folder or create it"
            )
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            raise OutputError(f"{path} is a folder; give the name of a file in it")
        if mode and not stat.S_ISREG(mode):
            raise OutputError(f"{path} is not a regular file; choose another name")
        probe = _temporary_beside(target)
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)  # another process may take it for a stale one
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
            with suppress(FileNotFoundError, NotADirectoryError):
                parent.stat()  # a folder that may not be entered isn't missing
            raise OutputError(f"{folder} can't be written: there is no folder {parent}; create it")
        if folder.is_dir():
            if any(folder.iterdir()):
                raise OutputError(f"{folder} is not empty; choose another folder, or remove it first")
        elif os.path.lexists(folder):
            raise OutputError(f"{folder} is a file; choose another name for the folder")
        remove_stale_parts(parent)
        probe = _temporary_beside(folder.resolve())
        probe.mkdir()
        with suppress(FileNotFoundError):
            probe.rmdir()
    except OSError as error:
        raise write_error(folder, error) from error


def write_file(path: Path, write_fn: Callable[[BinaryIO], None]) -> None:
    """Replace the file at `path` with what `write_fn` writes, atomically.

    A symbolic link stays, and the file that it leads to is replaced. A file that is replaced keeps its
    permissions.

    Raises `OutputError` if it can't be written.
    """
    temporary: Path | None = None
    try:
        target = follow_links(path)
        replaced = _mode(target)
        while True:
            temporary = _temporary_beside(target)
            file = temporary.open("x+b")
            if _lock(file.fileno()):
                break
            file.close()
        with file:
            if replaced:
                _set_mode(file.fileno(), 0o600)  # it may be private
            write_fn(file)
            # Some file systems report only now that they are full; and after a power failure the name must
            # not lead to data that was never written.
            file.flush()
            os.fsync(file.fileno())
            if replaced:
                _set_mode(file.fileno(), stat.S_IMODE(replaced))
            os.replace(temporary, target)  # while it is locked, see `remove_stale_parts`
    except BaseException as error:  # an interruption leaves no partial file either
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """`write_file` with `text`, in UTF-8. Raises `OutputError`."""

    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    write_file(path, write)


def write_folder(folder: Path, write_fn: Callable[[Path], None]) -> None:
    """Make `folder` atomically, with what `write_fn` writes into the (temporary) folder that it is given.

    Raises `OutputError` if it can't be written; see `check_new_folder`.
    """
    check_new_folder(folder)
    temporary = _temporary_beside(folder.resolve())
    descriptor = -1
    try:
        while True:
            temporary.mkdir()
            descriptor = os.open(temporary, os.O_RDONLY)
            if _lock(descriptor):
                break
            os.close(descriptor)
            temporary = _temporary_beside(folder.resolve())
        write_fn(temporary)
        os.replace(temporary, folder.resolve())
    except BaseException as error:  # an interruption leaves nothing either
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def write_into_folder(folder: Path, write_fn: Callable[[Path], None], last: str) -> None:
    """Replace files in `folder` by those that `write_fn` writes into the (temporary) folder that it is given.

    They come there together, after all are written, and the one called `last` after the others.

    Raises `OutputError` if they can't be written.
    """
    remove_stale_parts(folder)
    inner = _temporary_beside(folder.resolve() / last)
    try:
        write_folder(inner, write_fn)
        for path in sorted(inner.iterdir(), key=lambda path: path.name == last):
            os.replace(path, folder / path.name)
        inner.rmdir()
    except BaseException as error:
        shutil.rmtree(inner, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise


def lock_folder(folder: Path) -> int:
    """Lock `folder` until the descriptor that is returned is closed, or the process ends.

    Where the file system has no locks nothing is locked. Raises `BlockingIOError` if somebody else has it,
    `OSError` if it can't be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass
    return descriptor


def expand_home(name: StrPath) -> Path:
    """`name` as a path, with the home folder for `~`; as it is for a user who does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def follow_links(path: Path) -> Path:
    """`path`, or if it is a symbolic link what it leads to, which may be missing."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` of processes that were killed.

    The system frees a process' locks when it ends. What can't be locked or removed stays.
    """
    try:
        names = [name for name in os.listdir(folder) if _PART.fullmatch(name)]
    except OSError:
        return
    for name in names:
        path = folder / name
        with suppress(OSError):
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
            # Not followed, if it is a link, and not waited for, if it is a pipe.
            flags = (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_folder:
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


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


def _lock(descriptor: int) -> bool:
    """Mark a new file or folder as that of a living process; False if `remove_stale_parts` was faster."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing is removed there
        return True
    return os.fstat(descriptor).st_nlink > 0


def _set_mode(descriptor: int, mode: int) -> None:
    with suppress(OSError):  # a file system without permissions
        os.fchmod(descriptor, mode)


def _temporary_beside(path: Path) -> Path:
    # Not made from the file's own name, which may already be as long as the file system allows.
    return path.with_name(f".musicgen-{secrets.token_hex(8)}.part")


def _mode(path: Path) -> int:
    """The kind and permissions of what is at `path`, 0 for nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
