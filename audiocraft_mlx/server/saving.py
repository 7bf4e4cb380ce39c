"""From the audio of a clip to its files, as the command makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from audiocraft_mlx.audio.loop import Loop
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.clips.codes import ClipCodes
from audiocraft_mlx.clips.finishing import FinishedAudio, finish_audio, separate_stems
from audiocraft_mlx.clips.planning import ClipPlan
from audiocraft_mlx.clips.saving import save_clip
from audiocraft_mlx.server.folder import DataFolder
from audiocraft_mlx.server.peaks import peaks_of
from audiocraft_mlx.server.recipes import Recipe
from audiocraft_mlx.server.schema import Id
from audiocraft_mlx.server.store import AudioShape, ClipRecord

if TYPE_CHECKING:
    from audiocraft_mlx.networks.htdemucs import HTDemucs


def save_files(
    folder: DataFolder,
    job: Id,
    clip: ClipRecord,
    recipe: Recipe,
    plan: ClipPlan,
    audio: AudioSpool,
    rate: int,
    separator: HTDemucs | None,
    peaks: bytes,
    codes: ClipCodes | None,
    loop: Loop | None,
) -> tuple[ClipRecord, bytes]:
    """Write a clip and its stems; returns the clip's record and the peaks of its file.

    `audio` is the model's, at `rate`, `peaks` are those of the clip while it was made, `codes` its codes, and
    `loop` what was made of it.

    Raises `OutputError`.
    """
    finished = finish_audio(audio, rate, recipe.output, plan.source, plan.replacement, loop, plan.loop)
    if separator is not None:
        finished = finished.in_memory()
    metadata = recipe.metadata(plan.request)
    folder.make_job_folder(job)
    audio_format = recipe.output.audio_format
    saved = save_clip(folder.clip_file(job, clip.id, audio_format), finished, metadata, codes)
    stems = []
    if separator is not None:
        for name, stem in separate_stems(finished, saved.peak, separator):
            save_clip(folder.clip_file(job, clip.id, audio_format, name), stem, metadata)
            stems.append(name)
    if finished.audio is not audio or saved.peak > 1:  # else it is what was heard
        peaks = peaks_of(_blocks(finished), saved.sample_rate, 1 / max(1.0, saved.peak))
    shape = AudioShape(saved.sample_rate, saved.channels, saved.samples)
    score = None if finished.loop is None else finished.loop.measure.score
    return replace(clip, shape=shape, stems=tuple(stems), score=score), peaks


def _blocks(finished: FinishedAudio) -> Iterable[np.ndarray]:
    return finished.audio.blocks() if isinstance(finished.audio, AudioSpool) else [finished.audio]
