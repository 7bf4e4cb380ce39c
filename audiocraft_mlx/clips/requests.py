"""What is asked for, as values: clips, how their files are made, and the model.

Each value is validated when it is made, from the command line, JSON (`from_dict`) or Python alike.
Nothing heavy is imported here, so that mistakes are answered at once.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.audio.formats import BIT_DEPTHS, WAV, AudioFormat, choose_format
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.clips.notes import NoteInput
from audiocraft_mlx.conditioning.chords import parse_chords
from audiocraft_mlx.conditioning.sections import Section, require_order, require_within
from audiocraft_mlx.conditioning.tempo import seconds_of_bars, with_tempo
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import (
    BARS,
    BEATS_PER_BAR,
    BPM,
    CANDIDATES,
    CFG_COEF,
    DEFAULT_BEATS_PER_BAR,
    DURATION,
    ENDINGS,
    LUFS,
    MELODY_SEPARATIONS,
    MIDI_TRACK,
    SECONDS,
    SEED,
    SPAN_ARRANGEMENTS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    NumberRange,
    validate_choice,
    validate_decoding_steps,
    validate_number,
    validate_prompt,
)

if TYPE_CHECKING:
    from audiocraft_mlx.clips.source import AudioInput, SourceClip

DEFAULT_PROMPT_SECONDS = 5.0
DEFAULT_LUFS = -14.0
NORMALIZATIONS = ("none", "peak", "loudness")


class FieldError(UsageError):
    """A field of a request is invalid, or doesn't go with another one.

    A front may call the fields otherwise (`--style-coef`): see `describe`.
    """

    def __init__(self, template: str, **values: str) -> None:
        """`template` names fields in braces, and `values`."""
        self._template, self._values = template, values
        super().__init__(self.describe(str))

    def describe(self, name: Callable[[str], str]) -> str:
        """The message, with each field called what `name` returns for it."""
        fields = [*_field_names(ClipRequest), *_field_names(OutputOptions)]
        return self._template.format_map(self._values | {field: name(field) for field in fields})

    def __reduce__(self) -> tuple[Any, ...]:
        return _field_error, (self._template, self._values)


def _field_error(template: str, values: Mapping[str, str]) -> FieldError:
    """What pickle calls, which passes on no names."""
    return FieldError(template, **values)


@dataclass(frozen=True)
class ClipRequest:
    """One clip. None is the model's default.

    The seed is drawn if none is given, so that every clip can be generated again. An audio file is a path
    until `inputs.load_inputs` reads it.

    Raises:
        UsageError: a value is out of its range or of another type (the message names the field), or fields
            don't go together (`FieldError`).
    """

    prompt: str = ""
    """May be empty if there is a melody, a style, chords or a source."""
    seed: int = field(default_factory=lambda: draw_seed())
    duration: float = MUSICGEN.duration
    """Seconds to generate; a source isn't counted."""
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    cfg_coef: float | None = None
    melody: Path | AudioInput | NoteInput | None = None
    """Audio, or MIDI."""
    style: Path | AudioInput | None = None
    style_coef: float | None = None
    """How much more the prompt counts than the style; audiocraft's `cfg_coef_beta`."""
    source: Path | SourceClip | None = None
    """A clip to continue. The result starts with it."""
    prompt_seconds: float | None = None
    """How much of the end of `source` the model continues. Default: `DEFAULT_PROMPT_SECONDS`."""
    replace: tuple[float, float] | None = None
    """The part of `source` that is generated anew, from second to second, in place of a continuation: the
    `duration`."""
    candidates: int | None = None
    """How many takes of that part a model makes that doesn't fill masks, to keep the one that suits what
    follows. Default: `replaced_part.DEFAULT_CANDIDATES`."""
    max_cfg_coef: float | None = None
    """For models that fill masks (MAGNeT), as the next three."""
    min_cfg_coef: float | None = None
    decoding_steps: tuple[int, ...] | None = None
    span_arrangement: str | None = None
    melody_separation: str | None = None
    """One of `MELODY_SEPARATIONS`: whether drums and bass are removed from `melody`. Default: `auto`."""
    sections: tuple[Section, ...] = ()
    """What follows `prompt`, in order; a source isn't counted. One that begins at 0 becomes the prompt."""
    negative: str | None = None
    """What the music is not to be: guidance leads away from it."""
    midi_track: int | None = None
    """Which track of a MIDI `melody` is followed; see `read_midi`. Default: all."""
    chords: str | None = None
    """Chords to follow, as `chord_notes` takes them, at `bpm`; as a melody for melody models."""
    bpm: float | None = None
    """Beats per minute, of `chords`."""
    beats_per_bar: int | None = None
    """Default: `DEFAULT_BEATS_PER_BAR`."""
    loop: bool = False
    """Its end goes on at its beginning. The `bpm` are added to the prompt."""
    bars: int | None = None
    """How many bars of `bpm` a loop has: the `duration`."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UsageError(f"prompt must be a string, not {self.prompt!r}")
        validate_prompt(self.prompt)
        self._validate_replace()
        self._validate_loop()
        _validate_numbers(self, CLIP_RANGES, required=("seed", "duration"))
        self._check_sections()
        if self.negative is not None:
            if not isinstance(self.negative, str):
                raise UsageError(f"negative must be a string, not {self.negative!r}")
            validate_prompt(self.negative)
            object.__setattr__(self, "negative", self.negative if self.negative.strip() else None)
        if self.negative is not None and self.cfg_coef == 1:
            raise FieldError("{negative} can't work with {cfg_coef} 1, which is no guidance; 3 is usual")
        self._check_notes()
        if self.decoding_steps is not None:
            object.__setattr__(self, "decoding_steps", validate_decoding_steps(self.decoding_steps))
        if self.span_arrangement is not None:
            validate_choice("span_arrangement", self.span_arrangement, SPAN_ARRANGEMENTS)
        for kind in _AUDIO_FIELDS:
            if isinstance(getattr(self, kind), str):
                object.__setattr__(self, kind, Path(getattr(self, kind)))
        if self.melody is not None and self.style is not None:
            raise FieldError("{melody} and {style}: no model supports both; give one of them")
        if self.style_coef is not None and self.style is None:
            raise FieldError("{style_coef} needs {style}")
        if self.prompt_seconds is not None and self.source is None:
            raise FieldError("{prompt_seconds} needs {source}")
        if self.candidates is not None and self.replace is None:
            raise FieldError("{candidates} are takes of a part; they need {replace}")
        if self.melody_separation is not None:
            if self.melody_separation not in MELODY_SEPARATIONS:
                raise FieldError(
                    "{melody_separation} must be one of {choices}, not {value}",
                    choices=", ".join(MELODY_SEPARATIONS),
                    value=repr(self.melody_separation),
                )
            if self.melody is None:
                raise FieldError("{melody_separation} needs {melody}")
        instead = (self.melody, self.style, self.chords, self.source)
        if self.description is None and all(each is None for each in instead):
            raise UsageError("the prompt is empty; say what to play")

    def _check_notes(self) -> None:
        if self.chords is not None:
            try:
                parse_chords(self.chords)
            except UsageError as error:
                raise FieldError("{chords}: {error}", error=str(error)) from error
            for kind in ("melody", "style"):
                if getattr(self, kind) is not None:
                    raise FieldError(
                        f"{{chords}} and {{{kind}}}: a model follows one of them; omit the other"
                    )
            if self.bpm is None:
                raise FieldError("{chords} needs {bpm}")
        if self.bpm is not None and not any(getattr(self, key) for key in _WITH_TEMPO):
            raise FieldError(f"{{bpm}} needs {' or '.join(f'{{{key}}}' for key in _WITH_TEMPO)}")
        if self.beats_per_bar is not None and self.bpm is None:
            raise FieldError("{beats_per_bar} needs {bpm}")
        if self.midi_track is not None and self.melody is None:
            raise FieldError("{midi_track} needs {melody}")
        if self.melody is None or isinstance(self.melody, (str, Path)):
            return  # its kind isn't known
        is_midi = isinstance(self.melody, NoteInput)
        if is_midi and self.melody_separation is not None:
            raise FieldError("{melody_separation} is for audio, and {melody} is MIDI; omit it")
        if not is_midi and self.midi_track is not None:
            raise FieldError("{midi_track} is for MIDI, and {melody} is audio; omit it")

    def _check_sections(self) -> None:
        given: Any = self.sections
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UsageError(f"sections must be a list of sections, not {given!r}")
        try:
            sections = [Section.of(section) for section in given]
            if any(not section.text.strip() for section in sections):
                raise UsageError("one has no text; say what to play")
            if sections and not sections[0].start:
                first = sections.pop(0)
                if self.prompt.strip():
                    raise UsageError("the prompt is what is played from 0 on; begin the first one later")
                if first.fade:
                    raise UsageError("the first one can't cross-fade: there is nothing before it")
                object.__setattr__(self, "prompt", first.text)
            require_order(sections)
            require_within(sections, self.duration)
        except UsageError as error:
            raise FieldError("{sections}: {error}", error=str(error)) from error
        object.__setattr__(self, "sections", tuple(sections))

    def _validate_loop(self) -> None:
        if not isinstance(self.loop, bool):
            raise UsageError(f"loop must be true or false, not {self.loop!r}")
        if self.bars is not None:
            _validate_numbers(self, {name: CLIP_RANGES[name] for name in ("bars", "bpm", "beats_per_bar")})
            if not self.loop:
                raise FieldError("{bars} are those of a loop; they need {loop}")
            if self.bpm is None:
                raise FieldError("{bars} need {bpm}, which say how long they are")
            beats_per_bar = self.beats_per_bar or DEFAULT_BEATS_PER_BAR
            object.__setattr__(self, "duration", seconds_of_bars(self.bars, self.bpm, beats_per_bar))
        if self.loop:
            for name in ("source", "sections"):
                if getattr(self, name):
                    raise FieldError("{loop} and " + f"{{{name}}} don't go together; leave one of them out")

    def _validate_replace(self) -> None:
        if self.replace is None:
            return
        if not isinstance(self.replace, Sequence) or len(self.replace) != 2:
            raise UsageError(f"replace must be (from second, to second), not {self.replace!r}")
        start, end = self.replace
        validate_number("the beginning of replace", start, "a number of seconds, 0 or more", lambda s: s >= 0)
        validate_number(
            "the end of replace", end, "a number of seconds after its beginning", lambda e: e > start
        )
        if self.source is None:
            raise UsageError("replace needs the clip that is edited")
        if self.prompt_seconds is not None:
            raise FieldError("{prompt_seconds} is for a continuation; what is around {replace} is in view")
        for kind in ("melody", "style"):
            if getattr(self, kind) is not None:
                raise FieldError(f"{{{kind}}} and {{replace}} don't go together; leave one of them out")
        object.__setattr__(self, "replace", (float(start), float(end)))
        object.__setattr__(self, "duration", float(end) - float(start))

    @property
    def description(self) -> str | None:
        """The prompt as the model takes it: None if it is blank. That of a loop has its tempo."""
        prompt = with_tempo(self.prompt, self.bpm) if self.loop else self.prompt
        return prompt if prompt.strip() else None

    @property
    def condition(self) -> Path | AudioInput | NoteInput | None:
        """The melody or the style."""
        return self.melody if self.style is None else self.style

    def require_supported(
        self, condition_types: frozenset[str], model: str | None = None, fills_masks: bool | None = None
    ) -> None:
        """Raise `FieldError` if a model can't use a field.

        It can be conditioned on `condition_types`, and `fills_masks` (a MAGNeT) or not; None: not known.
        """
        name = "this model" if model is None else f"the model {model}"
        for kind, models in (
            ("melody", "melody, melody-large, stereo-melody or stereo-melody-large"),
            ("style", "style"),
        ):
            if getattr(self, kind) is not None and kind not in condition_types:
                raise FieldError(
                    f"{{{kind}}}: {{model}} can't be conditioned on a {kind}; choose one that can: {models}",
                    model=name,
                )
        if self.chords is not None and "melody" not in condition_types:
            raise FieldError(
                "{chords}: {model} can't follow chords; choose one that can be conditioned on a melody:"
                " melody, melody-large, stereo-melody or stereo-melody-large",
                model=name,
            )
        if condition_types != {"text"} and any(section.fade for section in self.sections):
            raise FieldError(
                "{sections}: {model} begins anew at a section and can't cross-fade; omit the cross-fade",
                model=name,
            )

        if fills_masks and (self.sections or self.negative is not None):
            name_of_field = "sections" if self.sections else "negative"
            raise FieldError(
                f"{{{name_of_field}}}: {{model}} fills masks and can't use it; omit it", model=name
            )
        wrong = _ONLY_WITHOUT_MASKS if fills_masks else _ONLY_WITH_MASKS
        for key in wrong if fills_masks is not None else ():
            if getattr(self, key) is not None:
                kind = "a MAGNeT has {max_cfg_coef} and {min_cfg_coef} instead"
                if key == "candidates":
                    kind = "a MAGNeT sees both sides of a part and makes one take; leave it out"
                if not fills_masks:
                    kind = "it is for a MAGNeT; choose one, such as magnet-small-10s"
                raise FieldError(f"{{{key}}}: {{model}} can't use it; {kind}", model=name)

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON takes it: audio by name, fields with None left out."""
        values = {name: getattr(self, name) for name in _field_names(ClipRequest)}
        names: dict[str, Any] = {
            key: _audio_name(values[key]) for key in _AUDIO_FIELDS if values[key] is not None
        }
        names["sections"] = [dataclasses.asdict(section) for section in self.sections] or None
        names["loop"] = self.loop or None
        return {key: value for key, value in (values | names).items() if value is not None}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        audio: Callable[[str], Path | AudioInput | NoteInput | SourceClip] = Path,
    ) -> ClipRequest:
        """The request in a JSON object; null is the default.

        Args:
            values: the object.
            audio: turns the string in `melody`, `style` and `source` into a file or into audio. Who takes
                requests from others must replace the default, which reads any file.

        Raises:
            UsageError: a key is unknown, or its value has another type or is out of range; names the key.
        """
        known = _known_values(cls, values)
        for key in _AUDIO_FIELDS & {*known}:
            if not isinstance(known[key], str) or not known[key]:
                raise UsageError(f"{key} must be the name of an audio file, not {known[key]!r}")
            known[key] = audio(known[key])
        return cls(**known)


@dataclass(frozen=True)
class OutputOptions:
    """How the file of a clip is made from its audio. Raises `UsageError` as `ClipRequest`."""

    audio_format: str = WAV.name
    bit_depth: int | None = None
    """Default: 16, or more if the source has more."""
    normalize: str = "none"
    """`none` (scaled down only if it exceeds full scale), `peak` (to -1 dB), or `loudness` (to `lufs`)."""
    lufs: float | None = None
    """Default: `DEFAULT_LUFS`."""
    fade_out: float | None = None
    """Seconds."""
    stems: bool = False
    """Write drums, bass, other and vocals too."""
    ending: str | None = None
    """One of `ENDINGS`. Default: `fade` with a `fade_out`, else `cut`."""

    def __post_init__(self) -> None:
        for name, choices in (("audio_format", tuple(BIT_DEPTHS)), ("normalize", NORMALIZATIONS)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        _validate_numbers(self, OUTPUT_RANGES)
        if not isinstance(self.stems, bool):
            raise UsageError(f"stems must be true or false, not {self.stems!r}")
        if self.lufs is not None and self.normalize != "loudness":
            raise FieldError("{lufs} needs {normalize} loudness")
        if self.ending is not None:
            validate_choice("ending", self.ending, ENDINGS)
        if self.ending == "cut" and self.fade_out is not None:
            raise FieldError("{ending} cut doesn't fade out; leave {fade_out} out, or give {ending} fade")
        self.file_format()

    @property
    def changes_end(self) -> bool:
        """Whether the end of a clip isn't simply that of its music."""
        return self.fade_out is not None or self.ending not in (None, "cut")

    def file_format(self, source: SourceClip | None = None) -> AudioFormat:
        """The file's format; without a `bit_depth` with bits enough for `source`, if the format has them."""
        chosen = choose_format(Path(), self.audio_format, self.bit_depth)
        return chosen if source is None or self.bit_depth is not None else source.lossless_format(chosen)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OutputOptions:
        """As `ClipRequest.from_dict`."""
        return cls(**_known_values(cls, values))


def require_loopable(request: ClipRequest, output: OutputOptions) -> None:
    """Raise `FieldError` for a loop in a file that doesn't loop."""
    if not request.loop:
        return
    if output.audio_format == "mp3":
        raise FieldError("{loop}: MP3 has silence at its ends; choose {audio_format} wav, flac or ogg")
    if output.changes_end:
        name = "{ending}" if output.fade_out is None else "{fade_out}"
        raise FieldError(f"{{loop}} and {name}: a loop's end goes on at its beginning; leave one out")


@dataclass(frozen=True)
class ModelOptions:
    """Which model generates, and how it is loaded: the arguments of `GenModel.get_pretrained`."""

    name: str
    revision: str | None = None
    quantize: int | None = None
    int8_activations: bool = False
    cache_bits: int | None = None
    weights: str | None = None
    """A file whose weights take the place of the model's."""
    lora: tuple[LoraSpec, ...] = ()


def draw_seed() -> int:
    return secrets.randbits(32)


_AUDIO_FIELDS = frozenset({"melody", "style", "source"})
_ONLY_WITH_MASKS = ("max_cfg_coef", "min_cfg_coef", "decoding_steps", "span_arrangement")
_ONLY_WITHOUT_MASKS = ("cfg_coef", "candidates")
_WITH_TEMPO = ("chords", "loop")
"""What has a tempo."""
CLIP_RANGES: dict[str, NumberRange] = {
    "seed": SEED,
    "duration": DURATION,
    "top_k": TOP_K,
    "top_p": TOP_P,
    "temperature": TEMPERATURE,
    "cfg_coef": CFG_COEF,
    "max_cfg_coef": CFG_COEF,
    "min_cfg_coef": CFG_COEF,
    "style_coef": CFG_COEF,
    "prompt_seconds": SECONDS,
    "midi_track": MIDI_TRACK,
    "bpm": BPM,
    "beats_per_bar": BEATS_PER_BAR,
    "bars": BARS,
    "candidates": CANDIDATES,
}
"""The numbers of a `ClipRequest`."""
_BIT_DEPTH = NumberRange(int, "16, 24 or 32", lambda bits: bits in (16, 24, 32))
OUTPUT_RANGES: dict[str, NumberRange] = {"bit_depth": _BIT_DEPTH, "lufs": LUFS, "fade_out": SECONDS}
"""Those of an `OutputOptions`."""


def _validate_numbers(
    value: ClipRequest | OutputOptions, ranges: Mapping[str, NumberRange], required: tuple[str, ...] = ()
) -> None:
    """Check the numbers of `value`, and make them Python's own (NumPy's can't be written as JSON)."""
    for name, allowed in ranges.items():
        number = getattr(value, name)
        if number is not None or name in required:
            allowed.validate(name, number)
            if type(number) is not allowed.kind:  # an integer for a float, too
                object.__setattr__(value, name, allowed.kind(number))


def _known_values(kind: type[ClipRequest | OutputOptions], values: Any) -> dict[str, Any]:
    """The fields of `kind` in a JSON object, without nulls. Raises `UsageError` for other keys."""
    if not isinstance(values, Mapping):
        raise UsageError(f"a request must be a JSON object, not {type(values).__name__}")
    names = _field_names(kind)
    for key in values:
        if key not in names:
            raise UsageError(f"unknown key {key!r}; known keys: {', '.join(names)}")
    return {key: value for key, value in values.items() if value is not None}


def _field_names(kind: type[ClipRequest | OutputOptions]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _audio_name(audio: Path | AudioInput | NoteInput | SourceClip) -> str | None:
    return str(audio) if isinstance(audio, Path) else audio.name
