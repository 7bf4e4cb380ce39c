"""A server that is killed, whose memory is counted, and whose listeners are slow."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.server.folder import split_clip_name
from audiocraft_mlx.server.schema import Job, JobRequest, Status
from audiocraft_mlx.server.service import Limits, NotFoundError, ServerSettings, Service

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", "3"))
JOBS = int(os.environ.get("JOBS", "40"))
"""For a longer look: `KILLS=50 JOBS=200`."""


def all_jobs(service: Service) -> list[Job]:
    jobs, before = list[Job](), None
    while True:
        page = service.jobs(before, 100)
        jobs += page.jobs
        before = page.before
        if before is None:
            return jobs


def test_after_a_kill_the_history_is_whole_and_files_are_whole_or_gone(tmp_path: Path) -> None:
    draw = random.Random(KILLS)
    said: dict[str, set[str]] = {}
    for number in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server_worker", str(tmp_path / "data"), str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        try:
            while "ready" not in process.stdout.readline():
                assert process.poll() is None
            # Among twelve lines is a job that is done.
            for _ in range(draw.randint(0, 20) if number else 12):
                lines.append(process.stdout.readline())
            time.sleep(draw.uniform(0, 0.3))
        finally:
            process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n"):
                what, id = line.split()
                said.setdefault(what, set()).add(id)
        process.wait()
        process.stdout.close()
        check(tmp_path / "data", said)
    assert said["done"]


def check(folder: Path, said: dict[str, set[str]]) -> None:
    service = Service(ServerSettings(folder, ModelOptions("demo")))
    try:
        jobs = {job.id: job for job in all_jobs(service)}
        removed = said.get("removed", set())
        for id in said.get("submitted", set()) - removed:
            assert id in jobs or in_trash(service, id)
        for id in said.get("done", set()) & {*jobs}:
            assert jobs[id].status is Status.DONE
        for id in said.get("favourite", set()):
            assert jobs[id].favourite
        assert removed.isdisjoint(jobs)
        for job in jobs.values():
            files = sorted((folder / "clips" / job.id).glob("*"))
            if job.status is not Status.DONE:
                assert not files
                assert job.status is Status.QUEUED or job.error == "the server stopped while it was made"
                continue
            assert [path.name for path in files] == sorted(
                service.clip_file(clip.id).name for clip in job.clips
            )
            for clip in job.clips:
                path = service.clip_file(clip.id)
                info = soundfile.info(path)
                assert (info.frames, info.samplerate) == (round(clip.duration * 32000), 32000)
                assert split_clip_name(path) == (clip.id, None, job.recipe.format)
                assert len(service.peaks(clip.id).peaks) == round(clip.duration * 50)
        assert not any((folder / "making").iterdir())
        assert not any(path.suffix == ".part" for path in folder.rglob("*"))
    finally:
        service.close()
    with sqlite3.connect(folder / "history.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def in_trash(service: Service, id: str) -> bool:
    try:
        service._store.job(id, trashed=True)
    except NotFoundError:
        return False
    return True


async def settled() -> int:
    """`resident`, once the engine has given back what a batch took: just after its job is done."""
    sizes = []
    for _ in range(10):
        sizes.append(resident())
        await asyncio.sleep(0.01)
    return min(sizes)


def test_memory_stays_flat_with_listeners_who_are_slow(tmp_path: Path) -> None:
    async def work() -> None:
        service = Service(
            ServerSettings(tmp_path / "data", ModelOptions("demo"), limits=Limits(free_bytes=0))
        )
        service.start()
        sizes, files, slow = [], [], []
        nothing = service.events()
        for number in range(JOBS):
            job = service.submit(JobRequest(prompt=f"piano {number}", duration=0.5, seed=number), "me")
            job = await service.wait_for_clips(job.id)
            heard = service.clip_audio(job.clips[0].id).blocks()
            await anext(heard)
            slow.append(heard)  # and goes on much later
            assert (await service.wait(job.id)).status is Status.DONE
            if len(slow) > 5:
                await slow.pop(0).aclose()  # type: ignore[attr-defined]
            sizes.append(await settled())
            files.append(len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0)
        assert (await anext(nothing)).event in ("job", "reset", "models")
        warm = min(20, JOBS // 2)
        assert max(sizes[warm:]) <= 1.02 * sizes[warm - 1], sizes
        assert max(files[10:]) <= max(files[:10]) + 2
        for heard in slow:
            assert [block async for block in heard]
        service.close()

    asyncio.run(work())


def resident() -> int:
    """Bytes."""
    if sys.platform != "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
