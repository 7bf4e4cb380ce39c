"""A user whom permissions bind, even where the tests run as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """In the block the process has the rights of a user without privileges."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that belongs to that user; pytest's own can be entered by root only."""
    folder = Path(tempfile.mkdtemp(prefix="musicgen-mlx-"))
    try:
        if os.geteuid() == 0:
            folder.chmod(0o777)
        with unprivileged():
            if not os.access(folder, os.W_OK | os.X_OK):
                pytest.skip("the folder for temporary files is closed to other users")
        yield folder
    finally:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)
