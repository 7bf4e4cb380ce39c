"""OpenAI's audio interface (https://platform.openai.com/docs/api-reference/audio/createSpeech)."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from audiocraft_mlx.server.answers import ERRORS, UnsupportedError
from audiocraft_mlx.server.context import ContextOfApp
from audiocraft_mlx.server.dialects.making import Extras, answer_with_file, answer_with_stream, known_model
from audiocraft_mlx.server.service import NotFoundError
from audiocraft_mlx.server.streaming import StreamFormat

router = APIRouter(prefix="/v1", responses=ERRORS)

_FORMATS = {
    "mp3": StreamFormat("mp3"),
    "opus": StreamFormat("opus"),
    "wav": StreamFormat("wav"),
    # What their clients play it as.
    "pcm": StreamFormat("pcm", 24_000, 1),
}
_STARTED = int(time.time())


class Speech(Extras):
    input: str = Field(description="What to play")
    model: str = Field("", description="One of ours; any other name is the default one")
    voice: Any = Field(None, description="Ignored, as are `instructions` and `speed`")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "musicgen-mlx"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


_AUDIO = {"schema": {"type": "string", "format": "binary"}}
_KINDS = ("audio/mpeg", "audio/ogg", "audio/flac", "audio/wav", "audio/pcm", "text/event-stream")


@router.post(
    "/audio/speech",
    response_class=Response,
    responses={200: {"description": "Audio", "content": dict.fromkeys(_KINDS, _AUDIO)}},
)
async def create_speech(speech: Speech, request: Request, context: ContextOfApp) -> Response:
    """Music from a description. mp3, opus, wav and pcm (24 kHz, mono) are sent while they are generated."""
    if speech.response_format == "aac":
        message = "aac can't be written; choose mp3, opus, flac, wav or pcm"
        raise UnsupportedError(message, "response_format", 400)
    wanted = speech.to_job(speech.input, await known_model(context, speech.model))
    if speech.response_format == "flac":
        if speech.stream_format == "sse":
            message = "flac isn't sent in events; choose mp3, opus, wav or pcm"
            raise UnsupportedError(message, "stream_format", 400)
        return await answer_with_file(context, request, wanted, "flac")
    audio_format = _FORMATS[speech.response_format]
    return await answer_with_stream(context, request, wanted, audio_format, speech.stream_format == "sse")


@router.get("/models")
async def list_models(context: ContextOfApp) -> ModelList:
    models = await run_in_threadpool(context.service.models)
    return ModelList(data=[Model(id=model.name, created=_STARTED) for model in models])


@router.get("/models/{model:path}")
async def get_model(model: str, context: ContextOfApp) -> Model:
    if await known_model(context, model) is None:
        raise NotFoundError("there is no such model")
    return Model(id=model, created=_STARTED)
