"""Generates clips: requests in, events out. The one function that every front calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiocraft_mlx.audio.loop import Loop
from audiocraft_mlx.clips.codes import ClipCodes
from audiocraft_mlx.clips.planning import ClipPlan, plan_batches, plan_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.progress import StepCount

if TYPE_CHECKING:
    import mlx.core as mx

    from audiocraft_mlx.models.genmodel import GenModel


@dataclass(frozen=True)
class Started:
    """A batch begins."""

    batch: tuple[ClipPlan, ...]


@dataclass(frozen=True)
class Progress:
    """How many of the batch's steps are done."""

    done: int
    total: int


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
    """Seconds that its batch took."""
    codes: ClipCodes | None = None
    """Of the whole clip; None if it continues audio without any."""
    loop: Loop | None = None
    """What the clip's file holds, if a loop was asked for: it is cut out of the chunks."""


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
    """Generate the clips of `requests`, in batches of those that can share one.

    The events of each batch: `Started`; for every `chunk_seconds` of audio `Progress`, then a `Chunk` for
    each clip; at last a `Finished` for each clip. `index` is that of the request. Closing the iterator
    cancels: the chunks so far are the partial output of clips that aren't finished.

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
    plans = plan_clips(model, requests)
    batches = plan_batches(model, plans, batch_size)
    return _generate(model, batches, (chunk_seconds, first_chunk_seconds), on_progress)


def _generate(
    model: GenModel,
    batches: Iterator[tuple[ClipPlan, ...]],
    chunk_seconds: tuple[float, float | None],
    on_progress: Callable[[Progress], None] | None,
) -> Generator[Event, None, None]:
    for batch in batches:
        progress = Progress(0, 0)

        def on_step(done: int, total: int) -> None:
            nonlocal progress
            progress = Progress(done, total)
            if on_progress is not None:
                on_progress(progress)

        codes: list[mx.array] = []
        closing = [_closing_steps(model, plan) for plan in batch]
        steps = StepCount(on_step, sum(closing))
        loop_chunks: dict[int, list[np.ndarray]] = {
            row: [] for row, plan in enumerate(batch) if plan.loop is not None
        }
        stream = _start(model, batch, chunk_seconds, steps, codes.append)
        try:
            yield Started(batch)
            start = time.perf_counter()
            for chunk in stream:
                yield progress
                for row, (plan, audio) in enumerate(zip(batch, np.asarray(chunk), strict=True)):
                    if row in loop_chunks:
                        loop_chunks[row].append(audio)
                    yield Chunk(plan.index, audio)
        finally:
            if isinstance(stream, Generator):
                stream.close()
        loops = {}
        for row in [*loop_chunks]:
            steps.next(closing[row])
            audio = np.concatenate(loop_chunks.pop(row), axis=1)
            loops[row] = _make_loop(model, batch[row], audio, steps)
        elapsed = time.perf_counter() - start
        for row, plan in enumerate(batch):
            codes_of_clip = _codes_of_clip(model, plan, [np.array(each)[row] for each in codes])
            yield Finished(plan.index, elapsed, codes_of_clip, loops.pop(row, None))


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
) -> Iterator[mx.array]:
    """The model's generator of audio `[B, C, n]` for the rows of a batch."""
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
    return model.generate_stream(
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
