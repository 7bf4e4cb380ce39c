"""Jobs join others that are made, and leave them: with the demo model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.models.memory import MAX_BATCH_SIZE
from audiocraft_mlx.server.jobs import Jobs, LiveJob
from audiocraft_mlx.server.running import _Pace
from audiocraft_mlx.server.schema import Job, JobRequest, Progress, Status
from audiocraft_mlx.server.service import Service
from audiocraft_mlx.server.settings import Limits, ServerSettings
from tests.live_server import eventually


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = Service(ServerSettings(tmp_path, ModelOptions("demo"), limits=Limits(free_bytes=0)))
    opened.start()
    yield opened
    opened.close()


def submit(service: Service, client: str, seed: int, duration: float, **values: object) -> Job:
    fields = {"prompt": "slow happy piano", "seed": seed, "duration": duration, **values}
    return service.submit(JobRequest.model_validate(fields), client)


def done(service: Service, job: Job) -> Job:
    job = asyncio.run(service.wait(job.id))
    assert (job.status, job.error) == (Status.DONE, None)
    return job


def audio(service: Service, job: Job) -> list[bytes]:
    return [service.clip_file(clip.id).read_bytes()[44:] for clip in job.clips]


def test_who_comes_later_is_heard_before_the_others_have_ended(service: Service) -> None:
    long = submit(service, "first", 1, 60.0, takes=8)
    eventually(lambda: service.job(long.id).status is Status.RUNNING)
    short = done(service, submit(service, "second", 2, 1.0))
    assert service.job(long.id).status is Status.RUNNING
    assert service.delete(long.id).status is Status.CANCELLED
    # The same alone.
    assert audio(service, short) == audio(service, done(service, submit(service, "third", 2, 1.0)))


def test_clips_are_what_they_are_alone(service: Service) -> None:
    together = [submit(service, f"client {n}", n, 1.0 + 0.5 * n, temperature=1 + 0.1 * n) for n in range(5)]
    clips = [audio(service, done(service, job)) for job in together]
    for n, job in enumerate(together):
        again = done(service, submit(service, "me", n, 1.0 + 0.5 * n, temperature=1 + 0.1 * n))
        ours = np.frombuffer(clips[n][0][: len(audio(service, again)[0])], np.int16).astype(int)
        alone = np.frombuffer(audio(service, again)[0], np.int16).astype(int)
        assert np.abs(ours - alone).max() <= 1, job


def test_a_job_is_made_by_its_own_model(tmp_path: Path, transformers_folder: Callable[[str], Path]) -> None:
    other_model = str(transformers_folder("mono"))
    opened = Service(ServerSettings(tmp_path, ModelOptions(other_model), limits=Limits(free_bytes=0)))
    opened.start()
    try:
        # Whoever is busy is still the next one, but has no room for more.
        busy = submit(opened, "busy", 1, 60.0, takes=8, model="demo")
        assert eventually(lambda: opened.job(busy.id).status is Status.RUNNING, 30)
        more = submit(opened, "busy", 2, 0.5, model="demo")
        other = submit(opened, "other", 3, 0.5)
        assert not eventually(lambda: opened.job(other.id).status is not Status.QUEUED, 0.5)
        opened.cancel(busy.id)
        together = audio(opened, done(opened, other))
        done(opened, more)
        assert together == audio(opened, done(opened, submit(opened, "other", 3, 0.5)))
    finally:
        opened.close()


def test_a_client_has_no_more_than_its_share(service: Service) -> None:
    seven = submit(service, "many", 1, 60.0, takes=7)
    assert eventually(lambda: service.job(seven.id).status is Status.RUNNING, 30)
    running = service._engine._jobs
    # Both of these may begin together: one of another client, and eight of the busy one.
    with running._lock:
        one = submit(service, "one", 3, 50.0)
        eight = submit(service, "many", 2, 50.0, takes=8)
    assert eventually(lambda: service.job(one.id).status is Status.RUNNING)
    for job in (seven, eight):
        live = running.live(job.id)
        assert live is not None
        assert live.taken == {seven.id: 7, eight.id: 1}[job.id]
    assert MAX_BATCH_SIZE == 8
    for job in (seven, eight, one):
        service.cancel(job.id)


@pytest.mark.usefixtures("eighth_merged_step_fails")
def test_a_step_that_fails_fails_its_jobs_and_no_later_ones(service: Service) -> None:
    jobs = [submit(service, "first", 1, 20.0), submit(service, "second", 1, 21.0)]
    for job in jobs:
        job = asyncio.run(asyncio.wait_for(service.wait(job.id), 30))
        assert (job.status, job.error is None) == (Status.FAILED, False)
    done(service, submit(service, "first", 1, 0.5))


def test_progress_is_that_of_all_takes_of_a_job(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[float]] = {}
    advance = Jobs.advance

    def record(jobs: Jobs, job: LiveJob, progress: Progress, speed: float) -> None:
        told.setdefault(job.id, []).append(progress.done / progress.total)
        advance(jobs, job, progress, speed)

    monkeypatch.setattr(Jobs, "advance", record)
    long = submit(service, "first", 1, 60.0, takes=6)
    assert eventually(lambda: service.job(long.id).status is Status.RUNNING, 30)
    # Six of them begin; the others when there is room.
    job = submit(service, "second", 2, 4.0, takes=8)
    assert eventually(lambda: len(told.get(job.id, ())) > 2, 30)
    service.cancel(long.id)
    done(service, job)
    parts = told[job.id]
    assert parts == sorted(parts)
    assert parts[0] < 0.5
    assert parts[-1] == 1


def test_who_waits_for_a_listener_begins_when_that_one_has_gone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Pace, "room", lambda *_: 0)
    long = submit(service, "first", 1, 60.0)
    assert eventually(lambda: bool(service.job(long.id).clips), 30)

    async def listen() -> None:
        blocks = service.clip_audio(service.job(long.id).clips[0].id).blocks()
        await anext(blocks)
        short = submit(service, "second", 2, 1.0)
        await asyncio.sleep(0.5)
        assert service.job(short.id).status is Status.QUEUED
        await blocks.aclose()
        assert (await asyncio.wait_for(service.wait(short.id), 30)).status is Status.DONE

    asyncio.run(listen())
    assert service.job(long.id).status is Status.RUNNING
    service.cancel(long.id)


def test_who_listens_in_real_time_still_does_when_others_come() -> None:
    pace = _Pace(frame_rate=50)
    assert pace.room(2) > 4, "nothing is known yet"
    for _ in range(100):
        pace.add(2, 0.01)
    assert pace.room(2) == 2, "as long again for as many again"
    for _ in range(100):
        pace.add(5, 0.018)
    assert pace.room(2) == 3, "five at once were measured, which take less than was thought"
    for _ in range(100):
        pace.add(3, 0.012)
        pace.add(4, 0.021)
    assert pace.room(2) == 1, "four are too many"
    for _ in range(200):
        pace.add(2, 0.03)
    assert pace.room(2) > 4, "nobody hears it in real time anyway"


def test_chunks_that_take_long_are_spread_over_the_steps_between_them() -> None:
    pace = _Pace(frame_rate=50)
    for step in range(1000):
        pace.add(1, 0.3 if step % 50 == 0 else 0.005)
        if step > 50:
            assert pace.room(1) == 0, step
