"""What tells files apart."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from audiocraft_mlx.files import read_error

# Of the beginning, the middle and the end of a file.
_SAMPLE = 1 << 14
_BLOCK = 1 << 20


def file_size(path: Path) -> int:
    """Raises `UsageError`."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise read_error(path, error) from error


def sampled_digest(path: Path) -> str:
    """Of a file's length, and of its beginning, middle and end. Raises `UsageError`."""
    size = file_size(path)
    total = hashlib.sha256(str(size).encode())
    try:
        with path.open("rb", buffering=0) as stream:
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                stream.seek(start)
                total.update(stream.read(_SAMPLE))
    except OSError as error:
        raise read_error(path, error) from error
    return total.hexdigest()


def digest(path: Path) -> str:
    """Of all of a file. Raises `UsageError`."""
    total = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
    except OSError as error:
        raise read_error(path, error) from error
    return total.hexdigest()
