"""A file of prompts → its clips, with all that is wrong in it by line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiocraft_mlx.checkpoints.model_files import released_repository
from audiocraft_mlx.clips.prompt_files import BadLine, read_prompt_file
from audiocraft_mlx.clips.prompt_lines import (
    MAX_CLIPS,
    MODEL_NAMES,
    LineDefaults,
    ListedClip,
    check_names,
    clips_of_line,
    describe_in_line,
    read_values,
)
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.configs import shown
from audiocraft_mlx.errors import UsageError, UsageErrors

_MOST_ERRORS = 10
_MOST_CHARACTERS = 700


class LineErrors:
    """The mistakes in a file of prompts: all of the first ten lines with one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._messages: list[str] = []

    def add(self, line: int | None, message: str) -> None:
        """Raises `UsageError` at once for a clip that is of no line, and `UsageErrors` for the tenth one."""
        if line is None:
            raise UsageError(message)
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[:_MOST_CHARACTERS]}..."
        self._messages.append(f"{self._path}, line {line}: {message}")
        if len(self._messages) == _MOST_ERRORS:
            self._messages.append(f"{self._path}: what comes behind these {_MOST_ERRORS} isn't checked yet")
            self.raise_any()

    def raise_any(self) -> None:
        """Raise `UsageErrors` if there are any."""
        if self._messages:
            raise UsageErrors(self._messages)


class ListModel:
    """The one model that makes all clips: what the command and the lines say of it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._values = dict(given)

    def add(self, values: Mapping[str, Any]) -> None:
        """Take over what a line says. Raises `UsageError` if something else was said before."""
        for name in MODEL_NAMES:
            if name not in values:
                continue
            value = values[name] or None
            if name not in self._values:
                self._values[name] = value
            elif _same(self._values[name]) != _same(value):
                raise UsageError(
                    f"{name} is {_shown(value)} here, and {_shown(self._values[name])} in the command or a"
                    " line before: one model makes all clips of a call; put the others into another file"
                )

    def options(self, default: str) -> ModelOptions:
        """`default`: the model's name if nothing says it."""
        values = {name: value for name, value in self._values.items() if value is not None}
        return ModelOptions(values.pop("model", default), **values)


def read_clips(path: Path, defaults: LineDefaults, first: int, model: ListModel) -> list[ListedClip]:
    """The clips of the file of prompts at `path`, behind `first` others.

    What it says of the model is added to `model`.

    Raises:
        UsageErrors: of up to ten lines, each with its number.
        UsageError: the file can't be read, has no prompts, or too many.
    """
    errors = LineErrors(path)
    clips: list[ListedClip] = []
    empty = True
    for line in read_prompt_file(path, check_names):
        empty = False
        if isinstance(line, BadLine):
            errors.add(line.number, line.message)
            continue
        if first + len(clips) >= MAX_CLIPS:
            raise UsageError(f"{path} has prompts for more than {MAX_CLIPS} clips; split it")
        try:
            values = read_values(line)
            model.add(values)
            clips += clips_of_line(values, defaults, first + len(clips), line.number)
        except UsageError as error:
            errors.add(line.number, describe_in_line(error))
    errors.raise_any()
    if empty:
        raise UsageError(f"{path} has no prompts; write one a line")
    return clips


def _same(value: Any) -> Any:
    return (released_repository(value) or value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else shown(value)
