"""What every route calls. It knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.server.schema import (
    Audio,
    AudioRecipe,
    Event,
    Health,
    Id,
    Job,
    JobChange,
    JobPage,
    JobRequest,
    ModelInfo,
    Peaks,
)


class NotFoundError(MusicGenError):
    """There is no such job, clip, audio or model."""


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


@dataclass(frozen=True)
class Limits:
    duration: float = 300.0
    """Seconds of a clip."""
    takes: int = 8
    prompt_characters: int = 10_000
    waiting: int = 200
    """Jobs in all."""
    waiting_per_client: int = 100
    body_bytes: int = 50_000_000
    audio_seconds: float = 1800.0
    """Of an upload, decoded."""
    free_bytes: int = 200_000_000
    """That the disk must keep."""
    connections: int = 100


@dataclass(frozen=True)
class ServerSettings:
    data: Path
    model: ModelOptions
    hint: str | None = None
    allow_downloads: bool = False
    limits: Limits = Limits()


class ClipAudio:
    """The audio of a clip that is made, or was.

    Attributes:
        sample_rate: samples per second.
        channels: 1 or 2.
        samples: per channel, that it has in the end.
    """

    sample_rate: int
    channels: int
    samples: int

    def blocks(self, start: int = 0) -> AsyncIterator[np.ndarray]:
        """float32 `[channels, n]` from sample `start` on, as they are made; ends early if its job does.

        Reads from disk: a slow reader holds nothing back and keeps nothing in memory.
        """
        raise NotImplementedError


class Service:
    """Jobs, clips, audio and models.

    All methods are thread-safe; those that aren't `async` may read the disk.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Open the data folder. Raises `UsageError` if another server uses it, `OutputError`."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the engine's thread: it loads the default model at once."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel what is made, and stop within a second."""
        raise NotImplementedError

    def submit(self, request: JobRequest, client: str) -> Job:
        """Raises `InvalidFieldError`, `NotFoundError`, `BusyError`, `OutputError` (the disk is full)."""
        raise NotImplementedError

    def jobs(
        self, before: str | None = None, limit: int = 50, query: str = "", favourite: bool | None = None
    ) -> JobPage:
        """Raises `InvalidFieldError`."""
        raise NotImplementedError

    def job(self, id: Id) -> Job:
        raise NotImplementedError

    def change(self, id: Id, change: JobChange) -> Job:
        raise NotImplementedError

    def delete(self, id: Id) -> Job:
        """Cancel a live job; remove another one, which `restore` brings back for a while."""
        raise NotImplementedError

    def restore(self, id: Id) -> Job:
        raise NotImplementedError

    async def wait(self, id: Id) -> Job:
        """The job when it isn't live any more."""
        raise NotImplementedError

    async def wait_for_clips(self, id: Id) -> Job:
        """The job as soon as its `clips` are known, or it isn't live any more."""
        raise NotImplementedError

    def clip_file(self, id: Id, format: str | None = None, stem: str | None = None) -> Path:
        """Its file, in its own format or another one (wav, flac, mp3, ogg). With tags.

        Raises `NotFoundError`: also if it isn't done yet.
        """
        raise NotImplementedError

    def clip_audio(self, id: Id) -> ClipAudio:
        raise NotImplementedError

    def peaks(self, id: Id) -> Peaks:
        """So far, if it is being made."""
        raise NotImplementedError

    def add_audio(self, path: Path, name: str | None = None) -> Audio:
        """Decode the upload at `path` and keep it. Raises `UsageError`."""
        raise NotImplementedError

    def read_recipe(self, path: Path) -> AudioRecipe:
        """How the uploaded file at `path` was made. Raises `UsageError`: it is no audio file."""
        raise NotImplementedError

    def models(self) -> list[ModelInfo]:
        raise NotImplementedError

    def load_model(self, name: str) -> ModelInfo:
        """Ask the engine to load it; an event tells when it is. Raises `NotFoundError`, `UsageError`."""
        raise NotImplementedError

    def events(self, last_id: str | None = None) -> AsyncIterator[Event]:
        """Everything from now on, or after the event `last_id`."""
        raise NotImplementedError

    def health(self) -> Health:
        raise NotImplementedError
