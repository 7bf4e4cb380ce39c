"""Errors as answers: one shape, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError
from audiocraft_mlx.server.errors import public_message
from audiocraft_mlx.server.schema import ErrorAnswer, ErrorBody, Job, Status
from audiocraft_mlx.server.service import BusyError, InvalidFieldError, NotFoundError

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is at fault"},
    "5XX": {"model": ErrorAnswer, "description": "The server is"},
}
"""What every route may answer, for OpenAPI."""

_log = logging.getLogger("musicgen_mlx.server")
_INVALID = "invalid_request_error"
_MOST_CHARACTERS = 1000
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class JobEndedError(MusicGenError):
    """The job of a request that waits for it failed or was cancelled."""

    def __init__(self, job: Job) -> None:
        self.cancelled = job.status is Status.CANCELLED
        super().__init__("the job was cancelled" if self.cancelled else job.error or "the job failed")


class UnsupportedError(MusicGenError):
    """Something that an interface of others has and this server has not."""

    def __init__(self, message: str, param: str, status: int = 422) -> None:
        super().__init__(message)
        self.param, self.status = param, status


class ClientGoneError(Exception):
    """The client closed the connection while its job was waited for."""


def error_answer(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    kind = _TYPES.get(status, _INVALID if status < 500 else "server_error")
    if len(message) > _MOST_CHARACTERS:  # it may have a value of the request
        message = f"{message[:_MOST_CHARACTERS]}..."
    answer = ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code))
    # Half of a surrogate pair can't be sent.
    answer = ErrorAnswer.model_validate_json(answer.model_dump_json())
    return JSONResponse(answer.model_dump(), status, headers)


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(MusicGenError)
    async def of_ours(request: Request, error: MusicGenError) -> JSONResponse:
        return _of_ours(error)

    @app.exception_handler(RequestValidationError)
    async def of_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_fields(error)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        message, headers = str(error.detail), dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods_at(request))  # the router's has those of one route only
        if message == HTTPStatus(error.status_code).phrase:
            message = f"{request.method} {request.url.path}: {message.lower()}"
        return error_answer(error.status_code, message, headers=headers)

    @app.exception_handler(ClientGoneError)
    async def of_nobody(request: Request, error: ClientGoneError) -> JSONResponse:
        return error_answer(499, "the client is gone")


def _methods_at(request: Request) -> list[str]:
    """Of all routes with the path of a request."""
    routes: list[Route] = request.app.state.routes
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})


class BugAnswers:
    """Answers 500 if there was no answer yet, and logs the traceback.

    FastAPI's own would be around `Security`, which adds headers to all answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            if started or scope["type"] != "http":
                raise  # the connection is closed, and the traceback logged
            _log.exception("%s %s", scope["method"], scope["path"])
            await error_answer(500, "the server made a mistake; its log says more")(scope, receive, send)


def _of_ours(error: MusicGenError) -> JSONResponse:
    message = str(error)
    if isinstance(error, NotFoundError):
        return error_answer(404, message, error.param, "not_found")
    if isinstance(error, BusyError):
        retry = {"Retry-After": str(max(1, error.retry_after))}
        return error_answer(429, message, code="too_many_jobs", headers=retry)
    if isinstance(error, UnsupportedError):
        return error_answer(error.status, message, error.param, "unsupported")
    if isinstance(error, UsageError):
        param = error.param if isinstance(error, InvalidFieldError) else None
        return error_answer(422, message, param, "invalid_value")
    if isinstance(error, OutputError):
        if message != public_message(error):
            _log.warning("%s", message)
        return error_answer(507, public_message(error), code="disk")
    if isinstance(error, JobEndedError):
        return error_answer(409 if error.cancelled else 500, message, code="job_ended")
    return error_answer(500, message)


def _of_fields(error: RequestValidationError) -> JSONResponse:
    """The first invalid field."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "json_invalid":
        return error_answer(422, "the body isn't valid JSON", code="invalid_json")
    # "body" or "query" comes first; what a union tried is no field.
    names = place[1:] if place[:1] and place[0] in ("body", "query", "path", "header") else place
    param = ".".join(names) or None
    message = first["msg"][:1].lower() + first["msg"][1:]
    return error_answer(422, f"{shown_text(param) if param else 'the body'}: {message}", param, first["type"])
