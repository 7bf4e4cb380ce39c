"""What a model gets of a melody or a style, for plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.level import without_cancellation
from audiocraft_mlx.audio.plot import Chromagram, StyleExcerpt
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.clips.planning import ClipPlan
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.note_chroma import chroma_of_notes
from audiocraft_mlx.conditioning.style import StyleConditioner

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel


def describe_condition(model: GenModel, plan: ClipPlan) -> Chromagram | StyleExcerpt | None:
    """The chroma of a clip's melody or chords, or the excerpt of its style; None if it has neither.

    The chroma of audio takes source separation. It doesn't depend on the seed: clips with the same melody and
    duration have the same.
    """
    conditioner = model.audio_conditioner
    notes = plan.notes
    if notes is not None and isinstance(conditioner, MelodyConditioner):
        config = conditioner.config
        hop = config.hop_length / config.sample_rate
        return Chromagram(chroma_of_notes(notes, config, frames=int(plan.seconds / hop) + 1), hop)
    if plan.condition is None:
        return None
    if isinstance(conditioner, MelodyConditioner):
        config = conditioner.config
        melody = _resampled_condition(model, plan)
        is_separated = plan.request.melody_separation != "off"
        chroma = np.asarray(conditioner.chroma(melody) if is_separated else conditioner.chroma_of_mix(melody))
        return Chromagram(chroma, config.hop_length / config.sample_rate)
    if isinstance(conditioner, StyleConditioner):
        audio = _resampled_condition(model, plan)
        if plan.seconds > model.max_duration:  # of the first window
            audio = audio[:, mx.arange(int(model.max_duration * model.sample_rate)) % audio.shape[1]]
        excerpt, start = conditioner.excerpt(audio, model.style_params, plan.request.seed)
        return StyleExcerpt(np.asarray(excerpt), model.sample_rate, start / model.sample_rate)
    return None


def _resampled_condition(model: GenModel, plan: ClipPlan) -> mx.array:
    """The melody or the style `[C, T]` as the model's conditioner gets it."""
    assert plan.condition is not None
    audio, rate = plan.condition.audio, plan.condition.rate
    audio = audio[:, : int(model.max_condition_duration(plan.params.duration) * rate)]
    audio = without_cancellation(audio)
    return mx.array(convert_audio(audio, rate, model.sample_rate, model.audio_channels))
