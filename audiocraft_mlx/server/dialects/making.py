"""What the dialects share: a request of theirs becomes a job, and its first clip the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from audiocraft_mlx.server.answers import JobEndedError
from audiocraft_mlx.server.context import Context, client_of, unless_gone
from audiocraft_mlx.server.models import SHORT_OF
from audiocraft_mlx.server.responses import AudioStream, audio_file
from audiocraft_mlx.server.schema import Id, Job, JobRequest, Status
from audiocraft_mlx.server.streaming import ClipEndedEarly, ClipStream, StreamFormat

JOB_HEADER = "X-Job-Id"


class Extras(BaseModel):
    """Fields of our own, as in `JobRequest`: a client sends them as `extra_body`."""

    # Fields of theirs that mean nothing here, today's and later ones, are no errors.
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    duration: float | None = Field(None, description="Seconds to generate")
    seed: int | None = None
    melody: Id | None = None
    melody_separation: str | None = None
    style: Id | None = None
    style_coef: float | None = None
    source: Id | None = Field(None, alias="continue")
    continue_at: float | None = None
    prompt_seconds: float | None = None
    edit: Id | None = None
    replace: str | None = None
    candidates: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cfg_coef: float | None = None
    normalize: str | None = None
    lufs: float | None = None
    fade_out: float | None = None
    ending: str | None = None

    def to_job(self, prompt: str, model: str | None, **more: Any) -> JobRequest:
        given = self.model_dump(include=set(Extras.model_fields), exclude_none=True)
        return JobRequest(prompt=prompt, model=model, **(given | more))


async def known_model(context: Context, name: str | None) -> str | None:
    """`name` if it is one of our models, else None, the default: ids of others' models mean that."""
    models = await run_in_threadpool(context.service.models)
    short = None if name is None else SHORT_OF.get(name, name)
    return short if short in {model.name for model in models} else None


async def answer_with_stream(
    context: Context, request: Request, wanted: JobRequest, audio_format: StreamFormat, sse: bool = False
) -> Response:
    """The clip from its first chunk on.

    What needs the whole clip (a level, an ending) is waited for. The job is cancelled if the client goes.

    Raises:
        JobEndedError: before the first chunk; afterwards the connection is closed.
    """
    job = await run_in_threadpool(context.service.submit, wanted, client_of(request))
    cancel = _canceller(context, job)
    try:
        stream = await unless_gone(request, _open(context, job, wanted, audio_format))
        chunks = stream.chunks()
        # The first chunk, so that a failure before it is an answer with its reason.
        first = await unless_gone(request, _first_chunk(context, job, chunks))
    except BaseException:
        await cancel()
        raise
    body = _joined(first, chunks)
    headers = {JOB_HEADER: job.id, "Cache-Control": "no-store"}
    if sse:
        return AudioStream(_as_events(body), "text/event-stream", headers=headers, if_cut_off=cancel)
    if stream.length is not None:
        headers["Content-Length"] = str(stream.length)
    return AudioStream(body, stream.format.media_type, headers=headers, if_cut_off=cancel)


async def answer_with_file(
    context: Context, request: Request, wanted: JobRequest, audio_format: str
) -> Response:
    """The whole clip, as a file with its length. The job is cancelled if the client goes."""
    job = await run_in_threadpool(context.service.submit, wanted, client_of(request))
    cancel = _canceller(context, job)
    try:
        job = await unless_gone(request, context.service.wait(job.id))
        if job.status is not Status.DONE:
            raise JobEndedError(job)
        path = await context.work(context.service.clip_file, job.clips[0].id, audio_format)
    except BaseException:
        await cancel()
        raise
    answer = audio_file(path)
    answer.headers[JOB_HEADER] = job.id
    answer.headers["Cache-Control"] = "no-store"
    return answer


async def _open(context: Context, job: Job, wanted: JobRequest, audio_format: StreamFormat) -> ClipStream:
    service = context.service
    if (
        wanted.normalize != "none"
        or wanted.fade_out is not None
        or wanted.ending not in (None, "cut")
        or wanted.edit is not None
    ):
        job = await service.wait(job.id)
    else:
        job = await service.wait_for_clips(job.id)
    if not job.clips or job.status in (Status.FAILED, Status.CANCELLED):
        raise JobEndedError(job)
    return ClipStream(await run_in_threadpool(service.clip_audio, job.clips[0].id), audio_format)


async def _first_chunk(context: Context, job: Job, chunks: AsyncGenerator[bytes, None]) -> bytes:
    """A WAV's header alone comes before anything is generated: it doesn't count."""
    data = b""
    try:
        while len(data) < 64:
            data += await anext(chunks)
    except ClipEndedEarly:
        raise JobEndedError(await context.service.wait(job.id)) from None
    except StopAsyncIteration:
        pass
    return data


async def _joined(first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk


async def _as_events(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """As OpenAI streams audio in server-sent events."""

    def event(kind: str, **values: object) -> bytes:
        return f"data: {json.dumps({'type': kind, **values})}\n\n".encode()

    async with aclosing(chunks):
        async for chunk in chunks:
            yield event("speech.audio.delta", audio=base64.b64encode(chunk).decode())
    # There are no tokens of theirs to be paid for.
    yield event("speech.audio.done", usage={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})


def _canceller(context: Context, job: Job) -> Callable[[], Awaitable[None]]:
    async def cancel() -> None:
        # Not `delete`, which removes a job that ends at this moment. At the end the service cancels all
        # itself, and may be closed by now.
        if not context.stopping.is_set():
            await run_in_threadpool(context.service.cancel, job.id)

    return cancel
