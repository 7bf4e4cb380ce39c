"""How a clip was made: all that is needed to make it again."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.audio.tags import AudioTags, damaged_tags, read_tags
from audiocraft_mlx.clips.defaults import MUSICGEN, PROGRAMS, CommandDefaults
from audiocraft_mlx.clips.parts import part_text
from audiocraft_mlx.configs import shown
from audiocraft_mlx.files import StrPath
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions


OptionValue = str | int | float | bool | Sequence[str]
"""Several texts: of an option that is given as often."""


@dataclass(frozen=True)
class GenerationMetadata:
    """What was asked for. None is the model's own default.

    `options` are further options of the command without their dashes, as `{"quantize": 8, "cache-bits": 8}`.
    `program` is the command's name, one of `PROGRAMS`. `partial`: it was interrupted, and the file has the
    beginning only, or the best of some of its takes.
    """

    prompt: str
    model: str
    seed: int
    duration: float
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    cfg_coef: float | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    version: str = __version__
    program: str = MUSICGEN.name
    partial: bool = False

    def __post_init__(self) -> None:
        for name, (kinds, wanted) in _KINDS.items():
            if not _is(getattr(self, name), kinds):
                raise ValueError(f"{name} is not {wanted}")
        # Files come from anywhere, and their users are shown a command to run.
        if not isinstance(self.partial, bool):
            raise ValueError("partial is not true or false")
        if self.program not in PROGRAMS:
            raise ValueError(f"program is not one of {', '.join(PROGRAMS)}")
        for option, value in self.options.items():
            if not _is(value, (str, int, float, bool)) and not _are_strings(value):
                wanted = "a string, a number, true, false or strings"
                raise ValueError(f"the option {shown(option)} is not {wanted}")

    def to_command(self) -> str:
        """The command that makes the clip again: one line, to be pasted into a shell."""
        program = PROGRAMS[self.program]
        flags: dict[str, OptionValue | None] = {
            "model": None if self.model == program.model else self.model,
            "duration": None
            if self.duration == program.duration or not {"replace", "bars"}.isdisjoint(self.options)
            else self.duration,
            "seed": self.seed,
            "top-k": self.top_k,
            "top-p": self.top_p,
            "temperature": self.temperature,
            "cfg-coef": self.cfg_coef,
            **self.options,
        }
        words = [word for name, value in flags.items() for word in _flag(name, value)]
        # What starts with a dash would be taken for an option.
        prompt_last = self.prompt.startswith("-")
        words = [*words, "--", self.prompt] if prompt_last else [self.prompt, *words]
        return " ".join(map(_quoted, [self.program, *words]))

    def summary(self) -> str:
        """The same for people, with the prompt first."""
        return (
            f"{self.prompt} (made with {self.program} {self.version}: model {self.model}, seed {self.seed}, "
            f"{_text(self.duration)} s)"
        )

    def to_json(self) -> str:
        """The same for programs, in ASCII."""
        values = dataclasses.asdict(self)
        if not self.partial:  # older versions know of nothing else, and a short tag fits into more files
            del values["partial"]
        return json.dumps(values)

    def to_tags(self) -> AudioTags:
        """The same as the tags of a file."""
        return AudioTags(self.summary(), self.to_json())

    @classmethod
    def from_json(cls, text: str) -> GenerationMetadata:
        """What `to_json` wrote; what a later version added is left out.

        Raises:
            ValueError: it is damaged.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        names = {item.name for item in dataclasses.fields(cls)}
        missing = sorted({*_KINDS} - {*values})
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return cls(**{name: value for name, value in values.items() if name in names})


def read_metadata(path: StrPath) -> GenerationMetadata | None:
    """How the clip in the file at `path` was made; None if it has no tags of ours.

    Raises:
        UsageError: the file can't be read, or its tags are damaged or can't be read without mutagen.
    """
    path = Path(path)
    tags = read_tags(path)
    try:
        return None if tags is None else GenerationMetadata.from_json(tags.data)
    except ValueError as error:
        raise damaged_tags(path, error) from error


def describe_request(
    request: ClipRequest, output: OutputOptions, model: ModelOptions, program: CommandDefaults = MUSICGEN
) -> GenerationMetadata:
    """The metadata of a clip that is generated as these say."""
    values = request.to_dict()
    steps = request.decoding_steps
    lora = [str(spec) for spec in model.lora]
    options: dict[str, OptionValue | None] = {
        "revision": model.revision,
        # One alone as a string: versions before this option read it, too.
        "lora": (lora[0] if len(lora) == 1 else lora) or None,
        "quantize": model.quantize,
        "int8-activations": model.int8_activations or None,
        "cache-bits": model.cache_bits,
        "weights": model.weights,
        "melody": values.get("melody"),
        "melody-separation": request.melody_separation,
        "style": values.get("style"),
        "style-coef": request.style_coef,
        "max-cfg-coef": request.max_cfg_coef,
        "min-cfg-coef": request.min_cfg_coef,
        "decoding-steps": None if steps is None else ",".join(map(str, steps)),
        "span-arrangement": request.span_arrangement,
        "edit" if request.replace else "continue": values.get("source"),
        "replace": None if request.replace is None else part_text(request.replace),
        "candidates": request.candidates,
        "prompt-seconds": request.prompt_seconds,
        "section": [str(section) for section in request.sections] or None,
        "negative": request.negative,
        "loop": request.loop or None,
        "bars": request.bars,
        "midi-track": request.midi_track,
        "chords": request.chords,
        "bpm": request.bpm,
        "beats-per-bar": request.beats_per_bar,
        "format": None if output.audio_format == "wav" else output.audio_format,
        "bit-depth": output.bit_depth,
        "normalize": None if output.normalize == "none" else output.normalize,
        "lufs": output.lufs,
        "fade-out": output.fade_out,
        "ending": output.ending,
    }
    return GenerationMetadata(
        request.prompt if request.prompt.strip() else "",
        model.name,
        request.seed,
        request.duration,
        top_k=request.top_k,
        top_p=request.top_p,
        temperature=request.temperature,
        cfg_coef=request.cfg_coef,
        options={name: value for name, value in options.items() if value is not None},
        program=program.name,
    )


_NUMBER = (int, float)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt": ((str,), "a string"),
    "model": ((str,), "a string"),
    "seed": ((int,), "an integer"),
    "duration": (_NUMBER, "a number"),
    "top_k": ((int, type(None)), "an integer"),
    "top_p": ((*_NUMBER, type(None)), "a number"),
    "temperature": ((*_NUMBER, type(None)), "a number"),
    "cfg_coef": ((*_NUMBER, type(None)), "a number"),
    "options": ((Mapping,), "an object"),
    "version": ((str,), "a string"),
    "program": ((str,), "a string"),
}


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether `value` is of one of the `kinds`: True is no number, and infinity and NaN aren't either."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))


def _are_strings(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)


def _flag(name: str, value: OptionValue | None) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [word for each in value for word in _flag(name, each)]
    text = _text(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _text(value: str | int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quoted(word: str) -> str:
    """`word` as a shell takes it, on one line and without anything that a terminal would obey."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    # Octal bytes are what every shell with $'...' understands. A file's name may hold bytes that are no text.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "replace"
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", errors))
