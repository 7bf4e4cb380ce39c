"""A server without HTTP that makes jobs until it is killed. `python -m tests.server_worker FOLDER SEED`.

Prints a line for each thing that must last: `submitted ID`, `done ID`, `favourite ID`, `removed ID`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.server.schema import JobChange, JobRequest
from audiocraft_mlx.server.service import ServerSettings, Service


def say(what: str, id: str) -> None:
    sys.stdout.write(f"{what} {id}\n")
    sys.stdout.flush()


async def client(service: Service, name: str, draw: random.Random) -> None:
    while True:
        request = JobRequest(
            prompt=f"{name} {draw.random()}",
            duration=draw.choice((0.1, 0.2, 0.3)),
            takes=draw.choice((1, 2)),
            format=draw.choice(("wav", "flac", "mp3", "ogg")),
            normalize=draw.choice(("none", "peak")),
        )
        job = service.submit(request, name)
        say("submitted", job.id)
        await service.wait(job.id)
        say("done", job.id)
        if draw.random() < 0.3:
            service.change(job.id, JobChange(favourite=True))
            say("favourite", job.id)
        elif draw.random() < 0.3:
            service.delete(job.id)
            say("removed", job.id)


async def work(folder: Path, seed: int) -> None:
    service = Service(ServerSettings(folder, ModelOptions("demo")))
    service.start()
    say("ready", "-")
    await asyncio.gather(*(client(service, f"c{n}", random.Random(100 * seed + n)) for n in range(4)))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
