"""The jobs that wait or are made: one place for every change of theirs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING

from audiocraft_mlx.clips.planning import new_samples
from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.server.errors import BusyError, NotFoundError
from audiocraft_mlx.server.events import Broadcaster
from audiocraft_mlx.server.live import LiveClip
from audiocraft_mlx.server.queue import FairQueue
from audiocraft_mlx.server.recipes import Recipe
from audiocraft_mlx.server.schema import Clip, Id, Job, JobPage, Progress, Status
from audiocraft_mlx.server.settings import Limits
from audiocraft_mlx.server.store import AudioShape, ClipRecord, JobRecord, Store
from audiocraft_mlx.server.wakeup import Wakeup

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

_log = logging.getLogger(__name__)
# Jobs at the front of the queue whose new positions are told.
_TOLD = 10
# Until some jobs have been made.
_FIRST_GUESS_SECONDS = 30.0


@dataclass(eq=False)
class LiveJob:
    """A job that waits or is made.

    Attributes:
        record: as it is in the store.
        recipe: what it makes.
        clips: their audio; empty until their size is known.
        taken: takes that are made, or were.
        finished: clips whose files are there, with their peaks.
    """

    record: JobRecord
    recipe: Recipe
    clips: tuple[LiveClip, ...] = ()
    progress: Progress | None = None
    speed: float | None = None
    taken: int = 0

    def __post_init__(self) -> None:
        self.finished: dict[int, tuple[ClipRecord, bytes]] = {}
        self.changed = Wakeup()

    @property
    def id(self) -> Id:
        return self.record.id

    @property
    def model(self) -> str:
        assert self.recipe.request.model is not None
        return self.recipe.request.model

    @property
    def is_live(self) -> bool:
        return self.record.status.is_live

    def size(self, model: GenModel) -> None:
        """Its model is loaded: from now on it is known how long its clips will be."""
        shape = clip_shape(model, self.recipe)
        self.clips = tuple(LiveClip(shape) for _ in self.recipe.clips)


class Jobs:
    """The live jobs, their queue, and what is told of them. All methods are thread-safe.

    The lock is taken before the store's, never while that is held.
    """

    def __init__(self, store: Store, events: Broadcaster, limits: Limits) -> None:
        self._store, self._events, self._limits = store, events, limits
        self._lock = RLock()
        self._live: dict[Id, LiveJob] = {}
        self._queue: FairQueue[LiveJob] = FairQueue()
        self._unrecorded: dict[Id, JobRecord] = {}
        """Jobs that have ended, but the disk was full: what the store doesn't know yet."""
        self._job_seconds = _FIRST_GUESS_SECONDS
        self._warned: str | None = None

    # What clients do

    def require_room(self, client: str) -> None:
        """Raise `BusyError` if no more jobs of `client` may wait."""
        with self._lock:
            limits, waiting = self._limits, self._queue.count()
            if waiting >= limits.waiting:
                raise BusyError(f"{waiting} jobs wait already; try again later", self._retry_after())
            own = self._queue.count(client)
            if own >= limits.waiting_per_client:
                raise BusyError(f"{own} of your jobs wait already; try again later", self._retry_after())

    def add(self, job: LiveJob, is_new: bool = True) -> Job:
        """Put a job into the queue, and into the store if it `is_new`. Raises `BusyError`, `OutputError`."""
        with self._lock:
            if is_new:
                self.require_room(job.record.client)
                self._store.add_job(job.record)
            self._live[job.id] = job
            self._queue.add(job.record.client, job)
            view = self.view(job.record)
            self._tell(view)
        return view

    def cancel(self, id: Id) -> Job | None:
        """End a live job; None if it isn't live."""
        with self._lock:
            job = self._live.get(id)
            return None if job is None else self._end(job, Status.CANCELLED)

    def live(self, id: Id) -> LiveJob | None:
        with self._lock:
            return self._live.get(id)

    def waiting(self) -> list[LiveJob]:
        """Jobs with clips that nobody makes yet, the next one first."""
        with self._lock:
            return self._queue.order()

    def view(self, record: JobRecord) -> Job:
        """A job of the store, as it is now."""
        with self._lock:
            job = self._live.get(record.id)
            position = progress = None
            speed, clips = record.speed, [_clip_view(clip, clip.shape) for clip in record.clips if clip.shape]
            if job is not None:
                order = self._queue.order() if job.record.status is Status.QUEUED else []
                position = order.index(job) if job in order else None
                progress, speed = job.progress, job.speed
                clips = [
                    _clip_view(clip, live.shape)
                    for clip, live in zip(job.record.clips, job.clips, strict=False)
                ]
                record = replace(record, status=job.record.status, error=job.record.error)
            elif record.id in self._unrecorded:
                ended = self._unrecorded[record.id]
                record = replace(record, status=ended.status, error=ended.error)
            return Job(
                id=record.id,
                status=record.status,
                created=record.created,
                position=position,
                progress=progress,
                speed=speed,
                error=record.error,
                title=record.title,
                favourite=record.favourite,
                recipe=record.recipe,
                command=record.command,
                clips=clips,
            )

    def tell(self, id: Id) -> Job:
        """Publish a job as it is now. Raises `NotFoundError`."""
        # One step, or what was read before the job's end would be published after it.
        with self._lock:
            view = self.get(id)
            self._tell(view)
            return view

    def get(self, id: Id) -> Job:
        """A job as it is now. Raises `NotFoundError`."""
        with self._lock:
            return self.view(self._store.job(id))

    def page(self, before: str | None, limit: int, query: str, favourite: bool | None) -> JobPage:
        """The newest jobs as they are now. Raises `InvalidFieldError`."""
        with self._lock:
            records, following = self._store.page(before, limit, query, favourite)
            return JobPage(jobs=[self.view(record) for record in records], before=following)

    # What the thread that generates does

    def size(self, model_name: str, model: GenModel, jobs: Iterable[LiveJob] | None = None) -> None:
        """A model is loaded: from now on it is known how long the clips of `jobs` (default: all) will be."""
        with self._lock:
            for job in self._live.values() if jobs is None else jobs:
                if job.model == model_name and not job.clips:
                    job.size(model)
                    job.changed.notify()
                    if job.id in self._live:
                        self.tell(job.id)

    def start(self, takes: Sequence[tuple[LiveJob, int]]) -> None:
        """These takes are made now."""
        with self._lock:
            jobs = list(dict.fromkeys(job for job, _ in takes))
            for job in jobs:
                job.taken += sum(other is job for other, _ in takes)
                if job.taken == len(job.recipe.clips):
                    self._queue.remove(job.record.client, job)
                if job.record.status is Status.QUEUED:
                    job.record = replace(job.record, status=Status.RUNNING)
                    self._record(job.record)
            self._queue.served(job.record.client for job in jobs)
            for job in [*jobs, *self._queue.order()[:_TOLD]]:
                if job.is_live:
                    self.tell(job.id)

    def advance(self, job: LiveJob, progress: Progress, speed: float) -> None:
        """So much of a job's batch is done."""
        job.progress, job.speed = progress, speed
        self._events.publish("progress", {"id": job.id, "progress": progress.model_dump(), "speed": speed})

    def tell_peaks(self, clip: Id, start: int, peaks: bytes) -> None:
        if peaks:
            self._events.publish("peaks", {"id": clip, "start": start, "peaks": list(peaks)})

    def finish(self, job: LiveJob, seconds: float) -> None:
        """A job's files are all there, unless it was cancelled meanwhile; `seconds` is what it took."""
        with self._lock:
            if not job.is_live:
                return
            self._job_seconds += 0.2 * (seconds - self._job_seconds)
            clips = [job.finished[number] for number in sorted(job.finished)]
            clips.sort(key=lambda made: made[0].score or 0.0)  # of loops the best first
            self._store.set_done(job.id, job.speed, clips)
            job.record = replace(job.record, status=Status.DONE, clips=tuple(clip for clip, _ in clips))
            self._forget(job)
            self.tell(job.id)

    def fail(self, job: LiveJob, message: str) -> None:
        with self._lock:
            if job.is_live:
                self._end(job, Status.FAILED, message)

    def record_rest(self) -> None:
        """Try again to store what couldn't be."""
        with self._lock:
            for record in list(self._unrecorded.values()):
                del self._unrecorded[record.id]
                self._record(record)

    def warn(self, message: str) -> None:
        """Log what is wrong with the disk: not again before something could be stored."""
        with self._lock:
            if message != self._warned:
                self._warned = message
                _log.warning("%s", message)

    def stop(self, message: str) -> None:
        """Those that are made fail; those that wait stay in the store."""
        with self._lock:
            for job in list(self._live.values()):
                if job.record.status is Status.RUNNING:
                    self._end(job, Status.FAILED, message)
                else:
                    self._forget(job)

    def _end(self, job: LiveJob, status: Status, error: str | None = None) -> Job:
        job.record = replace(job.record, status=status, error=error)
        self._record(job.record)
        self._queue.remove(job.record.client, job)
        self._forget(job)
        try:
            return self.tell(job.id)
        except NotFoundError:  # removed meanwhile
            return self.view(job.record)

    def _forget(self, job: LiveJob) -> None:
        self._live.pop(job.id, None)
        for clip in job.clips:
            clip.end()
        job.changed.notify()

    def _record(self, record: JobRecord) -> None:
        """Store a job's status, or at least remember it."""
        try:
            self._store.set_status(record.id, record.status, record.error)
        except MusicGenError as error:
            self.warn(str(error))
            if not record.status.is_live:
                self._unrecorded[record.id] = record
        else:
            self._warned = None

    def _tell(self, view: Job) -> None:
        self._events.publish("job", view.model_dump(mode="json", by_alias=True))

    def _retry_after(self) -> int:
        """Seconds until one of the waiting jobs has gone, as far as can be guessed."""
        return max(1, min(3600, math.ceil(self._job_seconds)))


def clip_shape(model: GenModel, recipe: Recipe) -> AudioShape:
    """Of a clip as it is streamed: at the model's rate, with what it continues; of an edit the part."""
    samples, channels = new_samples(model, recipe.clips[0]), model.audio_channels
    source = recipe.audio.get("source")
    if source is not None and recipe.request.edit is not None:
        channels = max(channels, source.shape.channels)
    elif source is not None:
        samples += recipe.kept_samples * model.sample_rate // source.shape.sample_rate
        channels = max(channels, source.shape.channels)
    return AudioShape(model.sample_rate, channels, samples)


def _clip_view(clip: ClipRecord, shape: AudioShape) -> Clip:
    address = f"/api/clips/{clip.id}"
    return Clip(
        id=clip.id,
        seed=clip.seed,
        duration=shape.duration,
        sample_rate=shape.sample_rate,
        channels=shape.channels,
        audio=f"{address}/audio",
        stream=f"{address}/stream",
        peaks=f"{address}/peaks",
        stems={name: f"{address}/stems/{name}" for name in clip.stems},
    )
