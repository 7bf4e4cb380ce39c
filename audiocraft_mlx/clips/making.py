"""Generates clips: requests in, events out. The one function that every front calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from audiocraft_mlx.audio.loop import Loop
from audiocraft_mlx.clips.codes import ClipCodes
from audiocraft_mlx.clips.planning import ClipPlan, WaitingClips, plan_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.decoding.continuous_batch import ContinuousBatch, Ended
from audiocraft_mlx.decoding.step import LMStep
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.progress import StepCount

if TYPE_CHECKING:
    import mlx.core as mx

    from audiocraft_mlx.models.genmodel import GenModel


@dataclass(frozen=True)
class Started:
    """Clips that can share a batch begin, beside those that run already."""

    batch: tuple[ClipPlan, ...]


@dataclass(frozen=True)
class Progress:
    """How many of the steps of a batch are done; `first` is the index of its first clip."""

    done: int
    total: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class Chunk:
    """New audio of a clip, float32 `[channels, n]`, behind its chunks before."""

    index: int
    audio: np.ndarray


@dataclass(frozen=True)
class Finished:
    """A clip is complete. The other clips of its batch are too: their `Finished` events follow."""

    index: int
    elapsed: float
    """Seconds since its batch began."""
    codes: ClipCodes | None = None
    """Of the whole clip; None if it continues audio without any."""
    loop: Loop | None = None
    """What the clip's file holds, if a loop was asked for: it is cut out of the chunks."""


@dataclass(frozen=True)
class Failed:
    """The clips of a batch can't be made. Others go on."""

    batch: tuple[ClipPlan, ...]
    error: Exception


Event = Started | Progress | Chunk | Finished


def generate_clips(
    model: GenModel,
    requests: Sequence[ClipRequest],
    *,
    batch_size: int | None = None,
    chunk_seconds: float = 1.0,
    first_chunk_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Generator[Event, None, None]:
    """Generate the clips of `requests`, as many at a time as there is room for.

    Those that can share a batch begin together; when a clip ends, the next ones take its place. The events
    of each batch: `Started`; for every `chunk_seconds` of audio `Progress`, then a `Chunk` for each clip; at
    last a `Finished` for each clip. `index` is that of the request. Closing the iterator cancels: the chunks
    so far are the partial output of clips that aren't finished.

    Args:
        first_chunk_seconds: of the first chunk, which may be shorter (`GenModel.generate_stream`).
        batch_size: the most clips at a time. Default: as many as fit into memory, at most 8.
        on_progress: called after each step, between the events. What it raises cancels, too.

    Raises:
        UsageError: at once, if the model can't do what a request asks for or an audio file can't be used.
        MusicGenError: from the iterator, what the model raises.
        MemoryError: from the iterator, if not even one clip fits below a limit of `ulimit`.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
    waiting = WaitingClips(plan_clips(model, requests))
    running = RunningClips(
        model, chunk_seconds=chunk_seconds, first_chunk_seconds=first_chunk_seconds, on_progress=on_progress
    )
    return _generate(model, waiting, running, batch_size)


def _generate(
    model: GenModel, waiting: WaitingClips, running: RunningClips, batch_size: int | None
) -> Generator[Event, None, None]:
    with closing(running):
        has_room = True
        while waiting or running.plans:
            while has_room and (batch := waiting.take(model, running.plans, batch_size, running.starting)):
                running.add(batch)
            has_room = False
            for event in running.step():
                if isinstance(event, Failed):
                    raise event.error
                has_room = has_room or isinstance(event, Finished)
                yield event


@dataclass(eq=False)
class _Batch:
    """Clips that began together."""

    plans: tuple[ClipPlan, ...]
    progress: Progress
    steps: StepCount
    begun: float = 0.0
    codes: list[mx.array] = field(default_factory=list)
    loop_chunks: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Of the rows that loops are cut out of."""


class RunningClips:
    """Clips of one model that are generated together. Others may join them between any two steps."""

    def __init__(
        self,
        model: GenModel,
        *,
        chunk_seconds: float = 1.0,
        first_chunk_seconds: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """See `generate_clips`."""
        self._model, self._chunk_seconds = model, (chunk_seconds, first_chunk_seconds)
        self._on_progress = on_progress
        self._steps: ContinuousBatch[_Batch, mx.array] = ContinuousBatch()
        self._batches: list[_Batch] = []

    @property
    def plans(self) -> list[ClipPlan]:
        """Those that aren't finished."""
        return [plan for batch in self._batches for plan in batch.plans]

    @property
    def starting(self) -> list[ClipPlan]:
        """Those whose first step wasn't taken yet: what they need isn't taken from the memory."""
        return [plan for batch in self._batches if not batch.progress.done for plan in batch.plans]

    def add(self, plans: Sequence[ClipPlan]) -> None:
        """Clips with equal `batch_key`, which begin with the next step."""

        def on_step(done: int, total: int) -> None:
            batch.progress = Progress(done, total, plans[0].index)
            if self._on_progress is not None:
                self._on_progress(batch.progress)

        closing = sum(_closing_steps(self._model, plan) for plan in plans)
        batch = _Batch(tuple(plans), Progress(0, 0, plans[0].index), StepCount(on_step, closing))
        batch.loop_chunks = {row: [] for row, plan in enumerate(plans) if plan.loop is not None}
        self._batches.append(batch)
        self._steps.add(batch, self._stream(batch))

    def remove(self, plan: ClipPlan) -> None:
        """Cancel the clips that began together with that of `plan`; no error if they have ended."""
        for batch in [batch for batch in self._batches if plan in batch.plans]:
            self._batches.remove(batch)
            self._steps.remove(batch)

    def close(self) -> None:
        for plan in self.plans:
            self.remove(plan)

    def step(self) -> Iterator[Event | Failed]:
        """Take a step of all, and tell what has come of it."""
        for batch in self._batches:
            if not batch.begun:
                batch.begun = time.perf_counter()
                yield Started(batch.plans)
        for batch, item in self._steps.step():
            if isinstance(item, Ended):
                self._batches.remove(batch)
                yield from self._finish(batch) if item.error is None else [Failed(batch.plans, item.error)]
                continue
            yield batch.progress
            for row, (plan, audio) in enumerate(zip(batch.plans, np.asarray(item), strict=True)):
                if row in batch.loop_chunks:
                    batch.loop_chunks[row].append(audio)
                yield Chunk(plan.index, audio)

    def _finish(self, batch: _Batch) -> Iterator[Finished | Failed]:
        loops = {}
        try:
            for row, chunks in batch.loop_chunks.items():
                plan = batch.plans[row]
                batch.steps.next(_closing_steps(self._model, plan))
                loops[row] = _make_loop(self._model, plan, np.concatenate(chunks, axis=1), batch.steps)
        except Exception as error:
            yield Failed(batch.plans, error)
            return
        elapsed = time.perf_counter() - batch.begun
        for row, plan in enumerate(batch.plans):
            codes = _codes_of_clip(self._model, plan, [np.array(each)[row] for each in batch.codes])
            yield Finished(plan.index, elapsed, codes, loops.get(row))

    def _stream(self, batch: _Batch) -> Iterator[mx.array | LMStep]:
        # What it is made of is prepared when its first step is due.
        yield from _start(self._model, batch.plans, self._chunk_seconds, batch.steps, batch.codes.append)


def _closing_steps(model: GenModel, plan: ClipPlan) -> int:
    if plan.loop is None:
        return 0
    return model.closing_steps(plan.loop.samples(model.sample_rate), plan.params)


def _make_loop(
    model: GenModel, plan: ClipPlan, audio: np.ndarray, on_step: Callable[[int, int], None]
) -> Loop:
    """Cut out of the `audio` of a clip, float32 `[channels, samples]`, and closed by the model if it can."""
    assert plan.loop is not None
    loop = plan.loop.cut(audio, model.sample_rate)
    return model.close_loop(loop, plan.request.description, plan.request.seed, plan.params, on_step)


def _start(
    model: GenModel,
    batch: Sequence[ClipPlan],
    chunk_seconds: tuple[float, float | None],
    on_step: Callable[[int, int], None],
    on_codes: Callable[[mx.array], None],
) -> Iterator[mx.array | LMStep]:
    """The model's generator of audio `[B, C, n]` for the rows of a batch, and of the steps that it needs."""
    given: dict[str, Any] = {}
    # All rows have them or none: see `ClipPlan.batch_key`.
    conditions = [plan.condition for plan in batch if plan.condition is not None]
    if conditions:
        given["melody_wavs"] = [plan.condition_audio for plan in batch]
        given["melody_sample_rate"] = conditions[0].rate
        given["duration"] = batch[0].params.duration
        if batch[0].request.melody_separation is not None:
            given["melody_separation"] = batch[0].request.melody_separation
    notes = [plan.notes for plan in batch]
    if any(notes):
        given["melody_wavs"] = notes
    prompts = [plan.prompt for plan in batch if plan.prompt is not None]
    prompt_codes = [plan.prompt_codes for plan in batch if plan.prompt_codes is not None]
    if prompt_codes:
        given["prompt_codes"] = prompt_codes
    elif prompts:
        given |= {"prompt": prompts, "prompt_sample_rate": model.sample_rate}
    negative = [plan.request.negative for plan in batch]
    if any(negative):
        given["negative"] = negative
    descriptions, seeds = [plan.description for plan in batch], [plan.request.seed for plan in batch]
    params = [plan.params for plan in batch]
    replacement = batch[0].replacement
    if replacement is None:
        inputs = model.prepare_inputs(descriptions, seeds, **given)
    else:
        sources = [plan.source for plan in batch if plan.source is not None]
        hole = (replacement.start, replacement.end)
        more: dict[str, Any] = {}
        if not model.fills_masks:
            more = {"codes": prompt_codes or None, "candidates": batch[0].request.candidates}
            more["negative"] = given.get("negative")
        inputs = model.prepare_infill(
            descriptions,
            seeds,
            [source.audio for source in sources],
            sources[0].rate,
            [hole],
            params[0],
            **more,
        )
    usual, first = chunk_seconds
    return model.stream_steps(
        inputs, params, chunk_seconds=usual, first_chunk_seconds=first, on_step=on_step, on_codes=on_codes
    )


def _codes_of_clip(model: GenModel, plan: ClipPlan, new: list[np.ndarray]) -> ClipCodes | None:
    before: list[np.ndarray] = []
    if plan.source is not None:
        if plan.replacement is not None or plan.prompt_codes is None or plan.source.codes is None:
            return None
        before = [plan.source.codes.codes]
    if not new:
        return None
    codes = np.concatenate([*before, *new], axis=1)
    return ClipCodes(codes, model.compression_model.cardinality, model.codec_id)
