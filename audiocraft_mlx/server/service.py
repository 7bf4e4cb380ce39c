"""What every route calls. It knows nothing of HTTP."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from pydantic import ValidationError

from audiocraft_mlx.audio.formats import BIT_DEPTHS
from audiocraft_mlx.clips.metadata import read_metadata
from audiocraft_mlx.clips.planning import count_tokens
from audiocraft_mlx.clips.requests import FieldError
from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError
from audiocraft_mlx.files import write_error
from audiocraft_mlx.server.engine import Engine
from audiocraft_mlx.server.errors import BusyError, InvalidFieldError, NotFoundError
from audiocraft_mlx.server.events import Broadcaster
from audiocraft_mlx.server.folder import DataFolder, new_id
from audiocraft_mlx.server.foreign_tags import read_foreign_metadata
from audiocraft_mlx.server.history import TRASH_SECONDS, empty_trash, rebuild, tidy_at_start
from audiocraft_mlx.server.jobs import Jobs, LiveJob
from audiocraft_mlx.server.live import ClipAudio, FileAudio, LiveAudio
from audiocraft_mlx.server.models import Models, describe_failure
from audiocraft_mlx.server.recipes import AudioFile, Recipe, invalid_field, make_recipe, request_of
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
    Status,
)
from audiocraft_mlx.server.settings import Limits, ServerSettings
from audiocraft_mlx.server.store import STOPPED, AudioRecord, ClipRecord, JobRecord, Store, damaged, now
from audiocraft_mlx.server.uploads import copy_file, measure_audio, require_audio
from audiocraft_mlx.version import __version__

__all__ = [
    "BusyError",
    "ClipAudio",
    "InvalidFieldError",
    "Limits",
    "NotFoundError",
    "ServerSettings",
    "Service",
    "rebuild",
]

_log = logging.getLogger(__name__)
_STOP_SECONDS = 0.8
_MOST_JOBS = 200
"""Of a page."""


class Service:
    """Jobs, clips, audio and models.

    All methods are thread-safe; those that aren't `async` may read the disk.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Open the data folder. Raises `UsageError` if another server uses it, `OutputError`."""
        self._settings = settings
        self._folder = DataFolder(settings.data)
        try:
            self._store = Store(self._folder.database)
            tidy_at_start(self._folder, self._store)
            self._clock, self._created = Lock(), self._store.last_created()
            queued = self._store.jobs_with_status(Status.QUEUED)
        except BaseException as error:
            self._folder.close()
            if isinstance(error, OSError):
                raise write_error(settings.data, error) from error
            if isinstance(error, (sqlite3.DatabaseError, ValidationError)):
                raise damaged(self._folder.database, error) from error
            raise
        self._events = Broadcaster()
        self._models = Models(
            settings.model,
            settings.allow_downloads,
            lambda models: self._events.publish("models", [model.model_dump() for model in models]),
            settings.lora,
        )
        self._jobs = Jobs(self._store, self._events, settings.limits)
        self._engine = Engine(self._jobs, self._models, self._folder, self._tidy)
        for record in queued:
            self._queue_again(record)

    def start(self) -> None:
        """Start the engine's thread: it loads the default model at once."""
        self._engine.load(self._models.default)
        self._engine.start()

    def close(self) -> None:
        """Cancel what is made, and stop within a second."""
        self._events.close()
        self._engine.stop(_STOP_SECONDS)
        self._jobs.stop(STOPPED)
        self._store.close()
        self._folder.close()

    # Jobs

    def submit(self, request: JobRequest, client: str) -> Job:
        """Raises `InvalidFieldError`, `NotFoundError`, `BusyError`, `OutputError` (the disk is full)."""
        self._jobs.require_room(client)
        recipe = self._recipe(request, self._settings.limits)
        self._check_model(recipe)
        self._check_disk()
        with self._clock:
            self._created = created = now(self._created)
        record = JobRecord(
            id=new_id(),
            created=created,
            client=client,
            status=Status.QUEUED,
            recipe=recipe.request,
            command=recipe.command,
            clips=tuple(ClipRecord(new_id(), clip.seed) for clip in recipe.clips),
        )
        job = LiveJob(record, recipe)
        model = self._models.loaded(job.model)
        if model is not None:
            job.size(model)
        view = self._jobs.add(job)
        self._engine.wake()
        if model is None and (model := self._models.loaded(job.model)) is not None:  # just now
            self._jobs.size(job.model, model, [job])
            return self.job(job.id)
        return view

    def jobs(
        self, before: str | None = None, limit: int = 50, query: str = "", favourite: bool | None = None
    ) -> JobPage:
        """Raises `InvalidFieldError`."""
        if not 1 <= limit <= _MOST_JOBS:
            raise InvalidFieldError(f"limit must be an integer from 1 to {_MOST_JOBS}, not {limit}", "limit")
        return self._jobs.page(before, limit, query, favourite)

    def job(self, id: Id) -> Job:
        return self._jobs.get(id)

    def change(self, id: Id, change: JobChange) -> Job:
        values = {name: getattr(change, name) for name in change.model_fields_set}
        if "title" in values:
            values["title"] = values["title"] or None
        if values.get("favourite", False) is None:
            del values["favourite"]
        self._store.change(id, **values)
        return self._jobs.tell(id)

    def delete(self, id: Id) -> Job:
        """Cancel a live job; remove another one, which `restore` brings back for a while."""
        cancelled = self._jobs.cancel(id)
        if cancelled is not None:
            return cancelled
        job = self.job(id)
        self._store.set_trashed(id, time.time())
        self._events.publish("removed", {"id": id})
        return job

    def cancel(self, id: Id) -> Job | None:
        """Cancel a live job; one that isn't live stays as it is: None."""
        return self._jobs.cancel(id)

    def restore(self, id: Id) -> Job:
        self._store.job(id, trashed=True)
        self._store.set_trashed(id, None)
        return self._jobs.tell(id)

    async def wait(self, id: Id) -> Job:
        """The job when it isn't live any more."""
        job = self._jobs.live(id)
        if job is not None:
            await job.changed.wait_until(lambda: not job.is_live)
        return self.job(id)

    async def wait_for_clips(self, id: Id) -> Job:
        """The job as soon as its `clips` are known, or it isn't live any more."""
        job = self._jobs.live(id)
        if job is not None:
            await job.changed.wait_until(lambda: bool(job.clips) or not job.is_live)
        return self.job(id)

    # Clips

    def clip_file(self, id: Id, format: str | None = None, stem: str | None = None) -> Path:
        """Its file, in its own format or another one (wav, flac, mp3, ogg). With tags.

        Raises `NotFoundError`: also if it isn't done yet.
        """
        from audiocraft_mlx.server.converting import convert_file

        if format is not None and format not in BIT_DEPTHS:
            raise InvalidFieldError(f"format must be one of {', '.join(BIT_DEPTHS)}", "format")
        job, clip = self._store.job_of_clip(id)
        if stem is not None and stem not in clip.stems:
            raise NotFoundError(f"the clip {id} has no stem {stem[:40]!r}")
        path = self._folder.clip_file(job.id, id, job.recipe.format, stem)
        if job.status is not Status.DONE or not path.is_file():
            raise NotFoundError(f"the clip {id} has no file: {_why_not(job)}")
        if format in (None, job.recipe.format):
            return path
        assert format is not None
        self._check_disk()
        try:
            converted = convert_file(path, self._folder.converted_file(id, format, stem), format)
        except UsageError as error:
            _log.warning("%s", error)
            raise NotFoundError(f"the clip {id} has no file that can be read: it is damaged") from error
        try:
            self._store.job_of_clip(id)
        except NotFoundError:  # removed meanwhile: nothing else would remove the file
            converted.unlink(missing_ok=True)
            raise
        return converted

    def clip_audio(self, id: Id) -> ClipAudio:
        job, clip = self._store.job_of_clip(id)
        live = self._jobs.live(job.id)
        if live is not None and live.clips:
            return LiveAudio(live.clips[job.clips.index(clip)])
        job, clip = self._store.job_of_clip(id)  # it may be done by now
        if clip.shape is None:
            raise NotFoundError(f"the clip {id} has no audio: {_why_not(job)}")
        return FileAudio(self.clip_file(id), clip.shape)

    def peaks(self, id: Id) -> Peaks:
        """So far, if it is being made."""
        job, clip = self._store.job_of_clip(id)
        live = self._jobs.live(job.id)
        if live is not None:
            peaks = live.clips[job.clips.index(clip)].peaks if live.clips else b""
            return Peaks(peaks=list(peaks))
        return Peaks(peaks=list(self._store.peaks(id)))

    # Uploads

    def add_audio(self, path: Path, name: str | None = None) -> Audio:
        """Decode the upload at `path` and keep it. Raises `UsageError`."""
        if name is not None:  # some clients give the whole path
            name = Path(name.encode("utf-8", "replace").decode().replace("\\", "/")).name[:200] or None
        shape = measure_audio(path, self._settings.limits.audio_seconds, name or "the audio")
        self._check_disk()
        id = new_id()
        copy_file(path, self._folder.audio_file(id))
        try:
            self._store.add_audio(AudioRecord(id, time.time(), name, shape))
        except MusicGenError:
            self._folder.remove_audio(id)
            raise
        return Audio(id=id, duration=shape.duration, sample_rate=shape.sample_rate, channels=shape.channels)

    def read_recipe(self, path: Path) -> AudioRecipe:
        """How the upload or clip at `path` was made. Raises `UsageError`: it is no audio file."""
        own = path.is_relative_to(self._folder.clips) or path.is_relative_to(self._folder.converted)
        try:
            metadata = read_metadata(path) if own else read_foreign_metadata(path)
            if metadata is None:
                require_audio(path, "the file")
                return AudioRecipe(recipe=None, command=None)
        except UsageError as error:
            raise UsageError(str(error).replace(str(path), "the file")) from error
        model = self._models.known_name(metadata.model, metadata.options.get("lora"))
        try:
            request = request_of(metadata, _format_of(path), model)
            found = AudioRecipe(recipe=request, command=metadata.to_command())
            found.model_dump_json()  # fails for half a surrogate pair
        except (ValueError, OverflowError) as error:
            raise UsageError("the file: its tags are damaged") from error
        return found

    # Models

    def models(self) -> list[ModelInfo]:
        return self._models.list()

    def load_model(self, name: str) -> ModelInfo:
        """Ask the engine to load it; an event tells when it is. Raises `NotFoundError`, `UsageError`."""
        name = self._models.name_of(name)
        self._models.require_available(name)
        if self._models.loaded(name) is None:
            self._engine.load(name)
        return self._models.info(name)

    # The rest

    def events(self, last_id: str | None = None) -> AsyncIterator[Event]:
        """Everything from now on, or after the event `last_id`."""
        return self._events.subscribe(last_id)

    def health(self) -> Health:
        limits = self._settings.limits
        return Health(
            version=__version__,
            model=self._models.default,
            device=_device(),
            hint=self._settings.hint,
            waiting=len(self._jobs.waiting()),
            limits={name: float(value) for name, value in vars(limits).items()},
            downloads=self._settings.allow_downloads,
        )

    def _recipe(self, request: JobRequest, limits: Limits | None) -> Recipe:
        name = self._models.name_of(request.model)
        request = request.model_copy(update={"model": name})
        return make_recipe(
            request, self._models.options(name), self._models.program(name), self._find_audio, limits
        )

    def _check_model(self, recipe: Recipe) -> None:
        name = recipe.request.model
        assert name is not None
        model = self._models.loaded(name)
        if model is not None and recipe.request.duration * model.frame_rate < 1:
            field = "duration" if recipe.request.edit is None else "replace"
            name_of_it = field if field == "duration" else "the part to replace"
            raise InvalidFieldError(
                f"{name_of_it} must be at least one frame, {1 / model.frame_rate:g} s", field
            )
        if model is not None:
            try:
                count_tokens(model, recipe.request.prompt)
            except UsageError as error:
                raise InvalidFieldError(str(error), "prompt") from error
        types = self._models.condition_types(name)
        if types is not None:
            try:
                recipe.clips[0].require_supported(types, name, self._models.fills_masks(name))
            except FieldError as error:
                raise invalid_field(error) from error
        try:
            self._models.require_available(name)
        except UsageError as error:
            raise InvalidFieldError(str(error), "model") from error

    def _find_audio(self, id: Id, field: str) -> AudioFile:
        """An upload or a clip. Raises `NotFoundError`, which names the field."""
        audio = self._store.audio(id)
        if audio is not None:
            return AudioFile(self._folder.audio_file(id), audio.name or id, audio.shape)
        with suppress(NotFoundError):
            path = self.clip_file(id)
            _, clip = self._store.job_of_clip(id)
            if clip.shape is not None:
                return AudioFile(path, path.name, clip.shape, is_clip=True)
        raise NotFoundError(f"{field}: there is no audio and no finished clip {id[:40]!r}", field)

    def _check_disk(self) -> None:
        self._folder.make_folders()
        if self._folder.free_bytes() < self._settings.limits.free_bytes:
            raise OutputError("the server's disk is almost full; free some space")

    def _queue_again(self, record: JobRecord) -> None:
        """A job of the server before this one."""
        try:
            recipe = self._recipe(record.recipe, None)
        except MusicGenError as error:
            self._store.set_status(record.id, Status.FAILED, describe_failure(error))
            return
        self._jobs.add(LiveJob(replace(record, recipe=recipe.request), recipe), is_new=False)

    def _tidy(self) -> None:
        """Between batches."""
        with suppress(OutputError):  # who needs one of them will say so
            self._folder.make_folders()
        self._jobs.record_rest()
        empty_trash(self._folder, self._store, time.time() - TRASH_SECONDS)


def _why_not(job: JobRecord) -> str:
    if job.status.is_live:
        return "it isn't done yet"
    return "it is gone" if job.status is Status.DONE else f"its job has {job.status.value}"


def _format_of(path: Path) -> str:
    from audiocraft_mlx.audio.read import read_info

    with suppress(UsageError):
        kind = read_info(path).description.split(",")[0].split(" ")[0].lower()
        return kind if kind in BIT_DEPTHS else "wav"
    return "wav"


def _device() -> str:
    import mlx.core as mx

    from audiocraft_mlx.machine import num_cpus

    if mx.default_device() == mx.gpu:
        return str(mx.device_info().get("device_name", "GPU"))
    count = num_cpus()
    return f"CPU, {count} processor{'s' if count > 1 else ''}"
