"""ElevenLabs' sound effects and music (https://elevenlabs.io/docs/api-reference/text-to-sound-effects/convert)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.server.answers import ERRORS, UnsupportedError
from audiocraft_mlx.server.context import ContextOfApp
from audiocraft_mlx.server.dialects.making import Extras, answer_with_stream, known_model
from audiocraft_mlx.server.service import InvalidFieldError
from audiocraft_mlx.server.streaming import StreamFormat

router = APIRouter(prefix="/v1", responses=ERRORS)

_DEFAULT_FORMAT = "mp3_44100_128"
_FORMAT = re.compile(r"(mp3|pcm|wav|opus|ulaw|alaw)_(\d{4,5})(?:_(\d{1,3}))?", re.ASCII)
_LOWEST_RATE, _HIGHEST_RATE = 8_000, 48_000
# Their default influence is our models' default guidance, and no influence is none.
_DEFAULT_INFLUENCE, _DEFAULT_GUIDANCE, _NO_GUIDANCE = 0.3, 3.0, 1.0
_AUDIO = {"schema": {"type": "string", "format": "binary"}}
_KINDS = ("audio/mpeg", "audio/ogg", "audio/wav", "audio/pcm", "audio/basic", "audio/x-alaw-basic")
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Audio", "content": dict.fromkeys(_KINDS, _AUDIO)}
}

OutputFormat = Annotated[
    str, Query(description="NAME_RATE or NAME_RATE_KBPS: mp3, pcm, wav, opus, ulaw or alaw", max_length=40)
]


class SoundEffect(Extras):
    text: str = Field(description="What to play")
    duration_seconds: float | None = None
    prompt_influence: float | None = Field(None, ge=0, le=1, description="0: none; 0.3: the model's guidance")
    model_id: str | None = None
    loop: bool | None = Field(None, description="Refused if true: a clip without a seam can't be made")


class Music(Extras):
    prompt: str | None = None
    composition_plan: Any = Field(None, description="Refused: describe the music in `prompt`")
    music_length_ms: int | None = Field(None, ge=1, le=10**9)
    model_id: str | None = None


@router.post("/sound-generation", response_class=Response, responses=_ANSWERS)
async def create_sound_effect(
    sound: SoundEffect, request: Request, context: ContextOfApp, output_format: OutputFormat = _DEFAULT_FORMAT
) -> Response:
    """A clip from a description, sent while it is generated."""
    audio_format = _parse_format(output_format)
    if sound.loop:
        raise UnsupportedError(
            "no clip can be made whose end leads into its beginning; leave loop out", "loop"
        )
    more: dict[str, Any] = {}
    if sound.duration_seconds is not None:
        more["duration"] = sound.duration_seconds
    if sound.prompt_influence is not None:
        more["cfg_coef"] = _guidance(sound.prompt_influence)
    wanted = sound.to_job(sound.text, await known_model(context, sound.model_id), **more)
    return await answer_with_stream(context, request, wanted, audio_format)


@router.post("/music", response_class=Response, responses=_ANSWERS)
@router.post("/music/stream", response_class=Response, responses=_ANSWERS)
async def compose(
    music: Music, request: Request, context: ContextOfApp, output_format: OutputFormat = _DEFAULT_FORMAT
) -> Response:
    """Music from a description, sent while it is generated."""
    audio_format = _parse_format(output_format)
    if music.composition_plan is not None:
        message = "a composition plan can't be followed; describe the music in prompt"
        raise UnsupportedError(message, "composition_plan")
    if music.prompt is None:
        raise InvalidFieldError("prompt: it is missing; say what to play", "prompt")
    more: dict[str, Any] = {}
    if music.music_length_ms is not None:
        more["duration"] = music.music_length_ms / 1000
    wanted = music.to_job(music.prompt, await known_model(context, music.model_id), **more)
    return await answer_with_stream(context, request, wanted, audio_format)


def _guidance(influence: float) -> float:
    return _NO_GUIDANCE + (_DEFAULT_GUIDANCE - _NO_GUIDANCE) * influence / _DEFAULT_INFLUENCE


def _parse_format(text: str) -> StreamFormat:
    """`mp3_44100_128` and its like. Raises `InvalidFieldError`."""
    match = _FORMAT.fullmatch(text)
    if match is None or not _LOWEST_RATE <= int(match[2]) <= _HIGHEST_RATE:
        message = f"output_format must be like {_DEFAULT_FORMAT}, pcm_16000 or opus_48000_64, not {text!r}"
        raise InvalidFieldError(message, "output_format")
    name, rate, kbps = match[1], int(match[2]), int(match[3]) if match[3] else None
    # A telephone's formats are mono, and so is what has no header that tells.
    channels = 1 if name in ("pcm", "ulaw", "alaw") else None
    try:
        return StreamFormat(name, rate, channels, kbps)
    except UsageError as error:
        raise InvalidFieldError(f"output_format: {error}", "output_format") from error
