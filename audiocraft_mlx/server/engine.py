"""The thread that loads models and makes clips. (An MLX stream belongs to the thread that made it.)"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING

from audiocraft_mlx.clips.defaults import CHUNK_SECONDS, FIRST_CHUNK_SECONDS
from audiocraft_mlx.clips.making import Chunk, Finished, Progress, Started, generate_clips
from audiocraft_mlx.clips.planning import ClipPlan, most_in_batch, plan_batches, plan_clips
from audiocraft_mlx.clips.saving import check_size
from audiocraft_mlx.errors import OutputError
from audiocraft_mlx.machine import trim_heap
from audiocraft_mlx.models.memory import MAX_BATCH_SIZE
from audiocraft_mlx.server import schema
from audiocraft_mlx.server.errors import DISK_FULL
from audiocraft_mlx.server.folder import DataFolder
from audiocraft_mlx.server.jobs import Jobs, LiveJob
from audiocraft_mlx.server.models import Models, describe_failure
from audiocraft_mlx.server.saving import save_files
from audiocraft_mlx.server.store import AudioShape

if TYPE_CHECKING:
    import numpy as np

    from audiocraft_mlx.models.genmodel import GenModel
    from audiocraft_mlx.networks.htdemucs import HTDemucs

_log = logging.getLogger(__name__)
# Seconds between two events of a batch's progress.
_PROGRESS_SECONDS = 0.2
# Seconds without work: then all threads have freed what a batch took.
_SETTLED_SECONDS = 0.5
# Jobs that turn out not to fit into a batch, after which no more are looked at.
_MISSES = 3


class _Cancelled(Exception):
    """Nobody wants the batch any more."""


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
                    _give_back_memory()
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
            try:
                batch = self._next_batch(model, waiting)
            except Exception as error:  # not again and again
                _log.exception("no batch can be put together")
                self._fail(waiting[:1], error)
                return True
            if batch:
                self._make(model, batch)
                _give_back_memory()
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

    def _next_batch(self, model: GenModel, waiting: Sequence[LiveJob]) -> list[tuple[LiveJob, int, ClipPlan]]:
        """The first job's clips, and those of others that may share their batch, as far as memory goes."""
        first, size, misses = waiting[0], MAX_BATCH_SIZE, 0
        candidates: dict[ClipPlan, tuple[LiveJob, int]] = {}
        for job in waiting:
            if job.model != first.model or job.recipe.rough_key != first.recipe.rough_key:
                continue
            # Planning a job decodes its audio: none for later batches.
            if len(candidates) >= size or misses >= _MISSES:
                break
            try:
                plans = self._plan(model, job)
            except Exception as error:
                if _traceback(error):
                    _log.exception("a job can't be planned")
                self._jobs.fail(job, describe_failure(error))
                if job is first:
                    return []
                continue
            count = len(candidates)
            for take, plan in plans:
                if not candidates or plan.batch_key == next(iter(candidates)).batch_key:
                    candidates[plan] = job, take
            if not count:
                size = most_in_batch(model, [*candidates])
            misses += len(candidates) == count
        if not candidates:
            return []
        batch = next(plan_batches(model, [*candidates]))
        return [(*candidates[plan], plan) for plan in batch]

    def _plan(self, model: GenModel, job: LiveJob) -> list[tuple[int, ClipPlan]]:
        """The takes of a job that nobody makes yet. Raises what reading its audio, or Demucs, does."""
        if job.recipe.output.stems:
            self._load_separator()
        takes = range(job.taken, len(job.recipe.clips))
        plans = plan_clips(model, job.recipe.load()[job.taken :])
        path = self._folder.clip_file(job.id, job.record.clips[0].id, job.recipe.output.audio_format)
        check_size(Path(path.name), plans[0].request, job.recipe.output, model)
        return list(zip(takes, plans, strict=True))

    def _make(self, model: GenModel, batch: list[tuple[LiveJob, int, ClipPlan]]) -> None:
        """Make a batch, whatever happens."""
        jobs = list(dict.fromkeys(job for job, _, _ in batch))
        try:
            self._jobs.size(jobs[0].model, model, jobs)
            self._jobs.start([(job, take) for job, take, _ in batch])
            try:
                self._generate(model, batch)
            except Exception as error:
                if len(jobs) == 1 or isinstance(error, _Cancelled):
                    raise
                # One of them may be at fault: guidance that makes the logits infinite, for example.
                _log.warning("a batch of %d jobs failed (%s): each is made alone", len(jobs), error)
                for job in jobs:
                    self._make_alone(model, job, [each for each in batch if each[0] is job])
        except _Cancelled:
            pass
        except Exception as error:
            if _traceback(error) and not self._stopping:
                _log.exception("an unexpected error while clips were made")
            self._fail(jobs, error)
        finally:
            self._begun.update(jobs)
            self._remove_unwanted()

    def _make_alone(self, model: GenModel, job: LiveJob, takes: list[tuple[LiveJob, int, ClipPlan]]) -> None:
        """Make the takes of a job of a batch that failed, if it is live."""
        if not job.is_live:
            return
        _give_back_memory()
        try:
            self._generate(model, takes)
        except _Cancelled:
            if self._stopping:
                raise
        except Exception as error:
            if _traceback(error) and not self._stopping:
                _log.exception("an unexpected error while clips were made")
            self._fail([job], error)

    def _generate(self, model: GenModel, batch: list[tuple[LiveJob, int, ClipPlan]]) -> None:
        """Make the clips of a batch, those that have begun already from where their audio ends."""
        jobs = list(dict.fromkeys(job for job, _, _ in batch))
        begun = told = time.perf_counter()
        seconds = sum(plan.seconds for _, _, plan in batch)
        # Samples of each that are there: equal ones come again.
        there = [0 if (new := job.clips[take].new) is None else new.samples for job, take, _ in batch]

        def on_progress(progress: Progress) -> None:
            nonlocal told
            if self._stopping or not any(job.is_live for job in jobs):
                raise _Cancelled
            now = time.perf_counter()
            if now - told < _PROGRESS_SECONDS and progress.done < progress.total:
                return
            told = now
            speed = seconds * progress.done / progress.total / max(now - begun, 1e-6)
            done = schema.Progress(done=progress.done, total=progress.total)
            for job in jobs:
                if job.is_live:
                    self._jobs.advance(job, done, round(speed, 3))

        for job, take, plan in batch:
            self._attempt(job, lambda job=job, take=take, plan=plan: self._begin(model, job, take, plan))  # type: ignore[misc]
        events = generate_clips(
            model,
            [plan.request for _, _, plan in batch],
            batch_size=len(batch),
            chunk_seconds=CHUNK_SECONDS,
            first_chunk_seconds=FIRST_CHUNK_SECONDS,
            on_progress=on_progress,
        )
        with closing(events):
            for event in events:
                if isinstance(event, Started):
                    begun = time.perf_counter()
                elif isinstance(event, Chunk | Finished):
                    job, take, plan = batch[event.index]
                    if isinstance(event, Chunk):
                        known = min(there[event.index], event.audio.shape[1])
                        there[event.index] -= known
                        audio = event.audio[:, known:]
                        if audio.shape[1]:
                            self._attempt(job, lambda: self._append(job, take, audio))  # noqa: B023, called at once
                    else:
                        self._attempt(job, lambda: self._finish(model, job, take, plan, event))  # noqa: B023

    def _attempt(self, job: LiveJob, work: Callable[[], None]) -> None:
        """Do the `work` of one job of the batch: if it fails, the others go on."""
        if self._stopping:
            raise _Cancelled
        if not job.is_live:
            return
        try:
            work()
        except Exception as error:
            if _traceback(error) and not self._stopping:
                _log.exception("an unexpected error in one job of a batch")
            self._fail([job], error)

    def _begin(self, model: GenModel, job: LiveJob, take: int, plan: ClipPlan) -> None:
        clip = job.clips[take]
        if clip.new is not None:
            return
        new = AudioShape(model.sample_rate, model.audio_channels, round(plan.seconds * model.sample_rate))
        source = None
        if plan.source is not None and plan.replacement is None:
            source = plan.source.resampled(model.sample_rate, model.audio_channels)
        clip.begin(self._folder.making, new, source)
        self._jobs.tell_peaks(job.record.clips[take].id, 0, clip.peaks)

    def _append(self, job: LiveJob, take: int, audio: np.ndarray) -> None:
        """`audio` is float32 `[channels, n]`."""
        start, peaks = job.clips[take].append(audio)
        self._jobs.tell_peaks(job.record.clips[take].id, start, peaks)

    def _finish(self, model: GenModel, job: LiveJob, take: int, plan: ClipPlan, event: Finished) -> None:
        clip, audio = job.record.clips[take], job.clips[take].new
        assert audio is not None
        separator = self._load_separator() if job.recipe.output.stems else None
        job.finished[take] = save_files(
            self._folder,
            job.id,
            clip,
            job.recipe,
            plan,
            audio,
            model.sample_rate,
            separator,
            job.clips[take].peaks,
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


def _give_back_memory() -> None:
    """What a batch took: with the last arrays, which MLX's own threads free a moment later."""
    import mlx.core as mx

    mx.synchronize()
    trim_heap()


def _traceback(error: Exception) -> bool:
    """Whether an error is a bug, of which the log should have more."""
    return describe_failure(error).startswith("an unexpected error")
