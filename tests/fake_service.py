"""A `Service` without a model: clips are sine tones that become available at a given speed."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from audiocraft_mlx.audio.formats import choose_format
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.server.schema import (
    Audio,
    AudioRecipe,
    Clip,
    Event,
    Health,
    Job,
    JobChange,
    JobPage,
    JobRequest,
    ModelInfo,
    Peaks,
    Progress,
    Status,
)
from audiocraft_mlx.server.service import (
    BusyError,
    ClipAudio,
    InvalidFieldError,
    NotFoundError,
    ServerSettings,
    Service,
)
from audiocraft_mlx.version import __version__

RATE = 32_000
DEFAULT_MODEL = "demo"
MODELS = ("demo", "small")


def tone(seed: int, duration: float) -> np.ndarray:
    """What the clip of a seed is: float32 `[1, samples]`."""
    time_ = np.arange(int(duration * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * (220 + seed % 880) * time_)).astype(np.float32)[None]


@dataclass
class FakeJob:
    id: str
    request: JobRequest
    seed: int
    clip_ids: list[str]
    client: str
    created: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)
    ended: Status | None = None
    favourite: bool = False
    title: str | None = None
    removed: bool = False


class FakeAudio(ClipAudio):
    def __init__(self, service: FakeService, job: FakeJob, seed: int) -> None:
        self.sample_rate, self.channels = RATE, 1
        self._audio = tone(seed, job.request.duration)
        self.samples = self._audio.shape[1]
        self._service, self._job = service, job
        self.is_file = service.status(job) is Status.DONE
        self.readers = 0

    async def blocks(self, start: int = 0) -> AsyncIterator[np.ndarray]:
        while start < self.samples:
            status = self._service.status(self._job)
            there = min(self.samples, int(self._service.made_seconds(self._job) * RATE))
            if status in (Status.FAILED, Status.CANCELLED):
                return
            if there > start:
                yield self._audio[:, start:there]
                start = there
            else:
                await asyncio.sleep(0.01)


class FakeService(Service):
    """`speed`: seconds of audio per second. A prompt with "fail" in it fails after `fail_after` seconds."""

    def __init__(self, folder: Path, speed: float = 1e9, fail_after: float = 0.0) -> None:
        self.settings = ServerSettings(folder, ModelOptions(DEFAULT_MODEL))
        self.folder, self.speed, self.fail_after = folder, speed, fail_after
        self.made: dict[str, FakeJob] = {}
        self.audios: dict[str, Audio] = {}
        self.names: list[str | None] = []
        self.log: list[Event] = []
        self.started = self.closed = False
        self.endless_events = True
        self.saving_seconds = 0.0
        """From a clip's last sample to the end of its job."""
        self.error: Exception | None = None
        """What every call raises."""
        self._lock = threading.RLock()

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True
        for job in self.made.values():
            if self.status(job).is_live:
                job.ended = Status.CANCELLED

    def made_seconds(self, job: FakeJob) -> float:
        return (time.monotonic() - job.begun) * self.speed

    def status(self, job: FakeJob) -> Status:
        if job.ended is not None:
            return job.ended
        if "fail" in job.request.prompt and time.monotonic() - job.begun >= self.fail_after:
            return Status.FAILED
        needed = job.request.duration + self.saving_seconds * self.speed
        return Status.DONE if self.made_seconds(job) >= needed else Status.RUNNING

    def submit(self, request: JobRequest, client: str) -> Job:
        self._check()
        limits = self.settings.limits
        for name in ("melody", "style", "source"):
            if getattr(request, name) is not None:
                public = "continue" if name == "source" else name
                raise InvalidFieldError(f"{public}: there is no such audio", public)
        try:
            options = ClipRequest(
                request.prompt,
                **request.model_dump(
                    include={"duration", "temperature", "top_k", "top_p", "cfg_coef"}, exclude_none=True
                ),
                **({} if request.seed is None else {"seed": request.seed}),
            )
            OutputOptions(
                request.format,
                request.bit_depth,
                request.normalize,
                request.lufs,
                request.fade_out,
                request.stems,
                request.ending,
            )
        except UsageError as error:
            raise InvalidFieldError(str(error), str(error).split()[0].rstrip(":")) from error
        if request.duration > limits.duration:
            raise InvalidFieldError(f"duration must be at most {limits.duration:g}", "duration")
        if not 1 <= request.takes <= limits.takes:
            raise InvalidFieldError(f"takes must be from 1 to {limits.takes}", "takes")
        if request.model not in (None, *MODELS):
            raise InvalidFieldError("model: there is no such model", "model")
        with self._lock:
            live = [job for job in self.made.values() if self.status(job).is_live]
            if len(live) >= limits.waiting:
                raise BusyError(f"{len(live)} jobs wait; try again later", 7)
            ids = [secrets.token_urlsafe(16) for _ in range(request.takes + 1)]
            job = FakeJob(ids[0], request, options.seed, ids[1:], client)
            self.made[job.id] = job
        self.emit("job", self._describe(job))
        return self._describe(job)

    def jobs(
        self, before: str | None = None, limit: int = 50, query: str = "", favourite: bool | None = None
    ) -> JobPage:
        self._check()
        found = [
            self._describe(job)
            for job in reversed(self.made.values())
            if not job.removed
            and query.lower() in job.request.prompt.lower()
            and favourite in (None, job.favourite)
        ]
        start = 0
        if before is not None:
            if not before.isdecimal() or len(before) > 9:
                raise InvalidFieldError("before is invalid", "before")
            start = int(before)
        rest = len(found) > start + limit
        return JobPage(jobs=found[start : start + limit], before=str(start + limit) if rest else None)

    def job(self, id: str) -> Job:
        return self._describe(self._find(id))

    def change(self, id: str, change: JobChange) -> Job:
        job = self._find(id)
        for name, value in change.model_dump(exclude_unset=True).items():
            setattr(job, name, value if name == "title" else bool(value))
        return self._describe(job)

    def delete(self, id: str) -> Job:
        job = self._find(id)
        if self.status(job).is_live:
            job.ended = Status.CANCELLED
        else:
            job.removed = True
        return self._describe(job)

    def cancel(self, id: str) -> Job | None:
        job = self._find(id)
        if not self.status(job).is_live:
            return None
        job.ended = Status.CANCELLED
        return self._describe(job)

    def restore(self, id: str) -> Job:
        self._check()
        if id not in self.made:
            raise NotFoundError("there is no such job")
        self.made[id].removed = False
        return self._describe(self.made[id])

    async def wait(self, id: str) -> Job:
        while self.job(id).status.is_live:
            await asyncio.sleep(0.01)
        return self.job(id)

    async def wait_for_clips(self, id: str) -> Job:
        return self.job(id)

    def clip_file(self, id: str, format: str | None = None, stem: str | None = None) -> Path:
        job, seed = self._find_clip(id)
        if self.status(job) is not Status.DONE or (stem is not None and not job.request.stems):
            raise NotFoundError("it isn't done yet")
        if stem not in (None, "drums", "bass", "other", "vocals"):
            raise NotFoundError("there is no such stem")
        format = format or job.request.format
        path = self.folder / f"{id}.{stem or 'clip'}.{format}"
        if not path.exists():
            write_audio(path, tone(seed, job.request.duration), RATE, choose_format(path))
        return path

    def clip_audio(self, id: str) -> ClipAudio:
        return FakeAudio(self, *self._find_clip(id))

    def peaks(self, id: str) -> Peaks:
        job, _ = self._find_clip(id)
        return Peaks(peaks=[127] * int(min(self.made_seconds(job), job.request.duration) * 50))

    def add_audio(self, path: Path, name: str | None = None) -> Audio:
        self._check()
        self.names.append(name)
        info = self._read(path)
        audio = Audio(
            id=secrets.token_urlsafe(16),
            duration=info.duration,
            sample_rate=info.samplerate,
            channels=info.channels,
        )
        self.audios[audio.id] = audio
        return audio

    def read_recipe(self, path: Path) -> AudioRecipe:
        self._check()
        for job in self.made.values():
            if path.name.split(".")[0] in job.clip_ids:
                recipe = job.request.model_copy(update={"seed": job.seed})
                return AudioRecipe(recipe=recipe, command="musicgen-mlx")
        self._read(path)
        return AudioRecipe(recipe=None, command=None)

    def models(self) -> list[ModelInfo]:
        self._check()
        return [ModelInfo(name=name, state="loaded", default=name == DEFAULT_MODEL) for name in MODELS]

    def load_model(self, name: str) -> ModelInfo:
        for model in self.models():
            if model.name == name:
                return model
        raise NotFoundError(f"there is no model {name}")

    def events(self, last_id: str | None = None) -> AsyncIterator[Event]:
        # From now on, and not from when the first one is asked for.
        at = len(self.log) if last_id is None else int(last_id) if last_id.isdecimal() else 0
        return self._events_from(at)

    async def _events_from(self, at: int) -> AsyncIterator[Event]:
        while True:
            while at < len(self.log):
                yield self.log[at]
                at += 1
            if not self.endless_events:
                return
            await asyncio.sleep(0.01)

    def emit(self, kind: str, data: object) -> None:
        self.log.append(Event(id=str(len(self.log) + 1), event=kind, data=data))

    def health(self) -> Health:
        self._check()
        return Health(
            version=__version__, model=DEFAULT_MODEL, device="fake", waiting=0, limits={}, downloads=False
        )

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _find(self, id: str) -> FakeJob:
        self._check()
        if id not in self.made or self.made[id].removed:
            raise NotFoundError("there is no such job")
        return self.made[id]

    def _find_clip(self, id: str) -> tuple[FakeJob, int]:
        self._check()
        for job in self.made.values():
            if id in job.clip_ids and not job.removed:
                return job, job.seed + job.clip_ids.index(id)
        raise NotFoundError("there is no such clip")

    def _describe(self, job: FakeJob) -> Job:
        status = self.status(job)
        total = int(job.request.duration * 50)
        clips = [
            Clip(
                id=id,
                seed=(job.seed + index) % 2**32,
                duration=job.request.duration,
                sample_rate=RATE,
                channels=1,
                audio=f"/api/clips/{id}/audio",
                stream=f"/api/clips/{id}/stream",
                peaks=f"/api/clips/{id}/peaks",
            )
            for index, id in enumerate(job.clip_ids)
        ]
        return Job(
            id=job.id,
            status=status,
            created=job.created,
            position=None,
            progress=Progress(done=min(total, int(self.made_seconds(job) * 50)), total=total),
            error="it failed as it was told" if status is Status.FAILED else None,
            title=job.title,
            favourite=job.favourite,
            recipe=job.request,
            command="musicgen-mlx",
            clips=clips,
        )

    @staticmethod
    def _read(path: Path) -> soundfile._SoundFileInfo:
        try:
            return soundfile.info(path)
        except soundfile.SoundFileError as error:
            raise UsageError("this is no audio file") from error
