"""The manifest: a file in JSONL with a line for each clip that was made, which `--prompts` reads, too."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.prompt_lines import ListedClip, line_of
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import check_writable, read_error, write_error

_BLOCK = 1 << 20


def manifest_line(
    path: Path,
    metadata: GenerationMetadata,
    seconds: float,
    sample_rate: int,
    line: int | None = None,
    stems: bool = False,
) -> dict[str, Any]:
    """What a manifest says of the clip in the file at `path`: a line that makes it again.

    `line` is the number of its line in the file of prompts. Raises `UsageError` if the file can't be read.
    """
    made = {
        "file": str(path),
        "sha256": _sha256(path),
        "seconds": round(seconds, 6),
        "sample_rate": sample_rate,
        "line": line,
        "version": metadata.version,
        "program": metadata.program,
        "stems": stems or None,
    }
    return {**{name: value for name, value in made.items() if value is not None}, **line_of(metadata)}


def line_of_existing(path: Path, clip: ListedClip, metadata: GenerationMetadata) -> dict[str, Any]:
    """`manifest_line` of a file at `path` that is there already. Raises `UsageError`."""
    from audiocraft_mlx.audio.read import read_info

    info = read_info(path)
    return manifest_line(path, metadata, info.frames / info.rate, info.rate, clip.line, clip.output.stems)


class Manifest:
    """A manifest that is written: lines are appended, whole ones only, to what is there.

    Several processes may append to one.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written yet.

        Raises:
            UsageError: there is another file.
            OutputError: it can't be written.
        """
        check_writable(path)
        self.path = path
        self.files = _files(path)
        """What it has lines for so far, with the hash in the last one."""

    def append(self, line: dict[str, Any]) -> None:
        """Write a line, whole and down to the disk, unless there is one of this very file.

        Raises `OutputError`.
        """
        if self.files.get(line["file"]) == line["sha256"]:
            return
        data = json.dumps(line).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                end = _end_of_lines(descriptor)
                try:
                    _write(descriptor, data)
                except BaseException:
                    os.ftruncate(descriptor, end)
                    raise
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error
        self.files[line["file"]] = line["sha256"]


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end_of_lines(descriptor: int) -> int:
    """Where the last whole line ends; what a power failure left behind it is cut off."""
    end = size = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        end = start + newline + 1 if newline >= 0 else start
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _files(path: Path) -> dict[str, str]:
    """The files of which a manifest has lines, with the last one's hash.

    Raises `UsageError` if it is another kind of file.
    """
    files: dict[str, str] = {}
    try:
        if not os.path.lexists(path) or not stat.S_ISREG(path.stat().st_mode):
            return files
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_BLOCK), b""), start=1):
                try:
                    values = json.loads(line)
                    files[values["file"]] = values["sha256"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    if number > 1 and not line.endswith(b"\n") and len(line) < _BLOCK:
                        break  # the last one, which a power failure has cut off
                    raise UsageError(
                        f"{path} is there, and its line {number} is none of a manifest; choose another name"
                    ) from None
    except OSError as error:
        raise read_error(path, error, "choose another name") from error
    return files


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise read_error(path, error) from error
