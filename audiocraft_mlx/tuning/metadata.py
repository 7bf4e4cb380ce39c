"""Captions in the files that other programs keep them in: tables of a folder's audio, and one file for each.

- audiocraft (`data/audio_dataset.py`, `data/music_dataset.py`): `data.jsonl` and `data.jsonl.gz`, made on
  whichever machine, and `STEM.json` beside `STEM.wav`
- Hugging Face's `audiofolder`: `metadata.csv` and `metadata.jsonl`
- mlx-lm: `train.jsonl`, `valid.jsonl` and `test.jsonl`
- `STEM.txt` beside `STEM.wav`
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from audiocraft_mlx.configs import shown, shown_text
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error
from audiocraft_mlx.validation import MAX_PROMPT_CHARACTERS

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
    # audiocraft's, which evaluates and generates with them after training
    "evaluate": "test",
    "generate": "test",
}
"""Of folders, tables and their column `split`."""
# With and without ".gz".
_AUDIOCRAFT_TABLE = "data.jsonl"
_TABLES = ("metadata.csv", "metadata.jsonl", *(f"{name}.jsonl" for name in SPLIT_NAMES))
_FILE_KEYS = ("file_name", "file", "path", "audio")
_CAPTION_KEYS = ("text", "caption", "description", "prompt", "transcription")
# audiocraft appends them to a quarter of its descriptions, as "genre: funk. bpm: 110": the released models
# know them in this form.
_MUSIC_KEYS = ("key", "bpm", "genre", "moods", "keywords", "instrument")
# Part N of a file that Replicate's fine-tuner has cut.
_CHUNK = re.compile(r"_chunk\d+$")
# No line and no caption is longer. A compressed file may hold a thousand times its size.
_MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What a table says of one audio file."""

    name: str
    """Its path, as the table has it."""
    caption: str | None
    split: Split | None
    place: str
    """File and line, for messages."""
    is_of_another_machine: bool = False
    """The path may begin with folders that are somewhere else; those at its end count."""


def is_table(name: str) -> bool:
    """Whether a file of this name is one that `read_table` reads."""
    return name in _TABLES or name.removesuffix(".gz") == _AUDIOCRAFT_TABLE


def read_table(path: Path) -> Iterator[Entry]:
    """The entries of a table. Raises `UsageError`, with file and line, for what isn't one."""
    try:
        if path.suffix == ".csv":
            yield from _read_csv(path)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                yield from _read_lines(path, cast(BinaryIO, stream))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: it can't be decompressed; make it again") from error
    except OSError as error:
        raise read_error(path, error, "give a readable file, or remove it") from error


def _read_csv(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        try:
            columns = [*(rows.fieldnames or [])]
            if not set(_FILE_KEYS) & set(columns):
                raise UsageError(
                    f"{path}, line 1: there is no column file_name; the columns, between commas, are:"
                    f" {shown_text(', '.join(columns)) or 'none'}"
                )
            for row in rows:
                place = f"{path}, line {rows.line_num}"
                # "slow, warm" without quotes would be cut after "slow".
                if any(row.get(None, ())):
                    raise UsageError(
                        f"{place} has more than {len(columns)} columns; put a caption with commas into quotes"
                    )
                yield _entry(path, row, place)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8; save it in that encoding") from error
        except csv.Error as error:
            raise UsageError(f"{path}, line {rows.reader.line_num}: {error}") from error


def _read_lines(path: Path, stream: BinaryIO) -> Iterator[Entry]:
    number = 0
    while line := stream.readline(_MAX_LINE + 1):
        number += 1
        place = f"{path}, line {number}"
        if len(line) > _MAX_LINE:
            raise UsageError(
                f"{place} is longer than {_MAX_LINE >> 20} MiB; put one JSON object into each line"
            )
        if line.strip():
            yield _entry(path, _parse(line, path, number), place)


def _parse(text: bytes, path: Path, number: int = 1) -> dict[str, Any]:
    """The JSON object in `text`, which begins at line `number` of the file."""
    try:
        value = json.loads(text.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = number + text.count(b"\n", 0, error.start)
        raise UsageError(f"{path}, line {line} is not UTF-8; save it in that encoding") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {number + error.lineno - 1} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}, line {number} is not a JSON object, as {{...}}")
    return value


def _entry(path: Path, values: dict[str, Any], place: str) -> Entry:
    key = next((key for key in _FILE_KEYS if values.get(key)), None)
    if key is None:
        raise UsageError(f"{place} names no audio file; give its path as file_name")
    name = values[key]
    if not isinstance(name, str):
        raise UsageError(f"{place}: {key} is not the path of a file")
    split = SPLIT_NAMES.get(path.stem)
    named = values.get("split")
    if isinstance(named, str) and named:
        split = SPLIT_NAMES.get(named.strip().lower())
        if split is None:
            raise UsageError(f"{place}: the split is {shown(named)}; choose train, validation or test")
    audiocraft = path.name.removesuffix(".gz") == _AUDIOCRAFT_TABLE
    return Entry(name, _caption(values, _CAPTION_KEYS, place), split, place, audiocraft)


def sidecar_stems(stem: str) -> list[str]:
    """What the caption file of an audio file may be called, without the extension; the first one counts."""
    return [stem] if song_of(stem) == stem else [stem, song_of(stem)]


def song_of(stem: str) -> str:
    """STEM of STEM_chunkN, else `stem` itself: parts of one song have the same."""
    return _CHUNK.sub("", stem)


def read_json_sidecar(path: Path) -> str | None:
    """The caption in audiocraft's file for one audio file; None if it has none.

    Its description, else, as audiocraft does it, its other fields as "genre: funk. bpm: 110".

    Raises `UsageError`, with the file, for another file.
    """
    values = _parse(_read(path), path)
    caption = _caption(values, _CAPTION_KEYS, str(path))
    if caption is not None:
        return caption
    fields = ((key, _caption(values, (key,), str(path))) for key in _MUSIC_KEYS)
    return ". ".join(f"{key}: {value}" for key, value in fields if value) or None


def read_text_sidecar(path: Path) -> str | None:
    """The whole text; None if there is none. Raises `UsageError`, with the file."""
    try:
        return clean_caption(_read(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8; save it in that encoding") from error


def clean_caption(text: str) -> str | None:
    """`text` in one line, of the length of the longest prompts, as Unicode; None for an empty one."""
    line = " ".join(text[: 2 * MAX_PROMPT_CHARACTERS].split())[:MAX_PROMPT_CHARACTERS]
    return line.encode("utf-8", "replace").decode() or None  # JSON can have halves of surrogate pairs


def _read(path: Path) -> bytes:
    try:
        # Opened as it is: to wait for a pipe would be for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(_MAX_LINE + 1) or b""
    except OSError as error:
        raise read_error(path, error, "give a readable file, or remove it") from error
    if len(data) > _MAX_LINE:
        raise UsageError(f"{path} is longer than {_MAX_LINE >> 20} MiB, no caption is; remove it")
    return data


def _caption(values: dict[str, Any], keys: tuple[str, ...], place: str) -> str | None:
    """The first of `keys` that has a text: a string, a number or a list of them."""
    for key in keys:
        value = values.get(key)
        parts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(part, (str, int, float)) for part in parts):
            raise UsageError(f"{place}: {key} is not a text")
        text = clean_caption(", ".join(str(part) for part in parts))
        if text:
            return text
    return None
