"""Clips that join a running batch, and leave it, have the codes that each has alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.decoding.continuous_batch import ContinuousBatch, Ended
from audiocraft_mlx.decoding.step import LMStep
from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.ops.cpu.extension import load_extension
from audiocraft_mlx.ops.device import gpu_branch

RATE = 32000
TEXTS = ("rock", "a chill lo-fi beat with soft piano and vinyl crackle", None, "jazz")


@dataclass
class Job:
    """A generation of one row or of several, and the codes that came of it."""

    model: MusicGen
    texts: list[Any]
    options: dict[str, Any]
    given: dict[str, Any]
    seed: int
    begin: int
    """The step of the schedule that it joins at."""
    cancel: int | None = None
    """The step that it is cancelled at."""
    codes: list[np.ndarray] = field(default_factory=list)

    def start(self) -> Iterator[mx.array | LMStep]:
        self.codes = []
        seeds = [self.seed + row for row in range(len(self.texts))]
        return self.model.stream_steps(
            self.model.prepare_inputs(self.texts, seeds, **self.given),
            self.model.make_params(**self.options),
            chunk_seconds=0.2,
            on_codes=lambda codes: self.codes.append(np.array(codes)),
        )

    def alone(self) -> np.ndarray:
        for item in self.start():
            if isinstance(item, LMStep):
                item.take()
        return np.concatenate(self.codes, axis=2)


def random_jobs(model: MusicGen, count: int, seed: int) -> list[Job]:
    draw = random.Random(seed)
    melody = "melody" in model.condition_types
    jobs = []
    for number in range(count):
        options: dict[str, Any] = {"duration": draw.choice((0.3, 0.5, 0.84, 1.1))}
        options |= draw.choice(({}, {}, {"temperature": 0.7}, {"top_k": 3}, {"use_sampling": False}))
        options |= draw.choice(({}, {}, {"cfg_coef": 1.0}, {"cfg_coef": 5.0}, {"two_step_cfg": True}))
        texts: list[Any] = [draw.choice(TEXTS)] * draw.choice((1, 1, 1, 2))
        given: dict[str, Any] = {}
        kind = draw.choice(("plain", "plain", "prompt", "sections", "negative"))
        if kind == "prompt":
            clip = 0.1 * np.random.default_rng(number).standard_normal((1, RATE // 10)).astype(np.float32)
            given = {"prompt": [clip] * len(texts), "prompt_sample_rate": RATE}
        elif kind == "sections" and not melody:
            texts = [[(0, "rock"), (0.1, "jazz"), (0.2, "a waltz", 0.06)]] * len(texts)
        elif kind == "negative" and options.get("cfg_coef") != 1.0:
            given = {"negative": "noise, distortion"}
        if melody and draw.random() < 0.5:
            tone = np.sin(np.arange(RATE) * draw.choice((0.05, 0.08)))[None].astype(np.float32)
            given |= {"melody_wavs": [tone] * len(texts), "melody_sample_rate": RATE}
            given["melody_separation"] = "off"
        cancel = draw.randrange(3, 30) if draw.random() < 0.15 else None
        jobs.append(Job(model, texts, options, given, draw.randrange(2**32), draw.randrange(60), cancel))
    return jobs


def run(jobs: list[Job]) -> None:
    batch: ContinuousBatch[int, mx.array] = ContinuousBatch()
    step, waiting = 0, set(range(len(jobs)))
    while waiting or len(batch):
        for number in sorted(waiting):
            if jobs[number].begin <= step:
                batch.add(number, jobs[number].start())
                waiting.discard(number)
        for number, job in enumerate(jobs):
            if job.cancel is not None and step == job.begin + job.cancel:
                batch.remove(number)
        for _, item in batch.step():
            assert not isinstance(item, Ended) or item.error is None
        step += 1


@pytest.mark.parametrize("cache_bits", [None, 8])
@pytest.mark.parametrize("name", ["mono", "stereo", "melody"])
def test_codes_do_not_depend_on_the_company(
    transformers_folder: Callable[[str], Path], name: str, cache_bits: int | None
) -> None:
    if cache_bits and load_extension() is None:
        pytest.skip("MLX rounds products of one row and of several differently, and so steps of int8")
    model = MusicGen.get_pretrained(str(transformers_folder(name)), cache_bits=cache_bits)
    model.max_duration = 0.8  # so that some have windows, which leave and come back
    jobs = random_jobs(model, 25, seed=len(name))
    run(jobs)
    finished = 0
    none = np.zeros((model.lm.config.num_codebooks, 0), np.int32)
    for job in jobs:
        together = np.concatenate([np.stack([none] * len(job.texts)), *job.codes], axis=2)
        wanted = job.alone()
        if job.cancel is None:
            assert together.shape == wanted.shape
        finished += together.shape == wanted.shape
        np.testing.assert_array_equal(together, wanted[:, :, : together.shape[2]], err_msg=repr(job))
    assert finished > 15


def test_an_error_ends_its_own_sequence_alone(transformers_folder: Callable[[str], Path]) -> None:
    model = MusicGen.get_pretrained(str(transformers_folder("mono")))
    job = Job(model, ["rock"], {"duration": 0.3}, {}, 1, 0)

    def failing() -> Iterator[mx.array | LMStep]:
        other = Job(model, ["jazz"], {"duration": 0.3}, {}, 1, 0).start()
        for number, item in enumerate(other):
            if number == 7:
                raise MusicGenError("no more")
            yield item

    batch: ContinuousBatch[str, mx.array] = ContinuousBatch()
    batch.add("good", job.start())
    batch.add("bad", failing())
    ended = {}
    while len(batch):
        ended |= {key: item.error for key, item in batch.step() if isinstance(item, Ended)}
    assert ended.pop("good") is None
    assert str(ended.pop("bad")) == "no more"
    together = np.concatenate(job.codes, axis=2)
    np.testing.assert_array_equal(together, job.alone())


@pytest.mark.parametrize("branch", ["cpu", "gpu"])
@pytest.mark.parametrize("cache_bits", [None, 8])
def test_what_a_row_leaves_in_its_slot_is_no_matter(
    transformers_folder: Callable[[str], Path], branch: str, cache_bits: int | None
) -> None:
    with gpu_branch() if branch == "gpu" else nullcontext():
        model = MusicGen.get_pretrained(str(transformers_folder("mono")), cache_bits=cache_bits)
        long = Job(model, ["rock"], {"duration": 1.1, "cfg_coef": 1.0}, {}, 1, 0)
        bad = Job(model, ["jazz"], {"duration": 1.1, "cfg_coef": 1.0}, {}, 2, 0)
        late = Job(model, ["a waltz"], {"duration": 0.3, "cfg_coef": 1.0}, {}, 3, 0)
        batch: ContinuousBatch[str, mx.array] = ContinuousBatch()
        batch.add("long", long.start())
        batch.add("bad", bad.start())
        for _ in range(30):
            list(batch.step())
        # Half precision may overflow for one row: its keys and values are NaN then.
        steps = batch._merged._steps
        assert steps is not None
        for cache in steps.state.caches:
            target = cache.keys_values if cache.scales is None else cache.scales
            target[1] = float("nan")
            mx.eval(target)
        batch.remove("bad")
        list(batch.step())
        batch.add("late", late.start())
        while len(batch):
            for _, item in batch.step():
                assert not isinstance(item, Ended) or item.error is None
        for job in (late, long):
            together = np.concatenate(job.codes, axis=2)
            np.testing.assert_array_equal(together, job.alone())


@pytest.mark.usefixtures("eighth_merged_step_fails")
def test_a_step_that_fails_ends_those_that_took_it(transformers_folder: Callable[[str], Path]) -> None:
    model = MusicGen.get_pretrained(str(transformers_folder("mono")))
    jobs = {seed: Job(model, ["rock"], {"duration": 0.3}, {}, seed, 0) for seed in range(3)}
    batch: ContinuousBatch[int, mx.array] = ContinuousBatch()
    ended: dict[int, Exception | None] = {}
    for seed in (0, 1):
        batch.add(seed, jobs[seed].start())
    while len(batch):
        ended |= {key: item.error for key, item in batch.step() if isinstance(item, Ended)}
    assert {key: str(error) for key, error in ended.items()} == {0: "no more", 1: "no more"}
    for seed in (1, 2):
        batch.add(seed, jobs[seed].start())
    while len(batch):
        ended |= {key: item.error for key, item in batch.step() if isinstance(item, Ended)}
    assert (ended[1], ended[2]) == (None, None)
    for seed in (1, 2):
        np.testing.assert_array_equal(np.concatenate(jobs[seed].codes, axis=2), jobs[seed].alone())
