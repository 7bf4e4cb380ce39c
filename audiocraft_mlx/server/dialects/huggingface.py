"""What `huggingface_hub.InferenceClient` sends to an endpoint of its own (text-to-speech, text-to-audio)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from audiocraft_mlx.server.answers import ERRORS
from audiocraft_mlx.server.context import ContextOfApp
from audiocraft_mlx.server.dialects.making import Extras, answer_with_file, known_model

router = APIRouter(prefix="/hf", responses=ERRORS)

# Of MusicGen's codec: what a token is in transformers.
_TOKENS_PER_SECOND = 50
_AUDIO = {"schema": {"type": "string", "format": "binary"}}


class Parameters(Extras):
    max_new_tokens: int | None = Field(None, ge=1, le=10**9, description=f"{_TOKENS_PER_SECOND} are a second")
    do_sample: bool | None = Field(None, description="false: always the most likely code")
    guidance_scale: float | None = Field(None, description="As `cfg_coef`")


class TextToAudio(BaseModel):
    model_config = ConfigDict(extra="ignore")

    inputs: str = Field(description="What to play")
    parameters: Parameters | None = None


@router.post(
    "/{model:path}",
    response_class=Response,
    responses={
        200: {
            "description": "FLAC",
            "content": {"audio/flac": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def text_to_audio(model: str, body: TextToAudio, request: Request, context: ContextOfApp) -> Response:
    """Music from a description. A model that isn't one of ours is the default one."""
    parameters = body.parameters or Parameters.model_validate({})
    more: dict[str, float] = {}
    if parameters.duration is None and parameters.max_new_tokens is not None:
        more["duration"] = parameters.max_new_tokens / _TOKENS_PER_SECOND
    if parameters.guidance_scale is not None:
        more["cfg_coef"] = parameters.guidance_scale
    if parameters.do_sample is False:
        more["temperature"] = 0.0
    wanted = parameters.to_job(body.inputs, await known_model(context, model), **more)
    return await answer_with_file(context, request, wanted, "flac")
