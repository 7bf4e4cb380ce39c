"""The thread of a cluster's machine that loads models and makes clips; they join and leave at any step.

An MLX stream belongs to the thread that made it, and Dask's tasks come in threads of their own: these wait.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from audiocraft_mlx.clips.defaults import CHUNK_SECONDS, FIRST_CHUNK_SECONDS, PROGRAMS
from audiocraft_mlx.cluster.values import ModelSpec
from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.machine import is_out_of_memory, num_cpus

if TYPE_CHECKING:
    import numpy as np

    from audiocraft_mlx.audio.loop import Loop
    from audiocraft_mlx.clips.codes import ClipCodes
    from audiocraft_mlx.clips.making import RunningClips
    from audiocraft_mlx.clips.planning import ClipPlan
    from audiocraft_mlx.clips.requests import ClipRequest
    from audiocraft_mlx.models.genmodel import GenModel

T = TypeVar("T")
THREADS_ENV_VAR = "MUSICGEN_MLX_THREADS"
# How often a clip that waits is asked whether it is still wanted.
_ASK_SECONDS = 0.5
# How long a process that ends waits for a step to end.
_STOP_SECONDS = 5.0


class Unwanted(Exception):
    """Nobody waits for the clip any more."""


@dataclass(frozen=True, eq=False)
class Generated:
    """The new music of a clip."""

    plan: ClipPlan
    sample_rate: int
    codes: ClipCodes | None
    elapsed: float
    """Seconds, since its first step."""
    loop: Loop | None
    """What is cut out of it, if it is one."""


@dataclass(eq=False)
class _Job:
    """Something to be done with a model."""

    spec: ModelSpec
    work: Callable[[GenModel], Any] | None = None
    """What is called between two steps; None: a clip is made."""
    request: ClipRequest | None = None
    on_audio: Callable[[np.ndarray], None] | None = None
    plan: ClipPlan | None = None
    is_wanted: bool = True
    result: Any = None
    error: BaseException | None = None
    done: Event = field(default_factory=Event)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self.done.set()


class ClipEngine:
    """Makes the clips that other threads ask for, as many at once as there is room for."""

    def __init__(self) -> None:
        self._news = Condition()
        self._waiting: deque[_Job] = deque()
        self._spec: ModelSpec | None = None
        self._model: GenModel | None = None
        self._running: dict[int, _Job] = {}
        self._next = 0
        self._stopping, self._stopped = False, Event()
        atexit.register(self._stop)
        Thread(target=self._run, daemon=True, name="musicgen-mlx engine").start()

    def call(self, spec: ModelSpec, work: Callable[[GenModel], T]) -> T:
        """`work` with a model, in the engine's thread before any clip that waits. Raises what it does."""
        job = _Job(spec, work)
        with self._news:
            self._waiting.appendleft(job)
            self._news.notify()
        job.done.wait()
        return _result(job)

    def generate(
        self,
        spec: ModelSpec,
        request: ClipRequest,
        on_audio: Callable[[np.ndarray], None],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Generated:
        """Make a clip. Waits until there is room for it, and then until it is made.

        Args:
            request: its audio is read.
            on_audio: is given float32 `[channels, n]`, piece by piece, in the engine's thread.
            is_wanted: called now and then.

        Raises:
            Unwanted: it said no.
            MusicGenError: it can't be made.
        """
        job = _Job(spec, request=request, on_audio=on_audio)
        with self._news:
            self._waiting.append(job)
            self._news.notify()
        while not job.done.wait(_ASK_SECONDS):
            if not is_wanted():
                job.is_wanted = False
        return _result(job)

    def _run(self) -> None:
        _use_all_processors()
        while (job := self._wait()) is not None:
            try:
                self._load(job.spec)
                self._work()
            except BaseException as error:  # whatever it is, the next one may be fine
                with self._news, suppress(ValueError):
                    self._waiting.remove(job)
                job.end(error=error)
                for other in self._running.values():
                    other.end(error=error)
                self._running = {}
            # Not before `_use_all_processors`, and where MLX can't be imported a job has said so.
            with suppress(ImportError):
                from audiocraft_mlx.models.memory import give_back_memory

                give_back_memory()
        self._stopped.set()
        # It waits for the end of the process: MLX may abort one whose thread that has used it has ended.
        Event().wait()

    def _stop(self) -> None:
        """Stop between two steps: a process that exits in the middle of one is aborted."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._stopped.wait(_STOP_SECONDS)

    def _wait(self) -> _Job | None:
        """Until there is something to do; None: the process ends."""
        with self._news:
            while not self._waiting and not self._stopping:
                self._news.wait()
            return None if self._stopping else self._waiting[0]

    def _load(self, spec: ModelSpec) -> None:
        if spec == self._spec and self._model is not None:
            return
        from audiocraft_mlx.clips.loading import load_clip_model
        from audiocraft_mlx.models.memory import give_back_memory

        self._spec = self._model = None
        give_back_memory()
        self._model = load_clip_model(PROGRAMS[spec.program], spec.options)
        self._spec = spec

    def _work(self) -> None:
        """Make clips of the model that is loaded, until there are none or another one is needed."""
        from audiocraft_mlx.clips.making import RunningClips

        assert self._model is not None
        clips = RunningClips(
            self._model, chunk_seconds=CHUNK_SECONDS, first_chunk_seconds=FIRST_CHUNK_SECONDS
        )
        with closing(clips):
            while True:
                self._admit(self._model, clips)
                if not self._running or self._stopping:
                    return
                self._step(self._model, clips)

    def _admit(self, model: GenModel, clips: RunningClips) -> None:
        while True:
            with self._news:
                if self._stopping or not self._waiting or self._waiting[0].spec != self._spec:
                    return
                job = self._waiting[0]
            try:
                if job.work is not None:
                    result = job.work(model)
                elif job.is_wanted:
                    if not self._has_room(model, clips, job):
                        return
                    assert job.plan is not None
                    self._running[job.plan.index] = job
                    clips.add([job.plan])
                    result = None
                else:
                    raise Unwanted
            except Exception as error:
                self._drop(job)
                job.end(error=error)
            else:
                self._drop(job)
                if job.work is not None:
                    job.end(result)

    def _drop(self, job: _Job) -> None:
        with self._news:
            self._waiting.remove(job)

    def _has_room(self, model: GenModel, clips: RunningClips, job: _Job) -> bool:
        from audiocraft_mlx.clips.planning import plan_clips, room_for

        if job.plan is None:
            assert job.request is not None
            (plan,) = plan_clips(model, [job.request])
            job.plan = replace(plan, index=self._next)
            self._next += 1
        return room_for(model, [job.plan], clips.plans, starting=clips.starting) > 0

    def _step(self, model: GenModel, clips: RunningClips) -> None:
        from audiocraft_mlx.clips.making import Chunk, Finished
        from audiocraft_mlx.clips.making import Failed as ClipFailed

        for event in clips.step():
            if isinstance(event, ClipFailed):
                for plan in event.batch:
                    self._running.pop(plan.index).end(error=event.error)
            elif isinstance(event, Chunk):
                job = self._running[event.index]
                try:
                    if job.on_audio is not None:
                        job.on_audio(event.audio)
                except MusicGenError as error:
                    self._remove(clips, event.index, error)
            elif isinstance(event, Finished):
                job = self._running.pop(event.index)
                assert job.plan is not None
                made = Generated(job.plan, model.sample_rate, event.codes, event.elapsed, event.loop)
                job.end(made)
        for index in [index for index, job in self._running.items() if not job.is_wanted]:
            self._remove(clips, index, Unwanted())

    def _remove(self, clips: RunningClips, index: int, error: Exception) -> None:
        job = self._running.pop(index)
        assert job.plan is not None
        clips.remove(job.plan)
        job.end(error=error)


@cache
def clip_engine() -> ClipEngine:
    """The one of this process."""
    return ClipEngine()


def _result(job: _Job) -> Any:
    if job.error is None:
        return job.result
    if is_out_of_memory(job.error):
        raise MusicGenError("out of memory; ask for a shorter duration or a smaller model")
    raise job.error


def _use_all_processors() -> None:
    """Let the BLAS have as many threads as the extension.

    Dask sets OPENBLAS_NUM_THREADS to 1 in the processes that it starts, where each task has a thread.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get(THREADS_ENV_VAR, str(num_cpus()))
