"""The tags of files from elsewhere, read in a process of its own: `python -m …foreign_tags FILE WHAT`.

mutagen unpacks what is compressed, however long it becomes, and makes an object of every chunk: a megabyte
can take gigabytes, and fifty half a minute in which the clips that are made hardly go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from audiocraft_mlx.audio.tags import may_have_tags, read_tags
from audiocraft_mlx.clips.codes import ClipCodes, read_codes
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error

# Of processor time, and in all.
_SECONDS, _MOST_SECONDS = 2, 20
_BYTES = 1 << 28
"""More than it has at its start. A file of 50 MB has its pictures and other tags copied twice."""


def read_foreign_metadata(path: Path) -> GenerationMetadata | None:
    """How the file at `path` was made; None if it has no tags of ours.

    Raises `UsageError`: its tags are damaged, or take too long or too much memory.
    """
    text = _ask(path, "metadata")
    try:
        return None if text is None else GenerationMetadata.from_json(text)
    except ValueError as error:
        raise UsageError(f"{path}: its tags are damaged ({error})") from error


def read_foreign_codes(path: Path) -> ClipCodes | None:
    """`read_codes` of the file at `path`; None also if its tags take too long or too much memory."""
    try:
        text = _ask(path, "codes")
        return None if text is None else ClipCodes.from_text(text)
    except (UsageError, ValueError):
        return None


def _ask(path: Path, what: str) -> str | None:
    """What a process of its own reads. Raises `UsageError`."""
    try:
        if not may_have_tags(path):
            return None
    except OSError as error:
        raise read_error(path, error) from error
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path), what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise UsageError(f"{path}: its tags are too large or damaged")
    answer = json.loads(done.stdout)
    if answer["error"] is not None:
        raise UsageError(answer["error"])
    text: str | None = answer["text"]
    return text


def _limit() -> None:
    import os
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    # macOS takes no limit of addresses: there the time is one.
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + _BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main() -> None:
    import soundfile  # noqa: F401, what it and its libraries take isn't limited

    _limit()
    path, what = Path(sys.argv[1]), sys.argv[2]
    text: str | None = None
    error: str | None = None
    try:
        if what == "codes":
            codes = read_codes(path)
            text = None if codes is None else codes.to_text()
        else:
            tags = read_tags(path)
            text = None if tags is None else tags.data
    except UsageError as raised:
        error = str(raised)
    json.dump({"text": text, "error": error}, sys.stdout)


if __name__ == "__main__":
    _main()
