"""What requests come to with a model, and which of them are generated in one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from audiocraft_mlx.clips.finishing import Replacement
from audiocraft_mlx.clips.inputs import load_inputs
from audiocraft_mlx.clips.loops import LoopShape, around_loop, made_seconds
from audiocraft_mlx.clips.notes import NoteInput, notes_of_chords
from audiocraft_mlx.clips.requests import DEFAULT_PROMPT_SECONDS, ClipRequest, FieldError
from audiocraft_mlx.clips.source import AudioInput, SourceClip
from audiocraft_mlx.conditioning.notes import Notes
from audiocraft_mlx.conditioning.sections import Section, frame_sections
from audiocraft_mlx.decoding.windows import end_frame, first_frame
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.models import memory
from audiocraft_mlx.models.replaced_part import margin_frames
from audiocraft_mlx.validation import MAX_PROMPT_TOKENS, TRAINED_TOKENS

if TYPE_CHECKING:
    from audiocraft_mlx.decoding.params import GenerationParams
    from audiocraft_mlx.models.genmodel import Description, GenModel

# A character has up to some 18 tokens.
_SHORT_CHARACTERS = TRAINED_TOKENS // 18


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
    tokens: int
    """Of its longest text, if that may be a long one."""
    prompt_codes: np.ndarray | None = None
    """Codes int32 `[K, F]` of `prompt`, of a source that has its own; with a `replacement` of all of it."""
    begin: SourceClip | None = None
    """Such a source without its last frames, which are made anew with the new music."""
    replacement: Replacement | None = None
    """What of the source the new music takes the place of; None: it follows the source."""
    sections: tuple[Section, ...] = ()
    """What follows the prompt, in seconds that count a source."""
    window_borders: tuple[int, ...] = ()
    """The frames of the new music where sections make a window begin, with a model that has a prefix."""

    @property
    def description(self) -> Description:
        text = self.request.description
        return [Section(0.0, text or ""), *self.sections] if self.sections else text

    @property
    def condition(self) -> AudioInput | None:
        """The melody or the style."""
        condition = self.request.condition
        return condition if isinstance(condition, AudioInput) else None

    @property
    def condition_audio(self) -> np.ndarray | None:
        """Its audio, `[channels, samples]`; a melody as long as what is made, if that is a loop."""
        condition = self.condition
        if condition is None or not self.request.loop or condition is self.request.style:
            return None if condition is None else condition.audio
        return around_loop(condition, self.request.duration)

    @property
    def loop(self) -> LoopShape | None:
        """What is cut out of the new music; None: all of it is the clip."""
        return LoopShape.of(self.request)

    @property
    def notes(self) -> Notes | None:
        """The melody as notes, or the chords."""
        request = self.request
        if isinstance(request.melody, NoteInput):
            return request.melody.notes
        if request.chords is None or request.bpm is None:
            return None
        return notes_of_chords(request.chords, request.bpm, request.beats_per_bar)

    @property
    def source(self) -> SourceClip | None:
        """What the new music comes behind."""
        source = self.request.source if self.begin is None else self.begin
        return source if isinstance(source, SourceClip) else None

    @property
    def batch_key(self) -> Hashable:
        """Clips whose keys are equal can share a batch. Seeds, prompts and parameters are each row's own."""
        return (
            self.params.batch_key,
            None if self.prompt is None else self.prompt.shape,
            self.prompt_codes is None,
            None if self.condition is None else self.condition.rate,
            self.notes is None,
            self.request.melody_separation,
            self.tokens > TRAINED_TOKENS,  # all prompts of a batch have the length of its longest
            self.window_borders,
            self.replacement,
            None
            if self.replacement is None or self.source is None
            else (self.source.rate, self.source.audio.shape),
        )


def plan_clips(model: GenModel, requests: Sequence[ClipRequest]) -> list[ClipPlan]:
    """The plan of each request; audio files that haven't been read are read.

    Raises:
        UsageError: the model can't do what a request asks for, a prompt has more than `MAX_PROMPT_TOKENS`
            tokens, or an audio file can't be used.
    """
    loaded = load_inputs(requests)
    prompts: dict[tuple[SourceClip, float], np.ndarray] = {}
    params_of: dict[Hashable, tuple[GenerationParams, float]] = {}
    tokens: dict[str, int] = {}
    plans = []
    own: dict[SourceClip, SourceClip] = {}
    for index, request in enumerate(loaded):
        texts = {request.description or "", request.negative or "", *(s.text or "" for s in request.sections)}
        for text in texts:
            if text not in tokens:
                tokens[text] = count_tokens(model, text)
        request.require_supported(model.condition_types, fills_masks=model.fills_masks)
        if request.decoding_steps is not None:
            _require_codebooks(model.lm.config.num_codebooks, request.decoding_steps)
        if request.loop:  # of which more is made
            model.make_params(duration=request.duration)
        if isinstance(request.condition, AudioInput):
            request.condition.require_samples(model.sample_rate)
        prompt = prompt_codes = begin = replacement = None
        remade = 0
        if isinstance(request.source, SourceClip) and request.replace is not None:
            replacement = _replacement(model, request.source, request.replace)
            if not model.fills_masks and _has_codes(model, request.source):
                assert request.source.codes is not None
                prompt_codes = request.source.codes.codes
        elif isinstance(request.source, SourceClip) and _is_continued_from_codes(model, request.source):
            if request.source not in own:
                own[request.source] = _without_end(model, request.source)
            begin, remade = own[request.source], _remade_frames(model)
            prompt, prompt_codes = _prompt_of_codes(model, begin, request.prompt_seconds)
            if request.prompt_seconds is not None:
                # The codec then doesn't know what comes before, and goes on at another level.
                begin = replace(begin, codes=None, follows_exactly=False)
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
            made_seconds(request),
            request.top_k,
            request.top_p,
            request.temperature,
            request.cfg_coef,
            request.style_coef,
            None if prompt is None else prompt.shape,
            remade,
            request.replace,
            request.max_cfg_coef,
            request.min_cfg_coef,
            request.decoding_steps,
            request.span_arrangement,
        )
        if same not in params_of:
            seconds = _total_duration(model, made_seconds(request), prompt, remade)
            params = model.make_params(
                # That of a part of a source doesn't count.
                duration=seconds if request.replace is None else model.max_duration,
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
        params, seconds = params_of[same]
        longest = max(map(tokens.__getitem__, texts))
        plan = ClipPlan(index, request, params, prompt, seconds, longest, prompt_codes, begin, replacement)
        plans.append(_with_sections(model, plan, remade) if request.sections else plan)
    return plans


def _has_codes(model: GenModel, source: SourceClip) -> bool:
    """Whether `source` has codes of this model's codec."""
    codes = source.codes
    return (
        codes is not None
        and codes.codec == model.codec_id
        and source.audio.shape[1] == codes.frames * _hop_length(model)
        and (source.rate, len(source.audio)) == (model.sample_rate, model.audio_channels)
    )


def _is_continued_from_codes(model: GenModel, source: SourceClip) -> bool:
    codes = source.codes
    return _has_codes(model, source) and codes is not None and codes.frames > _remade_frames(model)


def _remade_frames(model: GenModel) -> int:
    """The last frames of a clip that would be others if it was longer.

    The codebooks that lag behind were predicted without the frames after them, and the codec decoded what is
    within its sight of these or of the end.
    """
    lookahead: int = model.compression_model.make_decoder_stream().lookahead_frames
    return lookahead + max(0, max(model.lm.config.delays) - 1)


def _without_end(model: GenModel, source: SourceClip) -> SourceClip:
    """`source` without the frames that are made anew."""
    assert source.codes is not None
    frames = source.codes.frames - _remade_frames(model)
    codes = replace(source.codes, codes=source.codes.codes[:, :frames])
    return replace(source, audio=source.audio[:, : frames * _hop_length(model)], codes=codes)


def _prompt_of_codes(
    model: GenModel, source: SourceClip, seconds: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The audio and the codes of the last `seconds` of `source`; None: of all of it."""
    assert source.codes is not None
    frames = source.codes.frames
    if seconds is not None:
        frames = max(1, min(frames, int(seconds * model.frame_rate)))
    return source.audio[:, -frames * _hop_length(model) :], source.codes.codes[:, -frames:]


def _with_sections(model: GenModel, plan: ClipPlan, remade: int) -> ClipPlan:
    """`plan`, whose music begins with `remade` frames of the source, with its request's sections.

    Raises `UsageError` if they don't fit."""
    request = plan.request
    of_frames = frame_sections(
        request.description, request.sections, model.frame_rate, int(request.duration * model.frame_rate)
    )
    before = 0.0 if plan.prompt is None else (_frames(model, plan.prompt) + remade) / model.frame_rate
    return replace(
        plan,
        sections=tuple(replace(section, start=section.start + before) for section in request.sections),
        window_borders=tuple(s.frame for s in of_frames[1:]) if model.audio_conditioner is not None else (),
    )


class WaitingClips:
    """Plans that wait for their turn, in groups of those that can share a batch.

    The longest first: what is made at last is short, and few places are empty at the end.
    """

    def __init__(self, plans: Iterable[ClipPlan]) -> None:
        self._groups: dict[Hashable, deque[ClipPlan]] = {}
        for plan in sorted(plans, key=lambda plan: plan.seconds, reverse=True):
            self._groups.setdefault(plan.batch_key, deque()).append(plan)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def take(
        self,
        model: GenModel,
        running: Sequence[ClipPlan] = (),
        most: int | None = None,
        starting: Sequence[ClipPlan] = (),
    ) -> tuple[ClipPlan, ...]:
        """The next clips that can share a batch, as many as there is room for beside those that run.

        There is room for `most` in all, by default for as many as fit into memory. Empty if there is none.
        For `starting` see `room_for`.
        """
        if not self._groups:
            return ()
        key, group = next(iter(self._groups.items()))
        if most is None:
            room = room_for(model, [*islice(group, memory.MAX_BATCH_SIZE)], running, starting=starting)
        else:
            room = most - len(running)
        taken = [group.popleft() for _ in range(min(len(group), max(0, room)))]
        if not group:
            del self._groups[key]
        return tuple(taken)


def room_for(
    model: GenModel,
    plans: Sequence[ClipPlan],
    running: Sequence[ClipPlan] = (),
    most: int = memory.MAX_BATCH_SIZE,
    starting: Sequence[ClipPlan] = (),
) -> int:
    """How many clips like `plans`, with equal `batch_key`, there is room for beside those that run.

    As many as fit into memory, `most` in all. `starting` are those of `running` whose memory isn't taken yet.

    One, and only where none runs, where the clips of a batch are made one after the other anyway, but come
    all at the end; and none beside such a one.
    """
    if model.fills_masks or any(plan.replacement is not None for plan in (*plans, *running)):
        return 0 if running else 1
    seconds = max(made_seconds(plan.request) for plan in plans)
    tokens = max(plan.tokens for plan in plans)
    reserved = sum(
        memory.bytes_per_clip(model, made_seconds(plan.request), _branches([plan]), plan.tokens)
        for plan in starting
    )
    return memory.max_batch_size(model, seconds, _branches(plans), tokens, len(running), most, reserved)


def count_tokens(model: GenModel, text: str) -> int:
    """Of a prompt; 0 for one that is short in any case. Raises `UsageError` beyond `MAX_PROMPT_TOKENS`."""
    count = 0 if len(text) <= _SHORT_CHARACTERS else model.count_tokens(text)
    if count > MAX_PROMPT_TOKENS:
        raise UsageError(
            f"the prompt has {count} tokens; give a shorter one, of at most {MAX_PROMPT_TOKENS}"
            f" (the text encoder was trained with up to {TRAINED_TOKENS})"
        )
    return count


def _branches(plans: Sequence[ClipPlan]) -> int:
    """How many branches of guidance a batch of `plans` has at most, one that fades out included."""
    branches = 2 if all(plan.request.style_coef is None for plan in plans) else 3
    return branches + any(section.fade for plan in plans for section in plan.sections)


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
    if end - start < 1 / model.frame_rate - 1e-9:
        raise FieldError(
            "{replace}: a part must be at least one frame, {seconds} s", seconds=f"{1 / model.frame_rate:g}"
        )
    first, last = _replaced_frames(model, part)
    return Replacement(
        start,
        min(end, source.seconds),
        first / model.frame_rate,
        last / model.frame_rate,
        crossfades=not model.fills_masks,
    )


def _replaced_frames(model: GenModel, part: tuple[float, float]) -> tuple[int, int]:
    """The first frame of what is made for a part of a source, and the one after the last."""
    first, last = first_frame(part[0], model.frame_rate), end_frame(part[1], model.frame_rate)
    if model.fills_masks:
        return first, last
    margin = margin_frames(model.frame_rate)
    return max(0, first - margin), last + margin


def new_samples(model: GenModel, request: ClipRequest) -> int:
    """Samples per channel of a request's new music at most: whole frames."""
    if request.replace is not None:
        first, last = _replaced_frames(model, request.replace)
        return (last - first) * _hop_length(model)
    return int(made_seconds(request) * model.frame_rate) * _hop_length(model)


def _total_duration(model: GenModel, duration: float, prompt: np.ndarray | None, remade: int) -> float:
    """Seconds as the model counts them: with the prompt, and with frames of a source that are made anew."""
    frames = int(duration * model.frame_rate)
    if prompt is None or not frames:
        return duration
    # Half a frame keeps rounding errors away.
    return (_frames(model, prompt) + remade + frames + 0.5) / model.frame_rate


def _frames(model: GenModel, prompt: np.ndarray | None) -> int:
    """Frames of codes of a prompt."""
    return 0 if prompt is None else -(-prompt.shape[1] // _hop_length(model))


def _hop_length(model: GenModel) -> int:
    """Samples per frame of codes."""
    return round(model.sample_rate / model.frame_rate)
