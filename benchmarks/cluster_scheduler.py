"""What a scheduler and the command cost per clip with many machines, whose clips are slept through.

`python benchmarks/cluster_scheduler.py` (6 minutes) starts a scheduler, and workers, several to a process,
that take the command's own tasks. In place of making music they wait, and return as many bytes as a FLAC file
has. The clips are handed out and written by the command's own code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import audiocraft_mlx.cluster.tasks as tasks
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.cluster.address import SchedulerAddress
from audiocraft_mlx.cluster.connection import connect
from audiocraft_mlx.cluster.machines import Machine, Machines
from audiocraft_mlx.cluster.values import ClipTask, MadeClip, MadeFile, ModelFacts, ModelSpec, Needs
from audiocraft_mlx.files import write_file

SLOTS = 8
PER_PROCESS = 16


async def work(address: str, count: int, seconds: float, size: int) -> None:
    """Workers in this process, which wait in place of making music."""
    from distributed import Worker

    def load_machine(spec: ModelSpec, needs: Needs) -> ModelFacts:
        return ModelFacts(frozenset({"text"}), False, SLOTS)

    async def make_clip(task: ClipTask, keys: object, inputs: object) -> MadeClip:
        await asyncio.sleep(seconds)
        return MadeClip(seconds, seconds, (MadeFile(None, os.urandom(size), 1, 32000, 32000, 0.5),))

    tasks.load_machine, tasks.make_clip = load_machine, make_clip  # type: ignore[assignment]
    workers = [Worker(address, host="127.0.0.1", nthreads=SLOTS, dashboard=False) for _ in range(count)]
    for worker in workers:
        await worker
    await asyncio.gather(*(worker.finished() for worker in workers))


async def simulate(address: str, scheduler: int, arguments: argparse.Namespace) -> dict[str, float]:
    of_scheduler, mine = psutil.Process(scheduler), psutil.Process()
    needs = Needs(seconds=8.0, branches=2, alone=False, stems=False, folders=())
    spec = ModelSpec("musicgen-mlx", ModelOptions("demo"))
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def task_of(clip: int) -> ClipTask:
            return ClipTask(spec, ClipRequest(f"piano {clip}", seed=clip), OutputOptions("flac"), None)

        def write(clip: int, made: MadeClip, machine: Machine) -> None:
            data = made.files[0].data
            assert data is not None
            write_file(Path(folder, "clip.flac"), lambda stream: stream.write(data) and None)
            times.append(time.perf_counter())

        async with connect(SchedulerAddress(address)) as client:
            machines = Machines(client, spec, needs, print_stdout, address)
            while (
                sum(machine.state == "ready" for machine in machines._machines.values()) < arguments.workers
            ):
                await machines._look()
                await asyncio.sleep(0.1)
            before = [sum(process.cpu_times()[:2]) for process in (of_scheduler, mine)]
            begun = time.perf_counter()
            failed = await machines.make(range(arguments.clips), task_of, write)
            wall = time.perf_counter() - begun
            after = [sum(process.cpu_times()[:2]) for process in (of_scheduler, mine)]
            await machines.close()
    assert not failed
    assert len(times) == arguments.clips
    of_scheduler_clip, of_command_clip = (
        (b - a) / arguments.clips for a, b in zip(before, after, strict=True)
    )
    return {
        "workers": arguments.workers,
        "clips": arguments.clips,
        "seconds a clip": arguments.seconds,
        "KB a clip": arguments.size / 1000,
        "wall s": round(wall, 1),
        "ideal wall s": round(arguments.clips * arguments.seconds / arguments.workers / SLOTS, 1),
        "scheduler CPU ms a clip": round(1000 * of_scheduler_clip, 2),
        "command CPU ms a clip": round(1000 * of_command_clip, 2),
        "scheduler share of a clip %": round(100 * of_scheduler_clip / arguments.seconds, 3),
        "scheduler busy %": round(100 * of_scheduler_clip * arguments.clips / wall, 1),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=16.0, help="that a clip takes")
    parser.add_argument("--size", type=int, default=300_000, help="bytes of its file")
    parser.add_argument("--work", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        asyncio.run(work(arguments.work, arguments.workers, arguments.seconds, arguments.size))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, python = f"tcp://127.0.0.1:{port}", sys.executable
    command = [
        python,
        "-m",
        "dask",
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-dashboard",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet)]
    try:
        time.sleep(3)
        for first in range(0, arguments.workers, PER_PROCESS):
            count = min(PER_PROCESS, arguments.workers - first)
            words = ["--work", address, "--workers", str(count)]
            words += ["--seconds", str(arguments.seconds), "--size", str(arguments.size)]
            processes.append(subprocess.Popen([python, __file__, *words], **quiet))
        print_stdout(json.dumps(asyncio.run(simulate(address, processes[0].pid, arguments)), indent=1))
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
