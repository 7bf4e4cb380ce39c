"""Clips per minute of one worker and of two with a core each: `python benchmarks/cluster_workers.py`.

By turns, in pairs, with the command's own code and the demo model. Other programs on these cores count.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.cli.generate import main as command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of music in each clip")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("list.txt").write_text("".join(f"piano {clip}\n" for clip in range(arguments.clips)))
        Path("few.txt").write_text("".join(f"piano {clip}\n" for clip in range(4)))
        clusters = {1: _start(cores[:1]), 2: _start(cores)}
        try:
            for address, _ in clusters.values():  # the model is loaded
                _make(address, "few.txt", arguments.seconds)
            for pair in range(arguments.pairs):
                per_minute = {}
                for count in (1, 2) if pair % 2 == 0 else (2, 1):
                    address, workers = clusters[count]
                    before, begun = _cpu(workers), time.perf_counter()
                    _make(address, "list.txt", arguments.seconds)
                    wall = time.perf_counter() - begun
                    per_minute[count] = 60 * arguments.clips / wall
                    cpu = _cpu(workers) - before
                    share, load = 100 * cpu / wall / count, os.getloadavg()[0]
                    print_stdout(
                        f"{count} worker(s): {wall:.1f} s, {per_minute[count]:.1f} clips a minute,"
                        f" {cpu:.1f} s of CPU ({share:.0f} % of each core), load {load:.1f}"
                    )
                print_stdout(f"ratio {per_minute[2] / per_minute[1]:.2f}")
        finally:
            for _, processes in clusters.values():
                for process in processes:
                    process.kill()


def _start(cores: list[int]) -> tuple[str, list[psutil.Popen]]:
    """A scheduler with a worker on each of `cores`: its address and the processes, the scheduler last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    environment = os.environ | {"MUSICGEN_MLX_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    dask = [sys.executable, "-m", "dask"]
    on_loopback = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = psutil.Popen([*dask, "scheduler", "--port", str(port), *on_loopback], **quiet)
    workers = [
        psutil.Popen(
            ["taskset", "-c", str(core), *dask, "worker", address, "--no-nanny", *on_loopback], **quiet
        )
        for core in cores
    ]
    return address, [*workers, scheduler]


def _cpu(processes: list[psutil.Popen]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes[:-1])


def _make(address: str, prompts: str, seconds: float) -> None:
    """Without the lines that the command prints."""
    out, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    try:
        words = ["--prompts", prompts, "-m", "demo", "-d", str(seconds), "--seed", "1", "--no-open"]
        assert command([*words, "-o", "clip.flac", "--cluster", address]) == 0
    finally:
        sys.stdout = out


if __name__ == "__main__":
    main()
