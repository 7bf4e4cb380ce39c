"""Who may call the server, with what: pure ASGI, around all routes.

The server makes files and runs for minutes for whoever reaches it. A page from elsewhere in the user's
browser reaches 127.0.0.1, too: directly (CSRF), or under a name of its own that leads there (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>\d{1,5}))?", re.ASCII)
# None of them can be sent by a page from elsewhere without asking first (CORS), which is never allowed.
_BODY_TYPES = re.compile(
    r"application/(?:[\w.-]+\+)?json|(?:audio|video)/[\w.+-]+|application/(?:ogg|octet-stream)"
)
_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json")
# Bodies go to a file there, and into memory everywhere else, whatever their type is.
_UPLOADS = frozenset({"/api/audio", "/api/recipe"})
# After a link from elsewhere a browser sends no SameSite=Strict cookie, but it does from this page.
_ONCE_MORE = (
    b'<!DOCTYPE html><meta http-equiv="refresh" content="0; url=/?token="><title>MusicGen MLX</title>'
)
_DRAIN_SECONDS = 2.0
_YEAR = 365 * 24 * 3600
_HEADERS = {
    # blob: is what the page itself recorded or drew.
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",  # the address may hold the token
    b"permissions-policy": b"microphone=(self), camera=(), geolocation=()",
}


@dataclass(frozen=True)
class SecuritySettings:
    hosts: frozenset[str] = LOOPBACK_NAMES
    """Names, in lower case, by which the server may be called."""
    any_address: bool = False
    """Numeric addresses too, which can't be rebound: for a server on a network."""
    token: str | None = None
    """That every request must have. None: none is needed."""
    body_bytes: int = 50_000_000
    """Of an upload."""
    json_bytes: int = 1_000_000
    """Of any other body, which is kept in memory."""
    connections: int = 100
    """Requests at a time, beside those of how the server is (`/health`)."""
    body_seconds: float = 30.0
    """Without anything of an unfinished body: it would hold its place for ever."""

    @property
    def cookie_name(self) -> str:
        # Cookies don't know ports: another server on this machine has another token.
        assert self.token is not None
        return f"musicgen-mlx-{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    @property
    def cookie_value(self) -> str:
        assert self.token is not None
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()


class Refusal(Exception):
    """A request that goes no further."""

    def __init__(
        self, status: int, message: str, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    async def send(self, send: Send) -> None:
        error = {"message": str(self), "type": self.kind, "param": None, "code": None}
        await _answer(send, self.status, json.dumps({"error": error}).encode(), self.headers)


class Security:
    def __init__(self, app: App, settings: SecuritySettings) -> None:
        self._app, self._settings = app, settings
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # a WebSocket, of which there are none
            return await send({"type": "websocket.close", "code": 1008})
        send = _with_headers(send)
        headers = Headers(scope)
        # What is answered before the body has come.
        early_send = _closing(send) if headers.has_body else send
        try:
            # Who watches the server has to know that it lives, most of all when it has much to do.
            asks_for_health = scope["path"] == "/health" and not headers.has_body
            if self._open >= self._settings.connections and not asks_for_health:
                raise Refusal(
                    503,
                    f"the server has {self._open} open requests; try again later",
                    "server_error",
                    {"Retry-After": "5", "Connection": "close"},
                )
            self._check_host(headers)
            _check_origin(scope, headers)
            if self._settings.token is not None:
                if not self._has_token(headers):
                    return await self._log_in(scope, headers, early_send)
                if _is_page(scope) and "token" in _query(scope):
                    # It must not stay in the address bar, also if the cookie is there already.
                    return await _answer(early_send, 303, b"", {"Location": "/"})
            limit = self._body_limit(scope, headers)
        except Refusal as refusal:
            if headers.has_body:
                early_send = _draining(early_send, receive, 2 * self._settings.body_bytes)
            return await refusal.send(early_send)
        is_endless = headers.get("transfer-encoding") != ""
        body = _LimitedBody(receive, limit, self._settings.body_seconds, is_endless)
        self._open += 1
        try:
            await body.run(self._app, scope, send)
        finally:
            self._open -= 1

    def _check_host(self, headers: Headers) -> None:
        given = headers.all("host")
        match = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        if match is None:
            raise Refusal(400, "the header Host is missing or invalid", "invalid_request_error")
        name = (match["v6"] or match["name"]).rstrip(".")
        if name in self._settings.hosts or (self._settings.any_address and _is_address(name)):
            return
        raise Refusal(
            403,
            f"this server isn't called {name}; if it should be, start it with --allowed-host {name}",
            "permission_error",
        )

    def _has_token(self, headers: Headers) -> bool:
        token = self._settings.token
        assert token is not None
        given = [headers.get("xi-api-key")]
        scheme, _, bearer = headers.get("authorization").partition(" ")
        if scheme.lower() == "bearer":
            given.append(bearer.strip())
        name, value = self._settings.cookie_name, self._settings.cookie_value
        cookies = [part.strip().partition("=") for line in headers.all("cookie") for part in line.split(";")]
        # All of them are compared, so that the time doesn't tell which was right.
        right = [_equal(text, token) for text in given]
        right += [_equal(cookie, value) for key, _, cookie in cookies if key == name]
        return any(right)

    async def _log_in(self, scope: Scope, headers: Headers, send: Send) -> None:
        """Take the token of the printed address and keep it as a cookie, or refuse."""
        settings = self._settings
        assert settings.token is not None
        query = _query(scope)
        if _is_page(scope) and _equal(query.get("token", ""), settings.token):
            cookie = (
                f"{settings.cookie_name}={settings.cookie_value}; Path=/; HttpOnly; SameSite=Strict; "
                f"Max-Age={_YEAR}"
            )
            if scope.get("scheme") == "https":
                cookie += "; Secure"
            return await _answer(send, 303, b"", {"Location": "/", "Set-Cookie": cookie})
        if _is_page(scope) and "token" not in query and headers.get("sec-fetch-site") == "cross-site":
            return await _answer(send, 401, _ONCE_MORE, {"Content-Type": "text/html; charset=utf-8"})
        message = (
            "the token is missing or wrong: open the address that the server printed when it started, or "
            "send the header 'Authorization: Bearer TOKEN'"
        )
        await Refusal(401, message, "authentication_error", {"WWW-Authenticate": "Bearer"}).send(send)

    def _body_limit(self, scope: Scope, headers: Headers) -> int:
        """How many bytes may follow. Raises `Refusal` for another type, or if it says that it has more."""
        length = headers.get("content-length")
        kind = headers.get("content-type").partition(";")[0].strip().lower()
        changes = scope["method"] not in _SAFE_METHODS
        if changes and (headers.has_body or kind) and not _BODY_TYPES.fullmatch(kind):
            raise Refusal(
                415,
                f"the content type must be application/json or that of audio, not {kind or 'missing'}",
                "invalid_request_error",
            )
        is_upload = scope["path"] in _UPLOADS and not _JSON_TYPE.fullmatch(kind)
        limit = self._settings.body_bytes if is_upload else self._settings.json_bytes
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit)
        return limit


class Headers:
    """A request's headers. Names in lower case."""

    def __init__(self, scope: Scope) -> None:
        self._headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key == name]

    def get(self, name: str) -> str:
        """The first one, or ""."""
        return next(iter(self.all(name)), "")

    @property
    def has_body(self) -> bool:
        return self.get("content-length") not in ("", "0") or self.get("transfer-encoding") != ""


class _LimitedBody:
    """A request's body, counted and timed while it is read."""

    def __init__(self, receive: Receive, limit: int, seconds: float, is_endless: bool) -> None:
        """`is_endless`: its length isn't known beforehand."""
        self._receive, self._left, self._limit, self._seconds = receive, limit, limit, seconds
        self._is_endless = is_endless
        self._refusal: Refusal | None = None
        self._answered = self._finished = False

    async def run(self, app: App, scope: Scope, send: Send) -> None:
        """Run `app` on it. If it is refused that is the answer, whatever the app makes of what it got."""

        async def checked_send(message: Message) -> None:
            if self._refusal is None:
                if message["type"] == "http.response.start":
                    self._answered = True
                await (_closing(send) if self._is_endless and not self._finished else send)(message)

        try:
            await app(scope, self._next, checked_send)
        except Exception:
            if self._refusal is None:
                raise
        if self._refusal is not None and not self._answered:
            is_too_large = self._left < 0
            await self._refusal.send(_draining(send, self._receive, self._limit) if is_too_large else send)

    async def _next(self) -> Message:
        # After its end one waits for the client to go, which may take as long as it likes.
        try:
            message = await asyncio.wait_for(self._receive(), None if self._finished else self._seconds)
        except asyncio.TimeoutError:
            return self._refuse(_too_slow(self._seconds))
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                return self._refuse(_too_large(self._limit))
            self._finished = not message.get("more_body", False)
        return message

    def _refuse(self, refusal: Refusal) -> Message:
        self._refusal = refusal
        return {"type": "http.disconnect"}


def _too_slow(seconds: float) -> Refusal:
    message = f"nothing of the body came for {seconds:g} seconds; send it again"
    return Refusal(408, message, "invalid_request_error", {"Connection": "close"})


def _too_large(limit: int) -> Refusal:
    message = f"the body is larger than {limit / 1e6:g} MB; send less"
    return Refusal(413, message, "invalid_request_error", {"Connection": "close"})


def _check_origin(scope: Scope, headers: Headers) -> None:
    """No page of another origin, not even of another port of this machine. Raises `Refusal`.

    That the host is one of ours was checked before: a rebound name's origin equals its host.
    """
    foreign = Refusal(403, "requests of pages from elsewhere are refused", "permission_error")
    host = headers.get("host").lower()
    for origin in headers.all("origin"):
        try:
            url = urlsplit(origin.lower())
        except ValueError:
            raise foreign from None
        # A proxy may speak https with the browser and http with us.
        if url.scheme not in ("http", "https") or _with_port(url.netloc, url.scheme) != _with_port(
            host, url.scheme
        ):
            raise foreign
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # A link to the page from elsewhere is none of its requests.
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if scope["method"] != "GET" or not is_link:
            raise foreign


def _is_page(scope: Scope) -> bool:
    return bool(scope["method"] == "GET" and scope["path"] == "/")


def _query(scope: Scope) -> dict[str, str]:
    """The first value of each name."""
    fields = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def _with_port(netloc: str, scheme: str) -> str:
    match = _HOST.fullmatch(netloc)
    if match is None:
        return f"invalid {netloc}"
    return f"{match['v6'] or match['name']} {match['port'] or ('443' if scheme == 'https' else '80')}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            given = {key.lower() for key, _ in headers}
            headers += [(key, value) for key, value in _HEADERS.items() if key not in given]
            if b"cache-control" not in given:
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await send(message)

    return with_headers


def _closing(send: Send) -> Send:
    """Closes the connection after an answer whose request has a body that nobody reads.

    uvicorn would go on taking it, and more than any limit.
    """

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
            message = {**message, "headers": [*others, (b"connection", b"close")]}
        await send(message)

    return closing


def _draining(send: Send, receive: Receive, most: int) -> Send:
    """Takes what still comes of a body before it closes the connection: up to `most` bytes, and not for long.

    With something unread the system would reset the connection, and the client might never see the answer.
    """

    async def drain() -> None:
        left = most
        while left > 0:
            message = await receive()
            if not message.get("more_body", False):  # or it is gone
                return
            left -= len(message["body"])

    async def draining(message: Message) -> None:
        is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send({**message, "more_body": True} if is_end else message)
        if is_end:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(drain(), _DRAIN_SECONDS)
            await send({"type": "http.response.body", "body": b""})

    return draining


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    if body and "Content-Type" not in headers:
        pairs.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
