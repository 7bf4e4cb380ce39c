"""The takes of jobs that are made at the same time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from audiocraft_mlx.clips.defaults import CHUNK_SECONDS, FIRST_CHUNK_SECONDS
from audiocraft_mlx.clips.making import Chunk, Event, Failed, Progress, RunningClips
from audiocraft_mlx.clips.planning import ClipPlan, room_for
from audiocraft_mlx.models.memory import MAX_BATCH_SIZE
from audiocraft_mlx.server import schema
from audiocraft_mlx.server.jobs import Jobs, LiveJob

if TYPE_CHECKING:
    import numpy as np

    from audiocraft_mlx.models.genmodel import GenModel

MOST_TAKES = MAX_BATCH_SIZE + 4
"""At a time. A client has up to `MAX_BATCH_SIZE`, so that another one who comes then needn't wait."""

# Seconds between two events of a batch's progress.
_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Take:
    """A clip that is made, or is the next to be."""

    job: LiveJob
    number: int
    """Of the job's takes."""
    plan: ClipPlan

    @property
    def is_heard(self) -> bool:
        """Whether somebody reads it while it is made."""
        return self.number < len(self.job.clips) and self.job.clips[self.number].readers > 0


@dataclass
class _Batch:
    """Takes that began together."""

    takes: tuple[Take, ...]
    begun: float = field(default_factory=time.perf_counter)
    told: float = field(default_factory=time.perf_counter)
    done: float = 0.0
    """The part of its steps that was taken."""

    @property
    def jobs(self) -> list[LiveJob]:
        return list(dict.fromkeys(take.job for take in self.takes))


class RunningTakes:
    """The takes of one model that are made now; others join when there is room, between any two steps."""

    def __init__(
        self, model: GenModel, jobs: Jobs, require_wanted: Callable[[Iterable[LiveJob]], None]
    ) -> None:
        """`require_wanted` is called with the jobs of a batch after each of its steps, and may raise."""
        self._model, self._jobs, self._require_wanted = model, jobs, require_wanted
        self._clips = RunningClips(
            model,
            chunk_seconds=CHUNK_SECONDS,
            first_chunk_seconds=FIRST_CHUNK_SECONDS,
            on_progress=self._advance,
        )
        self._takes: dict[int, Take] = {}
        self._batches: dict[int, _Batch] = {}
        """By the index of the first take."""
        self._known: dict[int, int] = {}
        """Samples of a take that was begun before and come again: equal ones."""
        self._next = 0
        self._pace = _Pace(model.frame_rate)

    @property
    def takes(self) -> list[Take]:
        return [*self._takes.values()]

    def clients_room(self, client: str) -> int:
        """How many more takes of a client may be made."""
        return MAX_BATCH_SIZE - sum(take.job.record.client == client for take in self._takes.values())

    def room_for(self, takes: Sequence[Take]) -> int:
        """How many takes like these, of which the first is a client's, there is room for."""
        running = self._clips.plans
        plans = [take.plan for take in takes]
        room = room_for(self._model, plans, running, MOST_TAKES, self._clips.starting)
        room = min(room, MAX_BATCH_SIZE, self.clients_room(takes[0].job.record.client))
        if any(take.is_heard for take in self._takes.values()):
            room = min(room, self._pace.room(len(running)))
        return max(0, room)

    def add(self, takes: Sequence[Take]) -> None:
        """Takes with equal `batch_key` begin together."""
        first, plans = self._next, []
        for take in takes:
            plans.append(replace(take.plan, index=self._next))
            new = take.job.clips[take.number].new
            self._known[self._next] = 0 if new is None else new.samples
            self._takes[self._next] = replace(take, plan=plans[-1])
            self._next += 1
        self._batches[first] = _Batch(tuple(self._takes[plan.index] for plan in plans))
        self._clips.add(plans)

    def step(self) -> Iterator[Event | Failed]:
        rows, seconds = len(self._clips.plans), 0.0
        usual = not self._clips.starting  # no texts or prompts are read
        events = self._clips.step()
        while True:
            begun = time.perf_counter()
            event = next(events, None)
            seconds += time.perf_counter() - begun
            if event is None:
                break
            yield event
        if usual:
            self._pace.add(rows, seconds)

    def take(self, index: int) -> Take:
        return self._takes[index]

    def new_audio(self, chunk: Chunk) -> np.ndarray:
        """What of a chunk, float32 `[channels, n]`, isn't there yet."""
        known = min(self._known[chunk.index], chunk.audio.shape[1])
        self._known[chunk.index] -= known
        return chunk.audio[:, known:]

    def end(self, indices: Iterable[int]) -> list[Take]:
        """These takes are no longer made."""
        ended = [self._takes.pop(index) for index in indices]
        for take in ended:
            self._batches.pop(take.plan.index, None)
            del self._known[take.plan.index]
        return ended

    def remove_unwanted(self) -> list[Take]:
        """Stop making batches of which no job is live any more; their takes."""
        removed = []
        for batch in list(self._batches.values()):
            if not any(take.job.is_live for take in batch.takes):
                self._clips.remove(batch.takes[0].plan)
                removed += self.end(
                    [take.plan.index for take in batch.takes if take.plan.index in self._takes]
                )
        return removed

    def close(self) -> None:
        self._clips.close()

    def _advance(self, progress: Progress) -> None:
        batch = self._batches[progress.first]
        batch.done = progress.done / progress.total
        self._require_wanted(batch.jobs)
        now = time.perf_counter()
        if now - batch.told < _PROGRESS_SECONDS and progress.done < progress.total:
            return
        batch.told = now
        seconds = sum(take.plan.seconds for take in batch.takes)
        speed = seconds * progress.done / progress.total / max(now - batch.begun, 1e-6)
        for job in batch.jobs:
            if job.is_live:
                done = round(self._part_of(job) * progress.total)
                of_job = schema.Progress(done=done, total=progress.total)
                self._jobs.advance(job, of_job, round(speed, 3))

    def _part_of(self, job: LiveJob) -> float:
        """How much of a job is made, 0 to 1: its takes may have begun at different times."""
        running = [
            batch.done
            for batch in self._batches.values()
            for take in batch.takes
            if take.job is job and take.plan.index in self._takes
        ]
        return (job.taken - len(running) + sum(running)) / len(job.recipe.clips)


class _Pace:
    """How long a step takes with so many clips, as far as it is known."""

    def __init__(self, frame_rate: float) -> None:
        self._limit = 1 / frame_rate
        # Of a second of music: chunks of it are decoded in some of the steps.
        self._newest = round(frame_rate)
        self._steps: dict[int, deque[float]] = {}

    def add(self, clips: int, seconds: float) -> None:
        """A step took so long."""
        self._steps.setdefault(clips, deque(maxlen=self._newest)).append(seconds)

    def room(self, clips: int) -> int:
        """How many may join `clips` so that these, if they are made in real time, still are."""
        now = self._seconds(clips)
        if now is None or now > self._limit:
            return MOST_TAKES
        room = 0
        while room < MOST_TAKES:
            seconds = self._seconds(clips + room + 1)
            # What isn't known is taken to grow with the clips.
            if (now * (1 + (room + 1) / clips) if seconds is None else seconds) > self._limit:
                break
            room += 1
        return room

    def _seconds(self, clips: int) -> float | None:
        steps = self._steps.get(clips)
        return fmean(steps) if steps else None
