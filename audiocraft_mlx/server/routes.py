"""The own interface: jobs, clips, audio, models, events."""

from __future__ import annotations

import math
import re
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.server.answers import ERRORS
from audiocraft_mlx.server.context import Context, ContextOfApp, client_of
from audiocraft_mlx.server.event_stream import event_stream
from audiocraft_mlx.server.responses import AudioStream, audio_file, stream_clip
from audiocraft_mlx.server.schema import (
    Audio,
    AudioRecipe,
    Health,
    Job,
    JobChange,
    JobPage,
    JobRequest,
    ModelInfo,
    Peaks,
)
from audiocraft_mlx.server.service import NotFoundError, Service
from audiocraft_mlx.server.streaming import ClipStream, StreamFormat

router = APIRouter(responses=ERRORS)

_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_AUDIO = {"schema": {"type": "string", "format": "binary"}}
_NAME_CHARACTERS = 60


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise NotFoundError("there is nothing with this id")
    return value


OpaqueId = Annotated[str, AfterValidator(_check_id), Path(description="22 characters")]
FileFormat = Literal["wav", "flac", "mp3", "ogg"]


def _audio_answers(*media_types: str, ranges: bool = True) -> dict[int | str, dict[str, Any]]:
    content = dict.fromkeys(media_types, _AUDIO)
    answers: dict[int | str, dict[str, Any]] = {200: {"description": "Audio", "content": content}}
    if ranges:
        answers[206] = {"description": "A part of it, by the header Range", "content": content}
    return answers


_FILES = _audio_answers("audio/wav", "audio/flac", "audio/mpeg", "audio/ogg")
_STREAMS = _audio_answers("audio/wav", "audio/mpeg", "audio/pcm")
_UPLOAD = {
    "requestBody": {"required": True, "content": {"application/octet-stream": _AUDIO, "audio/*": _AUDIO}}
}


@router.post("/api/jobs", status_code=202)
async def make(wanted: JobRequest, request: Request, response: Response, context: ContextOfApp) -> Job:
    """Queue a job."""
    job = await run_in_threadpool(context.service.submit, wanted, client_of(request))
    response.headers["Location"] = f"/api/jobs/{job.id}"
    return job


@router.get("/api/jobs")
def list_jobs(
    context: ContextOfApp,
    before: Annotated[str | None, Query(description="`before` of the page before", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    q: Annotated[str, Query(description="Words of the prompt or the title", max_length=200)] = "",
    favourite: bool | None = None,
) -> JobPage:
    """Jobs, the newest first."""
    return context.service.jobs(before, limit, q, favourite)


@router.get("/api/jobs/{id}")
def get_job(id: OpaqueId, context: ContextOfApp) -> Job:
    return context.service.job(id)


@router.patch("/api/jobs/{id}")
def change_job(id: OpaqueId, change: JobChange, context: ContextOfApp) -> Job:
    return context.service.change(id, change)


@router.delete("/api/jobs/{id}")
def delete_job(id: OpaqueId, context: ContextOfApp) -> Job:
    """Cancel a job that waits or runs; remove another one, which can be restored for a while."""
    return context.service.delete(id)


@router.post("/api/jobs/{id}/restore")
def restore_job(id: OpaqueId, context: ContextOfApp) -> Job:
    """Bring back a job that was removed."""
    return context.service.restore(id)


@router.get(
    "/api/events",
    response_class=Response,
    responses={200: {"description": "Events (`Event`)", "content": {"text/event-stream": {}}}},
)
async def get_events(
    context: ContextOfApp, last_event_id: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """All events, as server-sent events: from now on, or after the one in the header Last-Event-ID."""
    events = context.service.events(last_event_id or None)
    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return AudioStream(event_stream(events, context.stopping), "text/event-stream", headers=headers)


@router.head("/api/clips/{id}/audio", include_in_schema=False)
@router.get("/api/clips/{id}/audio", response_class=Response, responses=_FILES)
async def get_audio(
    id: OpaqueId,
    context: ContextOfApp,
    format: Annotated[FileFormat | None, Query(description="Default: that of its job")] = None,
    download: Annotated[bool, Query(description="To be saved under a name of its prompt")] = False,
) -> Response:
    """The file of a clip, once its job is done."""
    path = await _clip_file(context, id, format)
    return audio_file(path, await run_in_threadpool(_name, context.service, path) if download else None)


@router.head("/api/clips/{id}/stems/{name}", include_in_schema=False)
@router.get("/api/clips/{id}/stems/{name}", response_class=Response, responses=_FILES)
async def get_stem(
    id: OpaqueId,
    name: Annotated[str, Path(max_length=40)],
    context: ContextOfApp,
    format: FileFormat | None = None,
    download: bool = False,
) -> Response:
    """Drums, bass, other or vocals of a clip, if its job asked for them."""
    if not re.fullmatch(r"[a-z]+", name, re.ASCII):
        raise NotFoundError("there is no such stem")
    path = await _clip_file(context, id, format, name)
    if not download:
        return audio_file(path)
    return audio_file(path, await run_in_threadpool(_name, context.service, path, name))


@router.head("/api/clips/{id}/stream", include_in_schema=False)
@router.get("/api/clips/{id}/stream", response_class=Response, responses=_STREAMS)
async def get_stream(
    id: OpaqueId,
    request: Request,
    context: ContextOfApp,
    format: Literal["pcm", "wav", "mp3"] = "wav",
    start: Annotated[float, Query(description="Seconds", ge=0, le=1e6, allow_inf_nan=False)] = 0.0,
) -> Response:
    """The audio of a clip from its first chunk on, as it is generated, or afterwards.

    pcm has 16 bits, little endian, with the clip's sample rate and channels. Its length, and that of wav, are
    known beforehand; ranges of both can be asked for at any time, and come when they are there.
    """
    clip = await run_in_threadpool(context.service.clip_audio, id)
    stream = ClipStream(clip, StreamFormat(format), math.floor(start * clip.sample_rate))
    return stream_clip(request, stream, f'"{"file" if clip.is_file else "live"}-{id}"')


@router.get("/api/clips/{id}/peaks")
def get_peaks(id: OpaqueId, context: ContextOfApp) -> Peaks:
    """The waveform to draw: so far, if the clip is being generated."""
    return context.service.peaks(id)


@router.post("/api/audio", status_code=201, openapi_extra=_UPLOAD)
async def add_audio(
    request: Request,
    context: ContextOfApp,
    name: Annotated[str | None, Query(description="The file's name, to be shown", max_length=200)] = None,
) -> Audio:
    """Upload audio to continue, or whose melody or style is to be followed; a melody may be MIDI, too.

    The body is the file.
    """
    shown = None if name is None else FilePath(name.replace("\\", "/")).name or None
    async with context.uploads.receive(request) as path:
        return await context.work(context.service.add_audio, path, shown)


@router.post("/api/recipe", openapi_extra=_UPLOAD)
async def read_recipe(request: Request, context: ContextOfApp) -> AudioRecipe:
    """How an audio file was made, by its tags. The body is the file, which isn't kept."""
    async with context.uploads.receive(request) as path:
        return await context.work(context.service.read_recipe, path)


@router.get("/api/models")
def list_models(context: ContextOfApp) -> list[ModelInfo]:
    return context.service.models()


@router.post("/api/models/{name:path}/load", status_code=202)
def load_model(name: str, context: ContextOfApp) -> ModelInfo:
    """Load a model. An event tells when it is loaded."""
    return context.service.load_model(name)


@router.get("/health")
def get_health(context: ContextOfApp) -> Health:
    return context.service.health().model_copy(update={"token": context.needs_token})


async def _clip_file(context: Context, id: str, format: str | None, stem: str | None = None) -> FilePath:
    """`Service.clip_file`, which waits for its turn only if it has to convert the file."""
    path = await run_in_threadpool(context.service.clip_file, id, None, stem)
    if format is None or path.suffix == f".{format}":
        return path
    return await context.work(context.service.clip_file, id, format, stem)


def _name(service: Service, path: FilePath, stem: str | None = None) -> str:
    """A file's name by what its tags say: the prompt and the seed."""
    try:
        recipe = service.read_recipe(path).recipe
    except UsageError:
        recipe = None
    words = [] if recipe is None else re.findall(r"\w+", recipe.prompt)
    name = " ".join(words)[:_NAME_CHARACTERS].strip() or "music"
    if recipe is not None and recipe.seed is not None:
        name += f" {recipe.seed}"
    return name + (f" {stem}" if stem else "") + path.suffix
