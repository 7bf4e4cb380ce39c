"""The application: routes, the page's files, and what stands around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.routing import Route

from audiocraft_mlx.server import routes
from audiocraft_mlx.server.answers import BugAnswers, add_handlers
from audiocraft_mlx.server.context import Context, in_daemon_thread
from audiocraft_mlx.server.dialects import elevenlabs, huggingface, openai
from audiocraft_mlx.server.responses import RangedFile
from audiocraft_mlx.server.security import Security, SecuritySettings
from audiocraft_mlx.server.service import Service
from audiocraft_mlx.version import __version__

PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_CLOSE_SECONDS = 1.0


def create_app(service: Service, security: SecuritySettings, spool: Path | None = None) -> FastAPI:
    """The application. Its `state.context.stop()` ends what waits or streams, before the server ends.

    Args:
        service: it is started and closed with the application.
        security: who may call.
        spool: the folder for uploads while they arrive. Default: the system's for temporary files.
    """
    context = Context(service, spool, security.token is not None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context.loop = asyncio.get_running_loop()
        await in_daemon_thread(service.start)
        closing = asyncio.create_task(_close_when_stopping(context))
        yield
        context.stopping.set()
        await asyncio.wait({closing})

    app = FastAPI(
        title="MusicGen MLX",
        version=__version__,
        description="Music from descriptions. See docs/SERVER.md.",
        # Their pages load programs from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.context = context
    add_handlers(app)
    routers = (routes.router, openai.router, elevenlabs.router, huggingface.router)
    for router in routers:
        app.include_router(router)
    page = []
    for path in _page_files():
        name = path.relative_to(PAGE).as_posix()
        page.append(Route("/" if name == "index.html" else f"/page/{name}", _page_file(path)))
    app.router.routes.extend(page)
    app.state.routes = [*page, *(route for router in routers for route in router.routes)]
    app.add_middleware(BugAnswers)
    app.add_middleware(Security, settings=security)  # the outermost
    return app


async def _close_when_stopping(context: Context) -> None:
    """At once, while answers still end: its time isn't added to theirs."""
    await context.stopping.wait()
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(in_daemon_thread(context.service.close), _CLOSE_SECONDS)


def _page_files() -> list[Path]:
    """Listed once: no request names a path."""
    return sorted(path for path in PAGE.rglob("*") if path.suffix in _MEDIA_TYPES)


def _page_file(path: Path) -> Callable[[Request], RangedFile]:
    def send(request: Request) -> RangedFile:
        return RangedFile(path, media_type=_MEDIA_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    return send
