"""Clips per minute of a list of clips of many lengths: `python benchmarks/prompt_list.py` (20 minutes).

In batches of clips of equal length, each of which waits for the one before, and with clips that take the
place of those that end; by turns, in one process. A model of musicgen-small's shape with random weights, in
4 bits with 8-bit activations.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import numpy as np

from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.making import Chunk, Failed, RunningClips
from audiocraft_mlx.clips.planning import WaitingClips, plan_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.models.musicgen import MusicGen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="small", help="a shape: small, medium or large")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--shortest", type=float, default=2.0, help="seconds")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds")
    parser.add_argument("--step", type=float, default=1.0, help="lengths are multiples of it; 0: any length")
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()
    bundle = BenchmarkModel(arguments.model, random=True).load(4, int8_activations=True)
    model = MusicGen(arguments.model, bundle)
    draw = random.Random(0)
    requests = []
    for seed in range(arguments.clips):
        seconds = draw.uniform(arguments.shortest, arguments.longest)
        if arguments.step:
            seconds = arguments.step * round(seconds / arguments.step)
        requests.append(ClipRequest("a chill lo-fi beat", seed, round(seconds, 2)))
    seconds = sum(request.duration for request in requests)
    print_stdout(f"{len(requests)} clips, {seconds:.0f} s of music")
    for run in range(arguments.runs):
        took = {}
        for joins in (False, True) if run % 2 == 0 else (True, False):
            start = time.perf_counter()
            samples = make(model, requests, joins)
            took[joins] = time.perf_counter() - start
            assert len(samples) == len(requests)
            name = "joining and leaving" if joins else "batches of equal length"
            per_minute = 60 * len(requests) / took[joins]
            print_stdout(f"{name}: {took[joins]:.1f} s, {per_minute:.1f} clips a minute")
        print_stdout(f"ratio {took[False] / took[True]:.2f}")


def make(model: MusicGen, requests: Sequence[ClipRequest], joins: bool) -> dict[int, int]:
    """The samples of each clip; unless one `joins` others they begin when all others have ended."""
    waiting, running = WaitingClips(plan_clips(model, requests)), RunningClips(model)
    samples: dict[int, int] = {}
    while waiting or running.plans:
        while (joins or not running.plans) and (batch := waiting.take(model, running.plans)):
            running.add(batch)
        for event in running.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Chunk):
                samples[event.index] = samples.get(event.index, 0) + np.asarray(event.audio).shape[1]
    return samples


if __name__ == "__main__":
    main()
