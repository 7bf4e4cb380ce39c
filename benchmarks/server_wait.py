"""How long clients of the server wait for the first second of sound: `python benchmarks/server_wait.py`.

Eight clients ask for clips of the demo model, at random times and as often as keeps the machine busy for a
share of the time. Once with clips that join those that are made, and once in batches, each of which waits for
the one before; by turns, with the same times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.server.running import RunningTakes, Take
from audiocraft_mlx.server.schema import JobRequest, Status
from audiocraft_mlx.server.service import Service
from audiocraft_mlx.server.settings import Limits, ServerSettings

CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="the longest clip; the shortest is a third"
    )
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings(Path(folder), ModelOptions(arguments.model), limits=Limits(free_bytes=0))
        service = Service(settings)
        service.start()
        capacity = measure_capacity(service, arguments.seconds)
        print_stdout(f"with {CLIENTS} clips at a time the machine makes {capacity:.2f} clips a second")
        for run in range(arguments.runs):
            means = {}
            for joins in (False, True) if run % 2 == 0 else (True, False):
                waits = sorted(measure_waits(service, arguments, arguments.load * capacity, joins))
                means[joins] = statistics.mean(waits)
                name = "joining" if joins else "batches that wait"
                late = waits[int(0.95 * (len(waits) - 1))]
                print_stdout(f"{name}: mean {means[joins]:.2f} s, 95 of 100 within {late:.2f} s")
            print_stdout(f"ratio {means[True] / means[False]:.2f}")
        service.close()


def measure_capacity(service: Service, longest: float) -> float:
    """Clips a second."""
    submit(service, 0, 1.0)
    wait_for_all(service)
    start = time.perf_counter()
    for client in range(CLIENTS):
        submit(service, client, longest * 2 / 3)
    wait_for_all(service)
    return CLIENTS / (time.perf_counter() - start)


def measure_waits(service: Service, arguments: argparse.Namespace, rate: float, joins: bool) -> list[float]:
    """Seconds until a second of each clip is there, at `rate` clips a second."""
    draw = random.Random(0)
    room_for = RunningTakes.room_for

    def room(running: RunningTakes, takes: Sequence[Take]) -> int:
        return 0 if running.takes and not joins else room_for(running, takes)

    waits: list[float] = []
    waiting: dict[str, float] = {}
    due, left = time.perf_counter(), arguments.jobs
    with patch.object(RunningTakes, "room_for", room):
        while left or waiting:
            now = time.perf_counter()
            if left and now >= due:
                seconds = draw.uniform(arguments.seconds / 3, arguments.seconds)
                waiting[submit(service, draw.randrange(CLIENTS), seconds)] = now
                due += draw.expovariate(rate)
                left -= 1
            for id in [id for id in waiting if is_heard(service, id)]:
                waits.append(now - waiting.pop(id))
            time.sleep(0.01)
        wait_for_all(service)
    return waits


def submit(service: Service, client: int, seconds: float) -> str:
    """The id of the job."""
    request = JobRequest(prompt="slow happy piano", duration=round(seconds, 2), seed=client)
    return service.submit(request, f"client {client}").id


def is_heard(service: Service, id: str) -> bool:
    """Whether a second of a job's clip is made. Asks no database: that would take the engine's time."""
    job = service._jobs.live(id)
    return job is None or any(clip.ready >= clip.shape.sample_rate for clip in job.clips)


def wait_for_all(service: Service) -> None:
    while any(job.status in (Status.QUEUED, Status.RUNNING) for job in service.jobs(limit=100).jobs):
        time.sleep(0.2)


if __name__ == "__main__":
    main()
