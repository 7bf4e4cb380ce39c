"""Lines of prompt files → clips: what a line says, and defaults for what it doesn't.

The names are those of the command's options and of the server's jobs. Every value is validated by the request
or the options that it goes into.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_mlx.audio.formats import BIT_DEPTHS, choose_format
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.parts import parse_part
from audiocraft_mlx.clips.prompt_files import PromptLine
from audiocraft_mlx.clips.requests import (
    CLIP_RANGES,
    OUTPUT_RANGES,
    ClipRequest,
    FieldError,
    OutputOptions,
    require_loopable,
)
from audiocraft_mlx.conditioning.sections import parse_section
from audiocraft_mlx.configs import shown
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import expand_home
from audiocraft_mlx.validation import NumberRange

MAX_CLIPS = 100_000
"""Enough for weeks, and few enough that all can be planned ahead."""
TAKES = NumberRange(int, f"an integer from 1 to {MAX_CLIPS}", lambda takes: 1 <= takes <= MAX_CLIPS)
_SEEDS = 2**32
# What breaks the line of a message, or changes the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class ListedClip:
    """One clip of all that a command makes."""

    index: int
    """Among all of them."""
    request: ClipRequest
    """Its audio files aren't read yet."""
    output: OutputOptions
    path: Path | None = None
    """The name that its line gives to its file; with several takes that of all of them."""
    line: int | None = None
    """The number of its line in the file of prompts."""
    own_seed: bool = True
    """Whether the seed was said, and not drawn."""
    take: int = 0
    takes: int = 1
    """Of its prompt, side by side."""
    kept: int = 1
    """How many of these get a file."""

    @property
    def first(self) -> int:
        """The index of its prompt's first take."""
        return self.index - self.take

    def with_first_seed(self, seed: int) -> ListedClip:
        """The clip with another seed if that was drawn: what it has if the first clip's is `seed`."""
        if self.own_seed:
            return self
        request = dataclasses.replace(self.request, seed=(seed + self.index) % _SEEDS)
        return dataclasses.replace(self, request=request)


@dataclass(frozen=True)
class LineDefaults:
    """What lines are that don't say otherwise.

    Attributes:
        values: by the names of lines, as `read_values` returns them.
        audio_format: of a file whose format nothing says.
        first_seed: of the first clip of all; the others count on.
        seed_is_drawn: whether that is a random one.
        keep_best: how many loops of each prompt get a file; None: all.
    """

    values: Mapping[str, Any]
    audio_format: str
    first_seed: int
    seed_is_drawn: bool = False
    keep_best: int | None = None


def check_names(names: Iterable[str]) -> None:
    """Raise `UsageError` for a name that no line has."""
    given = list(names)
    of_manifest = _HASH in given
    for name in given:
        if name not in _READERS and not (of_manifest and name in _MADE):
            raise UsageError(f"{shown(name)} is not known; known are {', '.join(_READERS)}")


def read_values(line: PromptLine) -> dict[str, Any]:
    """The values of a line as `clips_of_line` takes them, each from a text or from JSON's own.

    Raises:
        UsageError: one has a wrong type or is out of range; names it.
    """
    values = {}
    for name, value in line.values.items():
        if name in _READERS:
            try:
                values[name] = _READERS[name](value)
            except UsageError as error:
                between = " " if str(error).startswith("must ") else ": "
                raise UsageError(f"{name}{between}{error}") from error
    return values


def clips_of_line(
    values: Mapping[str, Any], defaults: LineDefaults, first: int, number: int | None = None
) -> list[ListedClip]:
    """The clips of a line that says `values`, one for each of its takes.

    A pure function: it opens no file, and the same line is the same clips in every process.

    Args:
        values: from `read_values`.
        first: how many clips come before.
        number: of the line.

    Raises:
        UsageError: values don't go together, a `FieldError` among them: see `describe_in_line`.
    """
    merged = {**_fitting(defaults.values, values), **values}
    takes = merged.get("takes", 1)
    TAKES.validate("takes", takes)
    if first + takes > MAX_CLIPS:
        raise UsageError(f"these are {first + takes} clips; ask for {MAX_CLIPS} at most")
    for name, needed in (("edit", "replace"), ("replace", "edit")):
        if name in merged and needed not in merged:
            raise UsageError(f"{name} needs {needed}: a file, and the part of it that is generated anew")
    if "edit" in merged and "continue" in merged:
        raise UsageError("edit and continue don't go together; leave one of them out")
    for name, other in (("edit", "duration"), ("bars", "duration")):
        if name in values and other in values:
            raise UsageError(f"{name} and {other} don't go together: it says how long the new music is")
    own_seed = "seed" in values
    seed = values["seed"] if own_seed else (defaults.first_seed + first) % _SEEDS
    request = ClipRequest(
        seed=seed, **{_FIELDS.get(name, name): value for name, value in merged.items() if name in _REQUEST}
    )
    output = _output(merged, defaults.audio_format)
    require_loopable(request, output)
    kept = takes
    if request.loop and defaults.keep_best is not None:
        kept = defaults.keep_best
        if kept > takes:
            raise UsageError(f"--keep-best {kept} are more than its takes; ask for more")
    return [
        ListedClip(
            first + take,
            request if not take else dataclasses.replace(request, seed=(request.seed + take) % _SEEDS),
            output,
            merged.get("output"),
            number,
            own_seed or not defaults.seed_is_drawn,
            take,
            takes,
            kept,
        )
        for take in range(takes)
    ]


def line_of(metadata: GenerationMetadata) -> dict[str, Any]:
    """What a line says that makes a clip with `metadata` again, under a name that it doesn't say."""
    values = {
        name: getattr(metadata, name)
        for name in ("prompt", "model", "seed", "duration", "top_k", "top_p", "temperature", "cfg_coef")
    }
    options = {name.replace("-", "_"): value for name, value in metadata.options.items()}
    if "section" in options:
        options["sections"] = options.pop("section")
    if not {"replace", "bars"}.isdisjoint(options):
        del values["duration"]
    return {name: value for name, value in (values | options).items() if value is not None}


def describe_in_line(error: UsageError) -> str:
    """The message, with the names that fields have in lines."""
    message = str(error)
    if isinstance(error, FieldError):
        names = {"source": "continue", "audio_format": "format"}
        message = error.describe(lambda field: names.get(field, field))
    return re.sub(r"^audio_format\b", "format", message)


def _output(values: Mapping[str, Any], audio_format: str) -> OutputOptions:
    path, name, bits = values.get("output"), values.get("format"), values.get("bit_depth")
    chosen = name or audio_format if path is None else choose_format(path, name, bits).name
    return OutputOptions(chosen, bits, **{name: value for name, value in values.items() if name in _OUTPUT})


def _fitting(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `defaults` without those that a line replaces by saying something else."""
    dropped = {other for name in values for other in _INSTEAD_OF.get(name, ())}
    output = values.get("output")
    if output is not None and "format" not in values and output.suffix[1:].lower() in BIT_DEPTHS:
        dropped.add("format")
    if "format" in values or "output" in values:
        dropped.add("bit_depth")
    return {name: value for name, value in defaults.items() if name not in dropped} if dropped else defaults


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"must be a string, not {shown(value)}")
    return value


def _prompt(value: Any) -> str:
    text = _text(value)
    return text if text.strip() else ""


def _name(value: Any) -> str:
    text = _text(value)
    try:
        os.fsencode(text)
        usable = text.strip() and not _CONTROL.search(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UsageError(f"must be a name, not {shown(value)}")
    return text


def _path(value: Any) -> Path:
    return expand_home(_name(value))


def _output_path(value: Any) -> Path:
    path = _path(value)
    if not path.name or str(path) == "-":
        raise UsageError(f"must be the name of a file, not {shown(value)}")
    return path


def _part(value: Any) -> tuple[float, float]:
    return parse_part(_text(value))


def _sections(value: Any) -> Any:
    """Of a text with `|` between them, or a list of texts or of objects."""
    if isinstance(value, str):
        value = value.split("|")
    if not isinstance(value, list):
        raise UsageError(f"must be a list of sections, not {shown(value)}")
    return tuple(parse_section(each) if isinstance(each, str) else each for each in value)


def _steps(value: Any) -> Any:
    steps = value.split(",") if isinstance(value, str) else value
    return tuple(map(_whole, steps)) if isinstance(steps, list) else value


def _flag(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    flag = known.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise UsageError(f"must be true or false, not {shown(value)}")
    return flag


def _adapters(value: Any) -> tuple[LoraSpec, ...]:
    return tuple(LoraSpec.parse(_name(name)) for name in (value if isinstance(value, list) else [value]))


def _whole(value: Any) -> Any:
    """An integer; what is none is left as it is, for the one who checks the range."""
    number = _number(value)
    # Tables with gaps are often written with all their integers as 7.0.
    if isinstance(number, float) and number.is_integer() and abs(number) < 2**53:
        return int(number)
    return number


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"must be a number, not {shown(value)}")
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value


def _ranged(allowed: NumberRange) -> Callable[[Any], Any]:
    read = _whole if allowed.kind is int else _number

    def reader(value: Any) -> Any:
        number = read(value)
        try:
            allowed.validate("", number)
        except UsageError:
            raise UsageError(f"must be {allowed.expected}, not {shown(value)}") from None
        return number

    return reader


def _one_of(*choices: int) -> Callable[[Any], int]:
    expected = " or ".join(map(str, choices))
    return _ranged(NumberRange(int, expected, lambda value: value in choices))


_NUMBERS = {name: _ranged(allowed) for name, allowed in CLIP_RANGES.items()}
_OUTPUT_NUMBERS = {name: _ranged(allowed) for name, allowed in OUTPUT_RANGES.items()}
_CLIP: dict[str, Callable[[Any], Any]] = {
    "prompt": _prompt,
    **_NUMBERS,
    "takes": _ranged(TAKES),
    "negative": _text,
    "sections": _sections,
    "melody": _path,
    "melody_separation": _text,
    "chords": _text,
    "style": _path,
    "continue": _path,
    "edit": _path,
    "replace": _part,
    "loop": _flag,
    "decoding_steps": _steps,
    "span_arrangement": _text,
}
_FILE: dict[str, Callable[[Any], Any]] = {
    "output": _output_path,
    "format": _text,
    **_OUTPUT_NUMBERS,
    "normalize": _text,
    "ending": _text,
    "stems": _flag,
}
_MODEL: dict[str, Callable[[Any], Any]] = {
    "model": _name,
    "revision": _name,
    "quantize": _one_of(4, 8),
    "int8_activations": _flag,
    "cache_bits": _one_of(8),
    "weights": _name,
    "lora": _adapters,
}
_READERS = {**_CLIP, **_FILE, **_MODEL}
DEFAULT_NAMES = tuple(name for name in (*_CLIP, *_FILE) if name not in ("prompt", "seed", "output"))
"""What a default may be given for."""
MODEL_NAMES = tuple(_MODEL)
"""What a line may say of the model: all lines and the command must say the same."""
_HASH = "sha256"
_MADE = frozenset({_HASH, "file", "line", "seconds", "sample_rate", "version", "program"})
"""What a line of a manifest says of the file that was made: it has a hash."""
_FIELDS = {"continue": "source", "edit": "source"}
"""Names of fields of a request that lines call otherwise."""
_REQUEST = frozenset({*_CLIP} - {"seed", "takes"})
_OUTPUT = frozenset({*_FILE} - {"output", "format", "bit_depth"})
_MELODY = ("melody", "melody_separation", "midi_track")
_STYLE = ("style", "style_coef")
_PART = ("edit", "replace", "candidates")
_INSTEAD_OF: dict[str, tuple[str, ...]] = {
    "melody": (*_STYLE, "chords"),
    "style": (*_MELODY, "chords"),
    "chords": (*_MELODY, *_STYLE),
    "continue": _PART,
    "edit": ("continue", "prompt_seconds", "duration"),
    "duration": ("bars",),
    "bars": ("duration",),
}
"""Defaults that don't count for a line that says something in their place."""
