"""Many generations of mixed kinds, and a server under load for long: `make soak`.

    python -m tests.soak [--generations 10000] [--server-minutes 60] [--seed 0]

Clips of the demo model join and leave a running batch, some are cancelled, each one is written in one of the
formats, read back and removed. Then clients of a server in a process of its own ask for clips, listen, go
away, cancel and remove. Memory may grow by a percent after the first hundred; no file may be left, and no
request may fail for a reason of the server's. The exit status is 1 if something of that doesn't hold. The
server has the environment of docs/SERVER.md's unit for systemd.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.cli.common import print_stderr, print_stdout
from audiocraft_mlx.clips.finishing import finish_audio
from audiocraft_mlx.clips.making import Chunk, Failed, Finished, RunningClips
from audiocraft_mlx.clips.metadata import describe_request, read_metadata
from audiocraft_mlx.clips.planning import ClipPlan, plan_clips, room_for
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.clips.saving import save_clip
from audiocraft_mlx.clips.source import SourceClip
from audiocraft_mlx.conditioning.sections import Section
from audiocraft_mlx.models.memory import give_back_memory
from audiocraft_mlx.models.musicgen import MusicGen

from .server_process import resident, serving

SETTLED = 100
"""Generations, or jobs, after which memory may no longer grow."""
GROWTH = 0.01
CLIENTS = 8
ROUND, PAUSE = 15.0, 2.5
"""Seconds in which clients ask a server, and in which they don't, so that its memory is measured at rest."""
BEFORE = "import audiocraft_mlx.cli.serve, tests.soak; tests.soak.fill_caches()"
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Else each thread keeps free blocks of each size, and their pages: for thousands of jobs ever more."""
WORDS = (
    "slow lo-fi piano",
    "a fast rock song with distorted guitar and drums",
    "bossa nova",
    "calm string quartet in D minor",
    "energetic synthwave, 110 bpm",
)


@dataclass(frozen=True)
class Memory:
    """In MB at rest: the least of the first and of the last tenth of what was measured, and the most.

    How much free memory lies between what is in use differs each time, by a third of a server's. What is kept
    raises the least, too.
    """

    settled: float
    highest: float
    last: float

    def __str__(self) -> str:
        growth = 100 * (self.last / self.settled - 1)
        return (
            f"{self.settled:.1f} MB, at most {self.highest:.1f}, at the end {self.last:.1f} ({growth:+.1f} %)"
        )

    @classmethod
    def of(cls, measured: Sequence[float]) -> Memory:
        tenth = -(-len(measured) // 10)
        return cls(min(measured[:tenth]), max(measured), min(measured[-tenth:]))

    @property
    def is_flat(self) -> bool:
        return self.last <= self.settled * (1 + GROWTH)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int, default=10000)
    parser.add_argument("--server-minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if arguments.generations:
            holds &= generate(arguments.generations, random.Random(arguments.seed), Path(folder))
        if arguments.server_minutes:
            holds &= serve(60 * arguments.server_minutes, arguments.seed, Path(folder))
    print_stdout("all holds" if holds else "something doesn't hold")
    return 0 if holds else 1


def generate(generations: int, draw: random.Random, folder: Path) -> bool:
    """Whether all that has to hold does."""
    model = MusicGen.get_pretrained("demo")
    tone = 0.2 * np.sin(np.arange(model.sample_rate * 2) * 0.05).astype(np.float32)[None]
    song = SourceClip(tone, model.sample_rate)
    running, index = RunningClips(model), count()
    files: dict[int, tuple[ClipPlan, OutputOptions, AudioSpool]] = {}
    kinds: Counter[str] = Counter()
    waiting: tuple[str, ClipRequest] | None = None
    begun = ended = 0
    measured: list[float] = []
    start = time.perf_counter()
    while ended < generations:
        # After each hundred all of them end, so that the same is measured each time.
        most = min(generations, (ended // SETTLED + 1) * SETTLED)
        while begun < most and len(running.plans) < 8:
            kind, request = waiting = waiting or random_request(draw, song)
            plans = [replace(plan, index=next(index)) for plan in plan_clips(model, [request])]
            if room_for(model, plans, running.plans, starting=running.starting) < 1:
                break  # an edit is made alone
            waiting = None
            output = OutputOptions(draw.choice(("wav", "flac", "mp3", "ogg")))
            kinds[kind] += 1
            begun += 1
            files[plans[0].index] = plans[0], output, AudioSpool(model.audio_channels, folder / "clip.wav")
            running.add(plans)
        if draw.random() < 0.001 and running.plans:
            plan = draw.choice(running.plans)
            running.remove(plan)
            files.pop(plan.index)[2].close()
            kinds["cancelled"] += 1
            ended += 1
        before = ended
        for event in running.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Chunk):
                files[event.index][2].append(event.audio)
            elif isinstance(event, Finished):
                ended += 1
                write_and_remove(model, files.pop(event.index), event, folder)
        if ended // SETTLED > before // SETTLED:
            if not measured:
                fill_caches()
            measured.append(settled())
    memory = Memory.of(measured)
    left = [path.name for path in folder.iterdir() if path.name != "mlx"]  # MLX's own, of what it compiles
    seconds = time.perf_counter() - start
    print_stdout(f"{ended} generations in {seconds:.0f} s: {dict(kinds)}; memory {memory}; left: {left}")
    return memory.is_flat and not left


def fill_caches() -> None:
    """Give what Python and NumPy keep for later the size that it has in a long run, some megabytes.

    Python's table of interned strings: the place of a string that is no more isn't used again; after tens of
    thousands of them, some hundreds of generations, the table is made anew for three times what is in it.

    NumPy's freed blocks: up to seven of each size below 1,024 bytes. Arrays as long as a clip's parts leave
    ever new sizes, until all are there.
    """
    for number in range(100_000):
        sys.intern(f"string {number}")
    for size in range(1, 1024):
        blocks = [np.empty(size, np.uint8) for _ in range(7)]
        del blocks


def random_request(draw: random.Random, song: SourceClip) -> tuple[str, ClipRequest]:
    kind = draw.choice(("plain", "plain", "plain", "sections", "negative", "continuation", "loop", "edit"))
    prompt, seed, seconds = draw.choice(WORDS), draw.randrange(2**32), draw.uniform(0.2, 1.5)
    options: dict[str, Any] = draw.choice(({}, {"temperature": 0.8}, {"top_k": 50}, {"cfg_coef": 1.0}))
    if kind == "sections":
        options = {"sections": (Section(seconds / 2, draw.choice(WORDS), draw.choice((0.0, 0.1))),)}
    elif kind == "negative":
        options = {"negative": "drums"}
    elif kind == "continuation":
        options = options | {"source": song}
    elif kind == "loop":
        options = options | {"loop": True}
        seconds = 1.0
    elif kind == "edit":
        options = {"source": song, "replace": (0.5, 0.9), "candidates": 2}
        seconds = 0.4
    return kind, ClipRequest(prompt, seed, seconds, **options)


def write_and_remove(
    model: MusicGen, made: tuple[ClipPlan, OutputOptions, AudioSpool], event: Finished, folder: Path
) -> None:
    plan, output, spool = made
    path = folder / f"clip.{output.audio_format}"
    clip = finish_audio(
        spool, model.sample_rate, output, plan.source, plan.replacement, event.loop, plan.loop
    )
    save_clip(path, clip, describe_request(plan.request, output, ModelOptions("demo")), event.codes)
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata.seed == plan.request.seed
    path.unlink()
    spool.close()


def settled() -> float:
    """MB of this process after what is free was given back."""
    give_back_memory()
    return resident()


def serve(seconds: float, seed: int, folder: Path) -> bool:
    """Whether all that has to hold does, of a server under load for so long."""
    with serving(folder / "data", before=BEFORE, environment=ENVIRONMENT) as server:
        counts: Counter[str] = Counter()
        cancelled = set[str]()
        start, measured = time.monotonic(), list[float]()
        for round_number in count():
            if time.monotonic() > start + seconds:
                break
            end = time.monotonic() + min(ROUND, seconds)
            draws = [random.Random(f"{seed} {round_number} {number}") for number in range(CLIENTS)]
            threads = [
                threading.Thread(target=client, args=(server.url, draw, end, counts, cancelled))
                for draw in draws
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(PAUSE)
            if counts["jobs"] >= SETTLED:
                measured.append(server.memory())
                print_stderr(f"{counts['jobs']} jobs: {measured[-1]:.1f} MB")
        memory = Memory.of(measured) if measured else None
        with httpx.Client(base_url=server.url, timeout=60) as last:
            jobs = last.get("/api/jobs", params={"limit": 100}).json()["jobs"]
        time.sleep(10)  # the engine tidies up every few seconds
        # Of what is done files stay for a while after it was removed: it could be brought back.
        left = cancelled & {path.name for path in (folder / "data" / "clips").iterdir()}
        status = server.stop()
    print_stdout(
        f"a server for {seconds / 60:.1f} minutes: {dict(counts)}; memory {memory};"
        f" jobs left: {len(jobs)}, folders of cancelled ones left: {len(left)}; status {status}",
    )
    flat = memory is not None and memory.is_flat
    return flat and not jobs and not left and not counts["errors"] and status == 0


def client(url: str, draw: random.Random, end: float, counts: Counter[str], cancelled: set[str]) -> None:
    with httpx.Client(base_url=url, timeout=60) as session:
        while time.monotonic() < end:
            try:
                visit(session, draw, counts, cancelled)
            except httpx.HTTPError as error:
                counts["errors"] += 1
                print_stderr(f"a client: {error!r}")


def visit(session: httpx.Client, draw: random.Random, counts: Counter[str], cancelled: set[str]) -> None:
    """Ask for a clip, hear it or not, and remove it; `cancelled` gets its id if it wasn't done."""
    body = {
        "prompt": draw.choice(WORDS),
        "duration": round(draw.uniform(0.5, 6.0), 2),
        "seed": draw.randrange(2**32),
        "takes": draw.choice((1, 1, 1, 2, 3)),
    }
    answer = session.post("/api/jobs", json=body)
    answer.raise_for_status()
    job = answer.json()
    kind = draw.choice(("listens", "listens", "waits", "goes away", "cancels"))
    while not job["clips"]:
        job = session.get(f"/api/jobs/{job['id']}").raise_for_status().json()
    address = f"{job['clips'][0]['stream']}?format={draw.choice(('pcm', 'wav', 'mp3'))}"
    if kind in ("listens", "goes away"):
        with session.stream("GET", address) as stream:
            stream.raise_for_status()
            for _ in stream.iter_raw():
                if kind == "goes away":
                    break
    if kind == "waits":
        while job["status"] in ("queued", "running"):
            time.sleep(0.05)
            job = session.get(f"/api/jobs/{job['id']}").raise_for_status().json()
        session.get(job["clips"][0]["audio"]).raise_for_status()
    while session.delete(f"/api/jobs/{job['id']}").raise_for_status().json()["status"] in (
        "queued",
        "running",
    ):
        time.sleep(0.01)
    session.delete(f"/api/jobs/{job['id']}")  # what was live was cancelled, and is removed now
    counts["jobs"] += 1
    counts[kind] += 1


if __name__ == "__main__":
    sys.exit(main())
