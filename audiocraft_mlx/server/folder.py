"""The data folder: where things are, and whose it is: the server that uses it has locked it.

history.sqlite3         the database (store.py)
history.sqlite3.new     another one, while it is made again from the clips
clips/JOB/CLIP.wav      a clip in the format that was asked for
clips/JOB/CLIP.bass.wav one of its stems
audio/ID                an upload as it came
making/                 audio that is being made
converted/              clips in other formats
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import check_writable, lock_folder, remove_stale_parts, write_error
from audiocraft_mlx.server.schema import Id

_ID = re.compile(r"[A-Za-z0-9_-]{22}")


def new_id() -> Id:
    return secrets.token_urlsafe(16)


def is_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


class DataFolder:
    """A data folder that is this server's until it is closed."""

    def __init__(self, root: Path) -> None:
        """Make the folder if there is none. Raises `UsageError` if another server uses it, `OutputError`."""
        self.root = root
        self.database = root / "history.sqlite3"
        self.new_database = root / "history.sqlite3.new"
        self.clips, self.audio = root / "clips", root / "audio"
        self.making, self.converted = root / "making", root / "converted"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock_folder(root)
        except BlockingIOError:
            raise UsageError(
                f"{root} is in use by another server; stop that one, or give another folder to --data"
            ) from None
        except OSError as error:
            raise write_error(root, error) from error
        try:
            self._prepare()
        except OSError as error:
            self.close()
            raise write_error(root, error) from error
        except OutputError:
            self.close()
            raise

    def _prepare(self) -> None:
        # What was being made, or was only converted, belongs to a process that has ended.
        for folder in (self.making, self.converted):
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.root.glob(f"{self.new_database.name}*"):
            path.unlink(missing_ok=True)
        self.make_folders()
        for folder in (self.root, self.clips, self.audio, self.making, self.converted):
            check_writable(folder / "probe")
        for folder in (self.root, self.audio):
            remove_stale_parts(folder)

    def close(self) -> None:
        """Give it back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def make_folders(self) -> None:
        """Make those that aren't there: somebody may have removed one. Raises `OutputError`."""
        for folder in (self.clips, self.audio, self.making, self.converted):
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise write_error(folder, error) from error

    def free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self.root).free
        except OSError as error:
            raise write_error(self.root, error) from error

    def clip_file(self, job: Id, clip: Id, audio_format: str, stem: str | None = None) -> Path:
        return self.clips / job / f"{_part(clip, stem)}.{audio_format}"

    def converted_file(self, clip: Id, audio_format: str, stem: str | None = None) -> Path:
        return self.converted / f"{_part(clip, stem)}.{audio_format}"

    def audio_file(self, id: Id) -> Path:
        return self.audio / id

    def make_job_folder(self, job: Id) -> None:
        """Raises `OutputError`."""
        try:
            (self.clips / job).mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.clips / job, error) from error

    def remove_job(self, job: Id, clips: list[Id]) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.clips / job, ignore_errors=True)
        if not clips:
            return
        # No pattern for each clip: Python keeps hundreds of those that it has compiled.
        beginnings = tuple(f"{clip}." for clip in clips)
        # Nor a list of all files, which may be thousands.
        with suppress(OSError), os.scandir(self.converted) as files:
            for path in [file.path for file in files if file.name.startswith(beginnings)]:
                with suppress(OSError):
                    os.unlink(path)

    def remove_audio(self, id: Id) -> None:
        with suppress(OSError):
            self.audio_file(id).unlink()

    def job_folders(self) -> list[Id]:
        """Ids of the jobs that have files."""
        return [name for name in os.listdir(self.clips) if is_id(name) and (self.clips / name).is_dir()]

    def audio_ids(self) -> list[Id]:
        return [name for name in os.listdir(self.audio) if is_id(name)]


def split_clip_name(path: Path) -> tuple[Id, str | None, str] | None:
    """The clip, the stem and the format of a file in a job's folder; None for another file."""
    clip, *stem, audio_format = path.name.split(".")
    if not is_id(clip) or len(stem) > 1:
        return None
    return clip, stem[0] if stem else None, audio_format


def _part(clip: Id, stem: str | None) -> str:
    return clip if stem is None else f"{clip}.{stem}"
