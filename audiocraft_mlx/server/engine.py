"""The thread that loads models and makes clips. (An MLX stream belongs to the thread that made it.)"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING

from audiocraft_mlx.clips.making import Chunk, Failed, Finished
from audiocraft_mlx.clips.planning import ClipPlan, WaitingClips, plan_clips
from audiocraft_mlx.clips.saving import check_size
from audiocraft_mlx.errors import OutputError
from audiocraft_mlx.server import schema
from audiocraft_mlx.server.errors import DISK_FULL
from audiocraft_mlx.server.folder import DataFolder
from audiocraft_mlx.server.jobs import Jobs, LiveJob
from audiocraft_mlx.server.models import Models, describe_failure
from audiocraft_mlx.server.running import MOST_TAKES, RunningTakes, Take
from audiocraft_mlx.server.saving import save_files
from audiocraft_mlx.server.store import AudioShape

if TYPE_CHECKING:
    import numpy as np

    from audiocraft_mlx.models.genmodel import GenModel
    from audiocraft_mlx.networks.htdemucs import HTDemucs

_log = logging.getLogger(__name__)
# Seconds without work: then all threads have freed what a batch took.
_SETTLED_SECONDS = 0.5
# Between two looks for room while nothing tells that there is any.
_LOOK_SECONDS = 1.0
# Jobs that turn out not to fit into a batch, after which no more are looked at.
_MISSES = 3


class _Cancelled(Exception):
    """Nobody wants the clips any more."""


class Engine:
    """Makes the jobs of a queue, in batches as the command makes them."""

    def __init__(self, jobs: Jobs, models: Models, folder: DataFolder, tidy: Callable[[], None]) -> None:
        """`tidy` is called between batches, and every few seconds without."""
        self._jobs, self._models, self._folder, self._tidy = jobs, models, folder, tidy
        self._thread = Thread(target=self._run, daemon=True, name="musicgen-mlx engine")
        self._news = Condition()
        self._has_news = self._stopping = False
        self._stopped = Event()
        self._wanted: deque[str] = deque()
        self._separator: HTDemucs | None = None
        self._begun: set[LiveJob] = set()
        """Jobs of which some takes are files."""
        self._planned: dict[LiveJob, list[Take]] = {}
        """Of the job that is the next one, while there is no room for it."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop between two steps. What can't be interrupted goes on alone, and has no effect."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._stopped.wait(timeout)

    def wake(self) -> None:
        """There is something new in the queue."""
        with self._news:
            self._has_news = True
            self._news.notify()

    def load(self, model: str) -> None:
        """Load a model before the next batch."""
        self._models.request(model)
        with self._news:
            if model not in self._wanted:
                self._wanted.append(model)
        self.wake()

    def _run(self) -> None:
        self._work_until_stopped()
        self._separator = None
        self._models.drop_all()
        self._stopped.set()
        # It waits for the end of the process: where a thread that has used MLX ends before that, and the main
        # thread hasn't used it, MLX 0.32 may abort the process when it exits.
        Event().wait()

    def _work_until_stopped(self) -> None:
        settled = True  # nothing was done since memory was given back
        while not self._stopping:
            try:
                self._tidy()
                self._remove_unwanted()
                if self._work():
                    settled = False
                elif not self._wait(5.0 if settled else _SETTLED_SECONDS) and not settled:
                    _give_back_all()
                    settled = True
            # Whatever it is, the next job may be fine.
            except Exception:
                if not self._stopping:
                    _log.exception("an unexpected error between two batches")
                    time.sleep(0.1)

    def _wait(self, seconds: float) -> bool:
        """Until there is something new, or so long; whether there is."""
        with self._news:
            if not self._has_news and not self._stopping:
                self._news.wait(seconds)
            news, self._has_news = self._has_news, False
            return news

    def _work(self) -> bool:
        """Load a model that is wanted, or make a batch; False if there is nothing to do."""
        if self._wanted:
            self._load(self._wanted.popleft())
            return True
        waiting = self._jobs.waiting()
        if not waiting:
            return False
        model = self._load(waiting[0].model)
        if model is not None:
            self._make(waiting[0].model, model)
            _give_back_all()
        return True

    def _load(self, name: str) -> GenModel | None:
        """A model; None if it can't be loaded: the jobs that wait for it have failed."""
        is_new = self._models.loaded(name) is None
        try:
            model = self._models.load(name)
        except Exception as error:
            message = describe_failure(error)
            _log.warning("the model %s can't be loaded: %s", name, message, exc_info=_traceback(error))
            for job in self._jobs.waiting():
                if job.model == name:
                    self._jobs.fail(job, message)
            return None
        if is_new:
            self._jobs.size(name, model)
        return model

    def _make(self, name: str, model: GenModel) -> None:
        """Make clips of a model as long as there are any, or until something else has its turn."""
        running = RunningTakes(model, self._jobs, self._require_wanted)
        with closing(running):
            try:
                has_room, looked = True, 0.0
                while not self._stopping:
                    # Somebody who listened may have gone, and there may be room for others.
                    if has_room or self._take_news() or time.monotonic() > looked + _LOOK_SECONDS:
                        self._admit(name, model, running)
                        looked = time.monotonic()
                    if not running.takes:
                        return
                    has_room = self._step(model, running)
            except Exception as error:
                if self._stopping:
                    raise
                _log.exception("an unexpected error while clips were made")
                # Nobody would go on with them.
                self._begun.update(take.job for take in running.takes)
                self._fail(list(dict.fromkeys(take.job for take in running.takes)), error)

    def _step(self, model: GenModel, running: RunningTakes) -> bool:
        """Take a step of all clips; whether some of them have ended."""
        ended = False
        for event in running.step():
            if isinstance(event, Failed):
                ended = True
                self._fail_batch(running, running.end(plan.index for plan in event.batch), event.error)
            elif isinstance(event, Chunk):
                take, audio = running.take(event.index), running.new_audio(event)
                if audio.shape[1]:
                    self._attempt(take.job, lambda: self._append(take, audio))  # noqa: B023, called at once
            elif isinstance(event, Finished):
                ended = True
                (take,), finished = running.end([event.index]), event
                self._begun.add(take.job)
                self._attempt(take.job, lambda: self._finish(model, take, finished))  # noqa: B023
        removed = running.remove_unwanted()
        self._begun.update(take.job for take in removed)
        if removed or ended:
            self._remove_unwanted()
            self._tidy()
            from audiocraft_mlx.models.memory import give_back_memory

            give_back_memory()
            return True
        return False

    def _fail_batch(self, running: RunningTakes, takes: Sequence[Take], error: Exception) -> None:
        """Clips that began together can't be made."""
        self._begun.update(take.job for take in takes)
        jobs = list(dict.fromkeys(take.job for take in takes if take.job.is_live))
        if isinstance(error, _Cancelled):
            return
        if len(jobs) > 1:
            # One of them may be at fault: guidance that makes the logits infinite, for example.
            _log.warning("a batch of %d jobs failed (%s): each is made alone", len(jobs), error)
            for job in jobs:
                running.add([take for take in takes if take.job is job])
            return
        if _traceback(error) and not self._stopping:
            _log.error("an unexpected error while clips were made", exc_info=error)
        self._fail(jobs, error)

    def _admit(self, name: str, model: GenModel, running: RunningTakes) -> None:
        """Add waiting clips to those that are made, as far as there is room."""
        # A model that is wanted is loaded when all have ended, and so has a job of another one its turn.
        while not self._stopping and not self._wanted:
            waiting = self._jobs.waiting()
            if not waiting or waiting[0].model != name or len(running.takes) >= MOST_TAKES:
                return
            waiting = [
                job for job in waiting if job.model == name and running.clients_room(job.record.client) > 0
            ]
            if not waiting:
                return
            try:
                takes = self._next_batch(model, waiting, running)
            except Exception as error:  # not again and again
                _log.exception("no batch can be put together")
                self._fail(waiting[:1], error)
                continue
            if not takes:
                return
            self._jobs.size(name, model, dict.fromkeys(take.job for take in takes))
            self._jobs.start([(take.job, take.number) for take in takes])
            for take in takes:
                self._attempt(take.job, lambda take=take: self._begin(model, take))  # type: ignore[misc]
            takes = [take for take in takes if take.job.is_live]
            if takes:
                running.add(takes)

    def _next_batch(self, model: GenModel, waiting: Sequence[LiveJob], running: RunningTakes) -> list[Take]:
        """The first job's clips, and those of others that may begin with them, as far as there is room.

        All are of `model`, and their clients have room.
        """
        first, size, misses = waiting[0], MOST_TAKES, 0
        candidates: dict[ClipPlan, Take] = {}
        for job in waiting:
            if job.recipe.rough_key != first.recipe.rough_key:
                continue
            # Planning a job decodes its audio: none for later batches.
            if len(candidates) >= size or misses >= _MISSES:
                break
            try:
                takes = self._planned.pop(job, None) or self._plan(model, job)
            except Exception as error:
                if _traceback(error):
                    _log.exception("a job can't be planned")
                self._jobs.fail(job, describe_failure(error))
                if job is first:
                    return self._next_batch(model, waiting[1:], running) if waiting[1:] else []
                continue
            count, client = len(candidates), job.record.client
            room = running.clients_room(client)
            room -= sum(take.job.record.client == client for take in candidates.values())
            for take in takes[:room]:
                if not candidates or take.plan.batch_key == next(iter(candidates)).batch_key:
                    candidates[take.plan] = take
            if not count:
                size = running.room_for(takes)
                if not size:
                    self._planned = {job: takes}  # so that its audio isn't decoded again when there is room
                    return []
            misses += len(candidates) == count
        batch = WaitingClips(candidates).take(model, most=size)
        return [candidates[plan] for plan in batch]

    def _plan(self, model: GenModel, job: LiveJob) -> list[Take]:
        """The takes of a job that nobody makes yet. Raises what reading its audio, or Demucs, does."""
        if job.recipe.output.stems:
            self._load_separator()
        numbers = range(job.taken, len(job.recipe.clips))
        plans = plan_clips(model, job.recipe.load()[job.taken :])
        path = self._folder.clip_file(job.id, job.record.clips[0].id, job.recipe.output.audio_format)
        check_size(Path(path.name), plans[0].request, job.recipe.output, model)
        return [Take(job, number, plan) for number, plan in zip(numbers, plans, strict=True)]

    def _require_wanted(self, jobs: Iterable[LiveJob]) -> None:
        """Raise `_Cancelled` if nobody wants clips of `jobs` any more."""
        if self._stopping or not any(job.is_live for job in jobs):
            raise _Cancelled

    def _take_news(self) -> bool:
        """Whether there is something new in the queue since this was asked last."""
        if not self._has_news:  # after each step: without the lock
            return False
        with self._news:
            self._has_news = False
        return True

    def _attempt(self, job: LiveJob, work: Callable[[], None]) -> None:
        """Do the `work` of one job: if it fails, the others go on."""
        if self._stopping or not job.is_live:
            return
        try:
            work()
        except Exception as error:
            if _traceback(error) and not self._stopping:
                _log.exception("an unexpected error in one job of a batch")
            self._fail([job], error)

    def _begin(self, model: GenModel, take: Take) -> None:
        job, plan = take.job, take.plan
        clip = job.clips[take.number]
        if clip.new is not None:
            return
        new = AudioShape(model.sample_rate, model.audio_channels, round(plan.seconds * model.sample_rate))
        source = None
        if plan.source is not None and plan.replacement is None:
            source = plan.source.resampled(model.sample_rate, model.audio_channels)
        clip.begin(self._folder.making, new, source)
        self._jobs.tell_peaks(job.record.clips[take.number].id, 0, clip.peaks)

    def _append(self, take: Take, audio: np.ndarray) -> None:
        """`audio` is float32 `[channels, n]`."""
        start, peaks = take.job.clips[take.number].append(audio)
        self._jobs.tell_peaks(take.job.record.clips[take.number].id, start, peaks)

    def _finish(self, model: GenModel, take: Take, event: Finished) -> None:
        job, number = take.job, take.number
        clip, audio = job.record.clips[number], job.clips[number].new
        assert audio is not None
        separator = self._load_separator() if job.recipe.output.stems else None
        job.finished[number] = save_files(
            self._folder,
            job.id,
            clip,
            job.recipe,
            take.plan,
            audio,
            model.sample_rate,
            separator,
            job.clips[number].peaks,
            event.codes,
            event.loop,
        )
        if len(job.finished) == len(job.clips):
            self._jobs.finish(job, event.elapsed)

    def _load_separator(self) -> HTDemucs:
        if self._separator is None:
            from audiocraft_mlx.checkpoints.demucs import load_htdemucs

            self._separator = load_htdemucs()
        return self._separator

    def _fail(self, jobs: Sequence[LiveJob], error: Exception) -> None:
        message = describe_failure(error)
        if isinstance(error, OutputError):
            self._jobs.warn(message if message == DISK_FULL else str(error))
        for job in jobs:
            self._jobs.fail(job, message)

    def _remove_unwanted(self) -> None:
        """Remove the files of jobs that have ended before all of their takes were made."""
        for job in [job for job in self._begun if not job.is_live]:
            self._begun.discard(job)
            if job.record.status is not schema.Status.DONE:
                self._folder.remove_job(job.id, [clip.id for clip in job.record.clips])


def _give_back_all() -> None:
    """What a batch took: with the last arrays, which MLX's own threads free a moment later."""
    import mlx.core as mx

    from audiocraft_mlx.models.memory import give_back_memory

    mx.synchronize()
    give_back_memory()


def _traceback(error: Exception) -> bool:
    """Whether an error is a bug, of which the log should have more."""
    return describe_failure(error).startswith("an unexpected error")
