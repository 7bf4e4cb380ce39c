"""Files of prompts → lines with what each says: text, CSV and JSONL, told by the file's ending."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TextIO

from audiocraft_mlx.configs import shown, shown_text
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error
from audiocraft_mlx.validation import MAX_PROMPT_CHARACTERS

# No line of CSV or JSONL is longer, and no cell: a file of something else isn't read to its end.
_MAX_LINE = 1 << 20
_JSON = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".csv", *_JSON})
"""The endings of files whose lines have named values."""
_OTHERS = {
    ".json": "write one object a line, into a file that ends in .jsonl",
    ".tsv": "choose another ending: .csv, whose cells may be separated by tabs",
}


@dataclass(frozen=True)
class PromptLine:
    """What a line says, by name; a text is what the option of the command would be given."""

    values: Mapping[str, Any]
    number: int | None = None
    """Where it begins in its file, from 1 on; None: it is of no file."""


@dataclass(frozen=True)
class BadLine:
    """A line that can't be read."""

    number: int
    message: str


Names = Callable[[Iterable[str]], None]
"""Raises `UsageError` for a name that isn't known."""


def read_prompt_file(path: Path, check_names: Names) -> Iterator[PromptLine | BadLine]:
    """The lines of the file at `path`, without blank ones; of a text without comments, too.

    What comes behind some errors, such as a quote that is missing, isn't read. Nothing is kept: a file of any
    length takes the memory of a line.

    Raises:
        UsageError: from the iterator, if the file can't be read, or its ending is that of something else.
    """
    ending = path.suffix.lower()
    if ending in _OTHERS:
        raise UsageError(f"{path} is not read as prompts; {_OTHERS[ending]}")
    try:
        with path.open(encoding="utf-8-sig", newline="" if ending == ".csv" else None) as file:
            if ending == ".csv":
                yield from _csv_lines(file, check_names)
            elif ending in _JSON:
                yield from _json_lines(file, check_names)
            else:
                yield from _text_lines(file)
    except OSError as error:
        raise read_error(path, error, "give a text, CSV or JSONL file") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not valid UTF-8; convert it first") from None


def _text_lines(file: TextIO) -> Iterator[PromptLine | BadLine]:
    # Lines end as in a text editor: not at what else Unicode calls the end of a line or paragraph.
    for number, line in enumerate(_lines(file, MAX_PROMPT_CHARACTERS), start=1):
        if line is None:
            yield BadLine(
                number, f"it is longer than {MAX_PROMPT_CHARACTERS} characters; write one prompt a line"
            )
            return
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield PromptLine({"prompt": prompt}, number)


def _json_lines(file: TextIO, check_names: Names) -> Iterator[PromptLine | BadLine]:
    for number, line in enumerate(_lines(file, _MAX_LINE), start=1):
        if line is None:
            yield BadLine(number, f"it is longer than {_MAX_LINE} characters; write one object a line")
            return
        if not line.strip():
            continue
        try:
            values = _json_object(line)
            check_names(values)
        except UsageError as error:
            yield BadLine(number, str(error))
        else:
            yield PromptLine({name: value for name, value in values.items() if value is not None}, number)


def _json_object(line: str) -> dict[str, Any]:
    example = '{"prompt": "a solo cello", "seed": 1}'
    try:
        values = json.loads(line.strip(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise UsageError("it is nested too deep") from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f"it is not valid JSON ({error.msg}, character {error.colno}); write one object a line, as"
            f" {example}"
        ) from None
    except UsageError:
        raise
    except ValueError:
        raise UsageError("it has a number of thousands of digits") from None
    if not isinstance(values, dict):
        raise UsageError(f"it must be an object, as {example}, not {shown(values)}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{shown_text(twice)} is there twice; leave one of them out")
    return values


def _no_number(text: str) -> NoReturn:
    raise UsageError(f"{text} is no number of JSON; leave it out")


def _csv_lines(file: TextIO, check_names: Names) -> Iterator[PromptLine | BadLine]:
    lines = _csv_source(file)
    number = 1
    try:
        for first in lines:
            if first.strip():
                break
            number += 1
        else:
            return
        before = number - 1
        # None of the names has one of these in it.
        delimiter = max(",;\t", key=first.count)
        rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        header = [name.strip().lower() for name in next(rows)]
        _check_header(header, check_names)
        while True:
            number = before + rows.line_num + 1
            cells = next(rows, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            try:
                yield PromptLine(_row(header, cells), number)
            except _BadRow as error:
                yield BadLine(number, str(error))
    except csv.Error as error:
        long = "field larger" in str(error)
        what = "a cell is too long; is a quote missing?" if long else f"{error}; is there a quote too many?"
        yield BadLine(number, f"its cells can't be told apart: {what}")
    except _LongLine:
        yield BadLine(number, f"a line is longer than {_MAX_LINE} characters; is it a CSV file?")
    except UsageError as error:
        yield BadLine(number, str(error))


class _BadRow(UsageError):
    """A row alone is wrong: the next one can be read."""


class _LongLine(Exception):
    pass


def _csv_source(file: TextIO) -> Iterator[str]:
    """The lines of `file`, for csv: one that is too long can't be skipped."""
    for line in _lines(file, _MAX_LINE):
        if line is None:
            raise _LongLine
        yield line


def _check_header(header: list[str], check_names: Names) -> None:
    try:
        check_names(name for name in header if name)
    except UsageError as error:
        raise UsageError(f"{error}; the first line has the columns' names") from None
    for name in filter(None, header):
        if header.count(name) > 1:
            raise UsageError(f"the column {name} is there twice; leave one of them out")


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells that aren't empty, by their columns' names."""
    values: dict[str, str] = {}
    for index, cell in enumerate(cells):
        if not cell.strip():
            continue
        if index >= len(header):
            raise _BadRow(
                f"it has {len(cells)} cells, and the first line {len(header)} names; put a text with a"
                " comma into double quotes"
            )
        if not header[index]:
            raise _BadRow(f"its cell {index + 1} is in a column without a name; name it in the first line")
        values[header[index]] = cell.strip()
    return values


def _lines(file: TextIO, longest: int) -> Iterator[str | None]:
    """The lines of `file`; None, and then no more, for one of more than `longest` characters."""
    for line in iter(lambda: file.readline(longest + 2), ""):
        if len(line.rstrip("\r\n")) > longest:
            yield None
            return
        yield line
