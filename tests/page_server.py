"""A server for the page's tests: the interface of `musicgen-mlx-serve`, but sine tones for music.

By hand: `python tests/page_server.py` and open http://127.0.0.1:8765/
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

import audiocraft_mlx.server
from audiocraft_mlx.server import schema

PAGE = Path(audiocraft_mlx.server.__file__).with_name("page")
RATE = 32000
FIRST_CHUNK, CHUNK = 0.04, 1.0
"""Seconds of the chunks: the first one, then twice as many each time, up to the longest."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
Event = tuple[int, str, Any]


def tone(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """float32 `[samples]`, the same for the same seed, without jumps: a sine that swells and fades."""
    times = np.arange(int(seconds * rate)) / rate
    random = np.random.default_rng(seed)
    rates, phases, weights = random.uniform(0.2, 2.5, 5), random.uniform(0, 6.3, 5), random.uniform(0.3, 1, 5)
    swell = np.abs(
        sum(w * np.sin(r * 6.283 * times + p) for r, p, w in zip(rates, phases, weights, strict=True))
    )
    level = 0.15 + 0.7 * swell / weights.sum()
    return (level * np.sin(2 * np.pi * (200 + seed % 100) * times)).astype(np.float32)


def peaks(audio: np.ndarray) -> list[int]:
    size = RATE // schema.PEAKS_PER_SECOND
    whole = np.abs(audio[: len(audio) // size * size]).reshape(-1, size).max(axis=1)
    return [int(peak * 255) for peak in whole]


# Fields of a request that a finished job may have.
_CONTROL = ("sections", "negative", "loop", "bars", "bpm", "duration")


class FakeServer:
    """What survives a restart, and what the tests set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, schema.Job] = {}
        self.removed: dict[str, schema.Job] = {}
        self.made: dict[str, np.ndarray] = {}
        self.audio: dict[str, schema.Audio] = {}
        self.names: list[str | None] = []
        """Of the uploads."""
        self.requests: list[dict[str, Any]] = []
        """Bodies of POST /api/jobs."""
        self.speed = 6.0
        """Seconds of audio per second."""
        self.loading = 0.05
        """Seconds until the clips of a job are known."""
        self.hint: str | None = None
        self.downloads = self.token = False
        self.models = [
            schema.ModelInfo(
                name="demo",
                state="loaded",
                gigabytes=0.01,
                default=True,
                max_duration=60,
                sample_rate=RATE,
                channels=1,
            ),
            schema.ModelInfo(
                name="facebook/musicgen-melody",
                state="on disk",
                gigabytes=3.1,
                conditions=["melody"],
                max_duration=30,
                sample_rate=RATE,
                channels=1,
            ),
            schema.ModelInfo(
                name="facebook/musicgen-style",
                state="to download",
                gigabytes=5.4,
                conditions=["style"],
                channels=1,
            ),
        ]
        self.port = free_port()
        self._log: list[Event] = []
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    # Jobs

    def add(self, prompt: str, age: float = 0.0, takes: int = 1, **changes: Any) -> schema.Job:
        """A job that is done."""
        control = {name: changes.pop(name) for name in _CONTROL if name in changes}
        recipe = schema.JobRequest(
            prompt=prompt, model="demo", takes=takes, seed=changes.pop("seed", len(self.jobs)), **control
        )
        job = self._job(recipe, created=time.time() - age)
        clips = self._clips(recipe)
        for clip in clips:
            self.made[clip.id] = tone(clip.seed, recipe.duration)
        job = job.model_copy(update={"status": schema.Status.DONE, "clips": clips, **changes})
        self.jobs[job.id] = job
        return job

    def _job(self, recipe: schema.JobRequest, created: float) -> schema.Job:
        command = (
            f"musicgen-mlx '{recipe.prompt}' -m {recipe.model} -d {recipe.duration:g} --seed {recipe.seed}"
        )
        status = schema.Status.QUEUED
        return schema.Job(id=new_id(), status=status, created=created, recipe=recipe, command=command)

    def _clips(self, recipe: schema.JobRequest) -> list[schema.Clip]:
        clips = []
        for take in range(recipe.takes):
            id = new_id()
            clips.append(
                schema.Clip(
                    id=id,
                    seed=(recipe.seed or 0) + take,
                    duration=recipe.duration,
                    sample_rate=RATE,
                    channels=1,
                    audio=f"/api/clips/{id}/audio",
                    stream=f"/api/clips/{id}/stream",
                    peaks=f"/api/clips/{id}/peaks",
                )
            )
        return clips

    def change(self, id: str, **changes: Any) -> schema.Job:
        job = self.jobs[id] = self.jobs[id].model_copy(update=changes)
        self.tell("job", dump(job))
        return job

    def tell(self, event: str, data: Any) -> None:
        self._log.append((next(self._numbers), event, data))
        self._wake.set()
        self._wake = asyncio.Event()

    def _queue(self) -> list[schema.Job]:
        return [job for job in self.jobs.values() if job.status is schema.Status.QUEUED]

    def _number_queue(self) -> None:
        for position, job in enumerate(self._queue()):
            if job.position != position:
                self.change(job.id, position=position)

    async def _run(self) -> None:
        """The engine: one job at a time."""
        while True:
            self._number_queue()
            queue = self._queue()
            if not queue:
                await asyncio.sleep(0.01)
                continue
            await self._make(queue[0].id)

    async def _make(self, id: str) -> None:
        recipe = self.jobs[id].recipe
        self.change(id, status=schema.Status.RUNNING, position=None)
        await asyncio.sleep(self.loading)
        if self.jobs[id].status is not schema.Status.RUNNING:
            return
        clips = self._clips(recipe)
        total = int(recipe.duration * 50)
        for clip in clips:
            self.made[clip.id] = np.zeros(0, np.float32)
        self.change(id, clips=clips, progress=schema.Progress(done=0, total=total))
        whole = {clip.id: tone(clip.seed, recipe.duration) for clip in clips}
        seconds, chunk = 0.0, FIRST_CHUNK
        while seconds < recipe.duration:
            await asyncio.sleep(min(chunk, recipe.duration - seconds) / self.speed)
            if self.jobs[id].status is not schema.Status.RUNNING:
                return
            if "fail" in recipe.prompt:
                self.change(
                    id, status=schema.Status.FAILED, error="The disk is full: 0.1 GB are free.", clips=[]
                )
                return
            start, seconds = seconds, min(seconds + chunk, recipe.duration)
            chunk = min(2 * chunk, CHUNK)
            for clip in clips:
                piece = whole[clip.id][int(start * RATE) : int(seconds * RATE)]
                self.made[clip.id] = whole[clip.id][: int(seconds * RATE)]
                index = int(start * schema.PEAKS_PER_SECOND)
                self.tell("peaks", {"id": clip.id, "start": index, "peaks": peaks(piece)})
            progress = schema.Progress(done=int(seconds * 50), total=total)
            self.jobs[id] = self.jobs[id].model_copy(update={"progress": progress, "speed": self.speed})
            self.tell("progress", {"id": id, "progress": progress.model_dump(), "speed": self.speed})
        if recipe.normalize == "peak":  # once it is whole, as the server does it
            for clip in clips:
                self.made[clip.id] = whole[clip.id] / np.abs(whole[clip.id]).max()
        self.change(id, status=schema.Status.DONE, progress=None)

    def clip_job(self, clip: str) -> schema.Job:
        return next(job for job in self.jobs.values() if any(c.id == clip for c in job.clips))

    def clip_file(self, clip: str, format: str) -> Path:
        path = self.folder / f"{clip}.{format}"
        if not path.exists():
            soundfile.write(path, self.made[clip], RATE, format=format)
        return path

    # The process

    def start(self) -> None:
        config = uvicorn.Config(app(self), port=self.port, log_level="critical", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        assert self._server
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    async def events(self, after: int) -> AsyncIterator[str]:
        yield ": hello\n\n"
        while True:
            wake = self._wake
            for number, event, data in [entry for entry in self._log if entry[0] > after]:
                after = number
                yield f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"
            try:
                await asyncio.wait_for(wake.wait(), 0.1)
            except asyncio.TimeoutError:
                continue

    async def pcm(self, clip: str) -> AsyncIterator[bytes]:
        sent = 0
        while True:
            done = self.clip_job(clip).status is not schema.Status.RUNNING
            piece = self.made[clip][sent:]
            if len(piece):
                sent += len(piece)
                yield (piece * 32767).astype("<i2").tobytes()
            elif done:
                return
            else:
                await asyncio.sleep(0.01)


def app(fake: FakeServer) -> FastAPI:
    """Its routes."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine = asyncio.create_task(fake._run())
        yield
        engine.cancel()

    routes = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)

    def error(status: int, message: str, param: str | None = None) -> JSONResponse:
        body = schema.ErrorBody(message=message, type="invalid_request_error", param=param)
        return JSONResponse(schema.ErrorAnswer(error=body).model_dump(), status)

    @routes.middleware("http")
    async def headers(request: Request, call: Any) -> Response:
        response = await call(request)
        response.headers.update(HEADERS)
        return response

    @routes.exception_handler(RequestValidationError)
    async def invalid(_: Request, found: RequestValidationError) -> Response:
        first = found.errors()[0]
        return error(422, f"{first['loc'][-1]}: {first['msg']}", str(first["loc"][-1]))

    @routes.post("/api/jobs", status_code=202)
    async def make(recipe: schema.JobRequest, request: Request) -> Any:
        fake.requests.append(await request.json())
        if not recipe.prompt.strip() and not (
            recipe.melody or recipe.style or recipe.source or recipe.chords
        ):
            return error(422, "the prompt is empty; say what to play", "prompt")
        if (recipe.temperature or 0) < 0:
            return error(422, "temperature must be at least 0, not -1", "temperature")
        if any(section.start >= recipe.duration for section in recipe.sections):
            return error(422, "sections: one begins beyond the end of the clip", "sections")
        seed = secrets.randbits(32) if recipe.seed is None else recipe.seed
        job = fake._job(
            recipe.model_copy(update={"seed": seed, "model": recipe.model or "demo"}), time.time()
        )
        fake.jobs[job.id] = job
        fake.tell("job", dump(job))
        return dump(job)

    @routes.get("/api/jobs")
    async def jobs(before: str | None = None, limit: int = 50, q: str = "", favourite: bool = False) -> Any:
        found = sorted(fake.jobs.values(), key=lambda job: -job.created)
        words = q.lower().split()
        found = [job for job in found if all(word in searched(job) for word in words)]
        found = [job for job in found if job.favourite or not favourite]
        start = int(before or 0)
        more = start + limit < len(found)
        return dump(
            schema.JobPage(jobs=found[start : start + limit], before=str(start + limit) if more else None)
        )

    @routes.get("/api/jobs/{id}")
    async def job(id: str) -> Any:
        return dump(fake.jobs[id]) if id in fake.jobs else error(404, "no such job")

    @routes.patch("/api/jobs/{id}")
    async def change(id: str, change: schema.JobChange) -> Any:
        return dump(fake.change(id, **change.model_dump(exclude_unset=True)))

    @routes.delete("/api/jobs/{id}")
    async def delete(id: str) -> Any:
        if fake.jobs[id].status.is_live:
            return dump(fake.change(id, status=schema.Status.CANCELLED, progress=None, position=None))
        fake.removed[id] = fake.jobs.pop(id)
        fake.tell("removed", {"id": id})
        return dump(fake.removed[id])

    @routes.post("/api/jobs/{id}/restore")
    async def restore(id: str) -> Any:
        fake.jobs[id] = fake.removed.pop(id)
        return dump(fake.change(id))

    @routes.get("/api/events")
    async def events(request: Request) -> Response:
        last = request.headers.get("last-event-id") or str(fake._log[-1][0] if fake._log else 0)
        return StreamingResponse(fake.events(int(last)), media_type="text/event-stream")

    @routes.get("/api/clips/{id}/audio")
    async def audio(id: str, format: str = "wav", download: bool = False) -> Response:
        if id not in fake.made or fake.clip_job(id).status is not schema.Status.DONE:
            return error(404, "no such clip")
        return FileResponse(fake.clip_file(id, format), filename=f"clip.{format}" if download else None)

    @routes.get("/api/clips/{id}/stream")
    async def stream(id: str, format: str) -> Response:
        assert format == "pcm"
        return StreamingResponse(fake.pcm(id), media_type="application/octet-stream")

    @routes.get("/api/clips/{id}/peaks")
    async def clip_peaks(id: str) -> Any:
        return dump(schema.Peaks(peaks=peaks(fake.made[id])))

    @routes.post("/api/audio")
    async def add_audio(request: Request, name: str | None = None) -> Any:
        if not request.headers["content-type"].startswith("audio/"):
            return error(415, "audio/* is needed")
        body = await request.body()
        if body.startswith(b"MThd"):
            found = schema.Audio(id=new_id(), duration=4.0, sample_rate=1000, channels=0)
            fake.audio[found.id] = found
            fake.names.append(name)
            return dump(found)
        try:
            samples, rate = soundfile.read(io.BytesIO(body), always_2d=True)
        except soundfile.LibsndfileError:
            return error(422, "this is no audio file that can be read")
        found = schema.Audio(
            id=new_id(), duration=len(samples) / rate, sample_rate=rate, channels=samples.shape[1]
        )
        fake.audio[found.id] = found
        fake.names.append(name)
        return dump(found)

    @routes.post("/api/recipe")
    async def recipe(request: Request) -> Any:
        body = await request.body()
        for id in fake.made:
            if fake.clip_file(id, "wav").read_bytes() == body:
                made = fake.clip_job(id)
                return dump(schema.AudioRecipe(recipe=made.recipe, command=made.command))
        return dump(schema.AudioRecipe(recipe=None, command=None))

    @routes.get("/api/models")
    async def models() -> Any:
        return [dump(model) for model in fake.models]

    @routes.post("/api/models/{name:path}/load")
    async def load(name: str) -> Any:
        fake.models = [m.model_copy(update={"state": "loaded"}) if m.name == name else m for m in fake.models]
        fake.tell("models", [dump(model) for model in fake.models])
        return dump(next(model for model in fake.models if model.name == name))

    @routes.get("/health")
    async def health() -> Any:
        limits = {"duration": 300.0, "takes": 8.0}
        waiting = len(fake._queue())
        return dump(
            schema.Health(
                version="0",
                model="demo",
                device="CPU",
                hint=fake.hint,
                waiting=waiting,
                limits=limits,
                downloads=fake.downloads,
                token=fake.token,
            )
        )

    @routes.get("/")
    async def index() -> Response:
        return FileResponse(PAGE / "index.html")

    routes.mount("/page", StaticFiles(directory=PAGE))
    return routes


def searched(job: schema.Job) -> str:
    recipe = job.recipe
    return "\n".join([job.title or "", recipe.prompt, *(part.text for part in recipe.sections)]).lower()


def dump(value: Any) -> Any:
    return value.model_dump(mode="json", by_alias=True)


def new_id() -> str:
    return secrets.token_urlsafe(16)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def running(folder: Path) -> Iterator[FakeServer]:
    server = FakeServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        server = FakeServer(Path(folder))
        server.port = 8765
        server.start()
        while True:
            time.sleep(1)
