"""A `JobRequest` → the requests and options that the command would have, and its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audiocraft_mlx.clips.codes import is_lossless
from audiocraft_mlx.clips.defaults import CommandDefaults
from audiocraft_mlx.clips.loops import made_seconds
from audiocraft_mlx.clips.metadata import GenerationMetadata, describe_request
from audiocraft_mlx.clips.notes import NoteInput, read_notes
from audiocraft_mlx.clips.parts import parse_part
from audiocraft_mlx.clips.requests import (
    DEFAULT_PROMPT_SECONDS,
    ClipRequest,
    FieldError,
    ModelOptions,
    OutputOptions,
    draw_seed,
    require_loopable,
)
from audiocraft_mlx.clips.source import AudioInput, SourceClip, read_condition_audio, read_source
from audiocraft_mlx.conditioning.sections import parse_section
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.server.errors import InvalidFieldError
from audiocraft_mlx.server.foreign_tags import read_foreign_codes
from audiocraft_mlx.server.schema import Id, JobRequest, JobSection
from audiocraft_mlx.server.settings import Limits
from audiocraft_mlx.server.store import AudioShape

_SAME = (
    "prompt",
    "duration",
    "melody_separation",
    "style_coef",
    "prompt_seconds",
    "temperature",
    "top_k",
    "top_p",
    "cfg_coef",
    "max_cfg_coef",
    "min_cfg_coef",
    "decoding_steps",
    "span_arrangement",
    "negative",
    "candidates",
    "loop",
    "bars",
    "midi_track",
    "chords",
    "bpm",
    "beats_per_bar",
)
"""Fields of a `JobRequest` that a `ClipRequest` has, too."""
_AUDIO = {"melody": "melody", "style": "style", "source": "continue"}
"""Fields with an id, and their names in JSON."""
_SEEDS = 2**32


@dataclass(frozen=True)
class AudioFile:
    """Audio that a job is made from."""

    path: Path
    name: str
    """For people, and for the tags of files."""
    shape: AudioShape
    is_clip: bool = False
    """Made here: its tags may be read in this process."""


@dataclass(frozen=True)
class Recipe:
    """What a job makes.

    Attributes:
        request: with a seed and a model.
        clips: a request for each take. Audio is a name, no file.
        audio: the files of `melody`, `style`, `source`.
        command: that makes it.
    """

    request: JobRequest
    clips: tuple[ClipRequest, ...]
    output: OutputOptions
    audio: dict[str, AudioFile]
    model: ModelOptions
    program: CommandDefaults
    command: str

    @property
    def rough_key(self) -> tuple[object, ...]:
        """Only clips with equal ones may share a batch: see `ClipPlan.batch_key`."""
        clip = self.clips[0]
        return (
            made_seconds(clip),
            clip.style_coef is None,
            self._condition_rate,
            self._prompt_size,
            clip.melody_separation,
            clip.replace,
            any(section.fade for section in clip.sections),
            clip.chords is None,
        )

    @property
    def _condition_rate(self) -> int | None:
        files = [file for field, file in self.audio.items() if field != "source"]
        return files[0].shape.sample_rate if files else None

    @property
    def _prompt_size(self) -> tuple[int, int] | None:
        """The rate and the samples of the source's end, which decide the prompt's shape."""
        source = self.audio.get("source")
        if source is None:
            return None
        rate, seconds = source.shape.sample_rate, self.clips[0].prompt_seconds or DEFAULT_PROMPT_SECONDS
        return rate, int(min(seconds * rate, self.kept_samples))

    @property
    def kept_samples(self) -> int:
        """Of the source, at its rate."""
        source = self.audio.get("source")
        if source is None:
            return 0
        at, shape = self.request.continue_at, source.shape
        return shape.samples if at is None else max(1, min(shape.samples, round(at * shape.sample_rate)))

    def metadata(self, clip: ClipRequest) -> GenerationMetadata:
        return describe_request(clip, self.output, self.model, self.program)

    def load(self) -> list[ClipRequest]:
        """The requests with their audio. Raises `UsageError`."""
        loaded: dict[str, AudioInput | NoteInput | SourceClip] = {}
        for field, file in self.audio.items():
            try:
                loaded[field] = self._load(field, file)
            except UsageError as error:
                # Clients don't know where its files are.
                raise UsageError(str(error).replace(str(file.path), file.name)) from error
        return [replace(clip, **loaded) for clip in self.clips]  # type: ignore[arg-type]

    def _load(self, field: str, file: AudioFile) -> AudioInput | NoteInput | SourceClip:
        if not file.path.is_file():
            name = "edit" if field == "source" and self.request.edit is not None else _AUDIO[field]
            raise UsageError(f"{name}: {file.name} was deleted")
        if file.shape.is_notes:
            return replace(read_notes(file.path, self.request.midi_track), name=file.name)
        if field != "source":
            return replace(read_condition_audio(file.path, self.request.duration), name=file.name)
        source = read_source(file.path, with_codes=file.is_clip)
        if self.kept_samples < source.audio.shape[1]:
            # Not a whole clip, which its codes would be of.
            source = replace(source, audio=source.audio[:, : self.kept_samples].copy(), codes=None)
            source = replace(source, follows_exactly=False)
        elif not file.is_clip:
            codes = read_foreign_codes(file.path)
            source = replace(
                source, codes=codes, follows_exactly=codes is not None and is_lossless(file.path)
            )
        return replace(source, name=file.name)


def make_recipe(
    request: JobRequest,
    model: ModelOptions,
    program: CommandDefaults,
    find_audio: Callable[[Id, str], AudioFile],
    limits: Limits | None = None,
) -> Recipe:
    """Check `request`, of which `model` is the model. `find_audio` gets an id and the name of its field.

    Raises `InvalidFieldError`, and what `find_audio` does.
    """
    if request.seed is None:
        request = request.model_copy(update={"seed": draw_seed()})
    request, part = _with_part(request)
    if limits is not None:
        _check_limits(request, limits)
    if request.takes < 1:
        raise InvalidFieldError(f"takes must be an integer of at least 1, not {request.takes}", "takes")
    if request.continue_at is not None and request.source is None:
        raise InvalidFieldError("continue_at needs continue", "continue_at")
    if request.continue_at is not None and not 0 < request.continue_at < 1e6:
        raise InvalidFieldError("continue_at must be a number of seconds above 0", "continue_at")
    ids = {field: getattr(request, field) for field in _AUDIO}
    names = dict(_AUDIO)
    if part is not None:
        ids["source"], names["source"] = request.edit, "edit"
    audio = {field: find_audio(id, names[field]) for field, id in ids.items() if id is not None}
    if "source" in audio and audio["source"].shape.channels > 2:
        channels, name = audio["source"].shape.channels, names["source"]
        raise InvalidFieldError(f"{name} has {channels} channels; mix it to mono or stereo", name)
    if part is not None and part[1] > audio["source"].shape.duration + 0.01:
        seconds = audio["source"].shape.duration
        raise InvalidFieldError(f"replace: the audio has {seconds:.2f} s; give a part of it", "replace")
    _check_notes(request, audio, names)
    values: dict[str, Any] = {field: getattr(request, field) for field in _SAME}
    values |= {field: Path(file.name) for field, file in audio.items()}
    values["replace"] = part
    values["sections"] = [section.model_dump() for section in request.sections]
    try:
        seeds = [(request.seed or 0) + take for take in range(request.takes)]
        # The first one as it was given, so that one that is out of range is refused.
        clips = [ClipRequest(seed=seeds[0], **values)]
        clips += [ClipRequest(seed=seed % _SEEDS, **values) for seed in seeds[1:]]
        output = OutputOptions(
            request.format,
            request.bit_depth,
            request.normalize,
            request.lufs,
            request.fade_out,
            request.stems,
            request.ending,
        )
        require_loopable(clips[0], output)
    except UsageError as error:
        raise invalid_field(error, names["source"]) from error
    if request.duration != clips[0].duration:  # bars say it
        request = request.model_copy(update={"duration": clips[0].duration})
        if limits is not None:
            _check_limits(request, limits)
    # One that begins at 0 has become the prompt.
    sections = [JobSection(**asdict(section)) for section in clips[0].sections]
    if sections != request.sections:
        request = request.model_copy(update={"prompt": clips[0].prompt, "sections": sections})
    metadata = describe_request(clips[0], output, model, program)
    more = {"takes": request.takes} if request.takes > 1 else {}
    stems = {"stems": True} if request.stems else {}
    command = replace(metadata, options={**metadata.options, **more, **stems}).to_command()
    return Recipe(request, tuple(clips), output, audio, model, program, command)


def _with_part(request: JobRequest) -> tuple[JobRequest, tuple[float, float] | None]:
    """The request, the length of its part as its duration, and the part; None if it is no edit.

    Raises `InvalidFieldError`.
    """
    if request.edit is None:
        for field in ("replace", "candidates"):
            if getattr(request, field) is not None:
                raise InvalidFieldError(f"{field} needs edit, the audio that it is a part of", field)
        return request, None
    if request.source is not None:
        raise InvalidFieldError("edit and continue don't go together; leave one of them out", "edit")
    if request.replace is None:
        raise InvalidFieldError("edit needs replace, the seconds that are made anew: 8-12", "replace")
    try:
        part = parse_part(request.replace)
    except UsageError as error:
        raise InvalidFieldError(f"replace {error}", "replace") from error
    return request.model_copy(update={"duration": part[1] - part[0]}), part


def request_of(metadata: GenerationMetadata, audio_format: str, model: str | None) -> JobRequest:
    """How the clip with `metadata` was made, without its audio: that has a name there, and no id."""
    options = metadata.options

    def number(name: str) -> float | None:
        value = options.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def text(name: str) -> str | None:
        value = options.get(name)
        return value if isinstance(value, str) else None

    def integer(name: str) -> int | None:
        value = number(name)
        return None if value is None else int(value)

    sections, steps = options.get("section", ()), text("decoding-steps")
    return JobRequest.model_validate(
        {
            "prompt": metadata.prompt,
            "model": model,
            "duration": metadata.duration,
            "seed": metadata.seed,
            "temperature": metadata.temperature,
            "top_k": metadata.top_k,
            "top_p": metadata.top_p,
            "cfg_coef": metadata.cfg_coef,
            "max_cfg_coef": number("max-cfg-coef"),
            "min_cfg_coef": number("min-cfg-coef"),
            "decoding_steps": None if steps is None else [int(count) for count in steps.split(",")],
            "span_arrangement": text("span-arrangement"),
            "melody_separation": text("melody-separation"),
            "style_coef": number("style-coef"),
            "prompt_seconds": number("prompt-seconds"),
            "replace": text("replace"),
            "candidates": None if number("candidates") is None else int(number("candidates") or 1),
            "sections": [asdict(parse_section(section)) for section in sections if isinstance(section, str)]
            if isinstance(sections, (list, tuple))
            else [],
            "negative": text("negative"),
            "loop": options.get("loop") is True,
            "bars": integer("bars"),
            "midi_track": integer("midi-track"),
            "chords": text("chords"),
            "bpm": number("bpm"),
            "beats_per_bar": integer("beats-per-bar"),
            "format": audio_format,
            "bit_depth": integer("bit-depth"),
            "normalize": text("normalize") or "none",
            "lufs": number("lufs"),
            "fade_out": number("fade-out"),
            "ending": text("ending"),
        }
    )


def invalid_field(error: UsageError, source: str = "continue") -> InvalidFieldError:
    """`error` of a request or its options, with the names that the fields have in JSON.

    The clip to continue or to edit is called `source`.
    """
    message = str(error)
    if isinstance(error, FieldError):
        message = error.describe(lambda field: {"source": source, "audio_format": "format"}.get(field, field))
    message = re.sub(r"^audio_format\b", "format", message)
    fields = {field.alias or name for name, field in JobRequest.model_fields.items()}
    named = next((word for word in re.findall(r"[a-z_]+", message) if word in fields), None)
    if named is None or "bits per sample" in message or "no bit depth" in message:
        named = "bit_depth" if "bit" in message else named
    return InvalidFieldError(message, named)


def _check_notes(request: JobRequest, audio: dict[str, AudioFile], names: dict[str, str]) -> None:
    """Raise `InvalidFieldError` for MIDI in place of audio, or the other way round."""
    for field, file in audio.items():
        if file.shape.is_notes and field != "melody":
            name = names[field]
            raise InvalidFieldError(f"{name}: {file.name} is MIDI, which has notes and no sound", name)
    if "melody" not in audio:
        return
    is_midi = audio["melody"].shape.is_notes
    for name, fits in (("melody_separation", not is_midi), ("midi_track", is_midi)):
        if getattr(request, name) is not None and not fits:
            what = "audio, and the melody is MIDI" if is_midi else "MIDI, and the melody is audio"
            raise InvalidFieldError(f"{name} is for {what}; omit it", name)


def _check_limits(request: JobRequest, limits: Limits) -> None:
    characters = limits.prompt_characters
    for field, value, most, unit in (
        ("prompt", len(request.prompt), characters, " characters"),
        ("negative", len(request.negative or ""), characters, " characters"),
        ("chords", len(request.chords or ""), characters, " characters"),
        ("sections", sum(len(section.text) for section in request.sections), characters, " characters"),
        ("duration", request.duration, limits.duration, " seconds"),
        ("takes", request.takes, limits.takes, ""),
    ):
        if value > most:
            # An integer of JSON may have more digits than a float can.
            given = f"{value:g}" if value < 1e15 else "more than 1e15"
            raise InvalidFieldError(f"{field}: {given}{unit} are too many; at most {most:g} here", field)
