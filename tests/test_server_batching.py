"""Jobs join others that are made, and leave them: with the demo model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.server.running import _Pace
from audiocraft_mlx.server.schema import Job, JobRequest, Status
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
