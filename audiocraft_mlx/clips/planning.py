"""What requests come to with a model, and which of them are generated in one batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiocraft_mlx.clips.finishing import Replacement
from audiocraft_mlx.clips.inputs import load_inputs
from audiocraft_mlx.clips.requests import DEFAULT_PROMPT_SECONDS, ClipRequest, FieldError
from audiocraft_mlx.clips.source import AudioInput, SourceClip
from audiocraft_mlx.decoding.windows import end_frame, first_frame
from audiocraft_mlx.models import memory

if TYPE_CHECKING:
    from audiocraft_mlx.decoding.params import GenerationParams
    from audiocraft_mlx.models.genmodel import GenModel


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """A request with all that the model makes of it."""

    index: int
    """Of the request, among those that were given."""
    request: ClipRequest
    """Its audio files are read."""
    params: GenerationParams
    prompt: np.ndarray | None
    """The end of the source, float32 `[channels, samples]` at the model's rate."""
    seconds: float
    """Of the new music: whole frames."""
    replacement: Replacement | None = None
    """What of the source the new music takes the place of; None: it follows the source."""

    @property
    def condition(self) -> AudioInput | None:
        """The melody or the style."""
        condition = self.request.condition
        return condition if isinstance(condition, AudioInput) else None

    @property
    def source(self) -> SourceClip | None:
        source = self.request.source
        return source if isinstance(source, SourceClip) else None

    @property
    def batch_key(self) -> Hashable:
        """Clips whose keys are equal can share a batch. Seeds, prompts and parameters are each row's own."""
        return (
            self.params.batch_key,
            None if self.prompt is None else self.prompt.shape,
            None if self.condition is None else self.condition.rate,
            self.request.melody_separation,
            self.replacement,
            None
            if self.replacement is None or self.source is None
            else (self.source.rate, self.source.audio.shape),
        )


def plan_clips(model: GenModel, requests: Sequence[ClipRequest]) -> list[ClipPlan]:
    """The plan of each request; audio files that haven't been read are read.

    Raises:
        UsageError: the model can't do what a request asks for, or an audio file can't be used.
    """
    loaded = load_inputs(requests)
    prompts: dict[tuple[SourceClip, float], np.ndarray] = {}
    params_of: dict[Hashable, tuple[GenerationParams, float]] = {}
    plans = []
    for index, request in enumerate(loaded):
        request.require_supported(model.condition_types, fills_masks=model.fills_masks)
        if request.decoding_steps is not None:
            _require_codebooks(model.lm.config.num_codebooks, request.decoding_steps)
        if isinstance(request.condition, AudioInput):
            request.condition.require_samples(model.sample_rate)
        prompt = None
        replacement = None
        if isinstance(request.source, SourceClip) and request.replace is not None:
            replacement = _replacement(model, request.source, request.replace)
        elif isinstance(request.source, SourceClip):
            # Rows with the same prompt share one array: it is encoded once.
            key = (request.source, request.prompt_seconds or DEFAULT_PROMPT_SECONDS)
            if key not in prompts:
                source, seconds = key
                prompts[key] = source.prompt_audio(
                    seconds, model.sample_rate, model.audio_channels, _hop_length(model)
                )
            prompt = prompts[key]
        # Many clips mostly have the same.
        same = (
            request.duration,
            request.top_k,
            request.top_p,
            request.temperature,
            request.cfg_coef,
            request.style_coef,
            None if prompt is None else prompt.shape,
            request.replace,
            request.max_cfg_coef,
            request.min_cfg_coef,
            request.decoding_steps,
            request.span_arrangement,
        )
        if same not in params_of:
            params = model.make_params(
                duration=_total_duration(model, request.duration, prompt),
                top_k=request.top_k,
                top_p=request.top_p,
                temperature=request.temperature,
                cfg_coef=request.cfg_coef,
                cfg_coef_beta=request.style_coef,
                **_masked_params(request),
            )
            if request.replace is None:
                frames = model.clip_frames(params) - _frames(model, prompt)
                seconds = frames * _hop_length(model) / model.sample_rate
            else:
                seconds = new_samples(model, request) / model.sample_rate
            params_of[same] = params, seconds
        plans.append(ClipPlan(index, request, params_of[same][0], prompt, params_of[same][1], replacement))
    return plans


def plan_batches(
    model: GenModel, plans: Sequence[ClipPlan], batch_size: int | None = None
) -> Iterator[tuple[ClipPlan, ...]]:
    """The plans in batches of at most `batch_size`, by default as many as fit into memory."""
    groups: dict[Hashable, list[ClipPlan]] = {}
    for plan in plans:
        groups.setdefault(plan.batch_key, []).append(plan)
    for group in groups.values():
        size = most_in_batch(model, group) if batch_size is None else batch_size
        for start in range(0, len(group), size):
            yield tuple(group[start : start + size])


def most_in_batch(model: GenModel, plans: Sequence[ClipPlan]) -> int:
    """How many clips like `plans`, which may share a batch, fit into memory at a time.

    One, where the clips of a batch are made one after the other anyway, but come all at the end.
    """
    if model.fills_masks:
        return 1
    seconds = max(plan.request.duration for plan in plans)
    return memory.max_batch_size(model, seconds, _branches(plans))


def _branches(plans: Sequence[ClipPlan]) -> int:
    """How many branches of guidance a batch of `plans` has at most."""
    return 2 if all(plan.request.style_coef is None for plan in plans) else 3


def _masked_params(request: ClipRequest) -> dict[str, Any]:
    """The parameters of models that fill masks that are given."""
    names = ("max_cfg_coef", "min_cfg_coef", "decoding_steps", "span_arrangement")
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _require_codebooks(codebooks: int, steps: tuple[int, ...]) -> None:
    if len(steps) != codebooks:
        raise FieldError(
            "{decoding_steps} must be {codebooks} integers, one for each codebook of the model, not {steps}",
            codebooks=str(codebooks),
            steps=",".join(map(str, steps)),
        )


def _replacement(model: GenModel, source: SourceClip, part: tuple[float, float]) -> Replacement:
    """Raises `FieldError` for a `part` that isn't in the source."""
    start, end = part
    # What a program shows as the length may be rounded.
    if end > source.seconds + 0.01 or start >= source.seconds:
        raise FieldError(
            "{replace}: {name} has {seconds} s; give a part of it",
            name=source.name or "the clip",
            seconds=f"{source.seconds:.2f}",
        )
    return Replacement(
        start, min(end, source.seconds), first_frame(start, model.frame_rate) / model.frame_rate
    )


def new_samples(model: GenModel, request: ClipRequest) -> int:
    """Samples per channel of a request's new music at most: whole frames."""
    if request.replace is not None:
        start, end = request.replace
        frames = end_frame(end, model.frame_rate) - first_frame(start, model.frame_rate)
        return frames * _hop_length(model)
    return int(request.duration * model.frame_rate) * _hop_length(model)


def _total_duration(model: GenModel, duration: float, prompt: np.ndarray | None) -> float:
    """Seconds as the model counts them: with the prompt."""
    frames = int(duration * model.frame_rate)
    if prompt is None or not frames:
        return duration
    prompt_frames = _frames(model, prompt)
    # Half a frame keeps rounding errors away.
    return (prompt_frames + frames + 0.5) / model.frame_rate


def _frames(model: GenModel, prompt: np.ndarray | None) -> int:
    """Frames of codes of a prompt."""
    return 0 if prompt is None else -(-prompt.shape[1] // _hop_length(model))


def _hop_length(model: GenModel) -> int:
    """Samples per frame of codes."""
    return round(model.sample_rate / model.frame_rate)
