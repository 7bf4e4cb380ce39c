"""A folder of audio → the files to train on with their captions and splits, and what is left out and why.

Nothing is decoded here: 10,000 files take seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from audiocraft_mlx.audio.read import read_duration
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error
from audiocraft_mlx.tuning.fingerprints import digest, file_size, sampled_digest
from audiocraft_mlx.tuning.metadata import (
    SPLIT_NAMES,
    Entry,
    Split,
    clean_caption,
    is_table,
    read_json_sidecar,
    read_table,
    read_text_sidecar,
    sidecar_stems,
    song_of,
)
from audiocraft_mlx.validation import SEED, TRAINED_TOKENS, validate_number, validate_prompt

MIN_SECONDS = 1.0
"""Shorter audio, also at the end of a file, is left out: it has no rhythm and no phrase to learn, and beside
longer crops it is mostly padding."""
_EXTENSIONS = frozenset(
    f".{name}"
    for group in (
        (
            "wav",
            "wave",
            "w64",
            "rf64",
            "aif",
            "aiff",
            "aifc",
            "au",
            "snd",
            "caf",
            "flac",
            "alac",
            "ape",
            "wv",
        ),
        ("tta", "mp2", "mp3", "mpc", "ogg", "oga", "opus", "aac", "ac3", "amr", "m4a", "m4b", "wma", "mp4"),
        ("mov", "3gp", "webm", "mka", "mkv"),
    )
    for name in group
)
# Of T5, in English: a caption with more characters probably has more than `TRAINED_TOKENS`.
_CHARACTERS_PER_TOKEN = 4
# Names that a line shows of the files that were left out for the same reason.
_SHOWN = 3


@dataclass(frozen=True)
class TrainingFile:
    path: Path
    caption: str | None
    """None: it is trained without a text."""
    split: Literal["train", "validation"]
    duration: float
    """Seconds, as the file's header has them."""
    is_prompted: bool = False
    """It has no caption of its own, but the prompt for all."""


@dataclass(frozen=True)
class Skipped:
    """A file that isn't used."""

    path: Path
    reason: str
    """The same words for all files that it holds for."""
    detail: str = ""
    """What there is to say about this file."""


@dataclass(frozen=True)
class Dataset:
    """The files to train on, in the order of their names."""

    files: tuple[TrainingFile, ...]
    skipped: tuple[Skipped, ...] = ()
    folder: Path = Path()
    is_held_out: bool = False
    """The validation files were chosen here: the data names none."""

    @property
    def minutes(self) -> float:
        return sum(file.duration for file in self.files) / 60

    @property
    def prompted(self) -> int:
        """Files that have no caption of their own, but the prompt for all."""
        return sum(file.is_prompted for file in self.files)

    @property
    def captions(self) -> int:
        """Files with a caption of their own."""
        return len(self.files) - self.prompted

    def of_split(self, split: Literal["train", "validation"]) -> tuple[TrainingFile, ...]:
        return tuple(file for file in self.files if file.split == split)


def read_dataset(
    folder: Path,
    prompt: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    output: Path | None = None,
) -> Dataset:
    """The audio files in `folder` and the folders in it, with their captions.

    A caption comes from a table (see `metadata.py`), or from `STEM.json` or `STEM.txt` beside the file, or it
    is `prompt`. With the prompt "" files without a caption are trained without a text.

    Args:
        validation_fraction: of the files, held out for validation where the data names no validation split;
            at least one of two. Which ones depends on their names and `seed` only. Parts of one song
            (STEM_chunkN) stay together.
        output: where the training writes; it may be in `folder`, and its clips are no data. `folder` may not
            be in it: a clip could take the name of a song.

    Raises:
        UsageError: there is no such folder, it is in `output`, it has no audio, a table isn't what its name
            says (with file and line), or another argument is out of range.
    """
    if prompt is not None:
        validate_prompt(prompt)
    validate_number(
        "validation_fraction", validation_fraction, "from 0 to below 1", lambda fraction: 0 <= fraction < 1
    )
    SEED.validate("seed", seed)
    if output is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(output)):
        raise UsageError(f"{folder} is in {output}, where the training writes; choose another --output")
    found = _Found(Path(folder), output)
    named, skipped = _read_tables(found)
    skipped += found.skipped
    files: list[TrainingFile] = []
    for path in sorted({*found.audio, *named}, key=lambda path: path.as_posix()):
        use = _read_file(found, path, named.get(path), prompt)
        if isinstance(use, Skipped):
            skipped.append(use)
            continue
        files.append(use)
    if not files and not skipped:
        raise UsageError(f"{folder} has no audio files; give a folder with WAV, FLAC, MP3, Ogg or M4A files")
    files, duplicates = _without_duplicates(files)
    is_held_out = all(file.split == "train" for file in files)
    if is_held_out:
        files = _hold_out(files, found.folder, validation_fraction, seed)
    return Dataset(
        tuple(files),
        tuple(sorted(skipped + duplicates, key=lambda file: (file.reason, file.path.as_posix()))),
        found.folder,
        is_held_out and any(file.split == "validation" for file in files),
    )


def describe(dataset: Dataset) -> list[str]:
    """What there is, and what is skipped and why, in lines for people."""
    lines = [f"{counted(len(dataset.files), 'file')} to use, {_minutes(dataset.files)}"]
    train, validation = dataset.of_split("train"), dataset.of_split("validation")
    lines[0] += f": {len(train)} to train, {len(validation)} to validate ({_minutes(validation)})"
    if dataset.is_held_out:
        lines[0] += ", held out by their names"
    if dataset.files:
        texts = len({file.caption for file in dataset.files if file.caption})
        lines.append(f"captions: {counted(dataset.captions, 'file')} with one of their own")
        if dataset.prompted:
            lines[-1] += f", {dataset.prompted} with the prompt for all"
        lines[-1] += f"; {counted(texts, 'different text')}"
    most = _CHARACTERS_PER_TOKEN * TRAINED_TOKENS
    long = sum(len(file.caption or "") > most for file in dataset.files)
    if long:
        lines.append(
            f"{counted(long, 'caption')} with more than {most} characters: at most {TRAINED_TOKENS} tokens"
            " are used, as many as the text encoder was trained with"
        )
    return lines + describe_skipped(dataset.skipped, dataset.folder)


def describe_skipped(skipped: Iterable[Skipped], folder: Path) -> list[str]:
    """A line for each reason: how many files, and the first of them, as they are called in `folder`."""
    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for file in skipped:
        by_reason[file.reason].append(file)
    lines = []
    for reason, files in by_reason.items():
        shown = [
            relative_name(file.path, folder) + (f" ({file.detail})" if file.detail else "") for file in files
        ]
        # Names from strangers could move the terminal's cursor, or not be Unicode.
        shown = ["".join(c if c.isprintable() else "?" for c in text) for text in shown[:_SHOWN]]
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        lines.append(f"skipped, {reason}: {counted(len(files), 'file')}: {', '.join(shown)}{more}")
    return lines


def counted(number: int, noun: str) -> str:
    """As "1 file" and "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _minutes(files: Sequence[TrainingFile]) -> str:
    return f"{sum(file.duration for file in files) / 60:.1f} minutes"


def relative_name(path: Path, folder: Path) -> str:
    """What `path` is called in `folder`, or as it is if it isn't there."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


class _Found:
    """What is in a folder and the folders in it."""

    def __init__(self, folder: Path, output: Path | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.audio: list[Path] = []
        self.tables: list[Path] = []
        self.skipped: list[Skipped] = []
        self._names: dict[Path, dict[str, str]] = {}
        """Of each folder: its files by their stem and lower-case extension."""
        if not folder.is_dir():
            what = "is not a folder" if os.path.lexists(folder) else "does not exist"
            raise UsageError(f"{folder} {what}; give the folder that your audio files are in")
        for name, folders, files in os.walk(self.folder, onerror=self._refuse):
            here = Path(name)
            for inner in folders:
                if os.path.islink(here / inner):
                    self.skipped.append(Skipped(here / inner, "links to folders are not followed"))
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            for inner in [inner for inner in folders if _is_written_by_training(here / inner, output)]:
                # Its clips are made by the model; and there are more of them when it goes on.
                self.skipped.append(Skipped(here / inner, "what a training has written"))
                folders.remove(inner)
            # Also macOS' "._song.wav", which isn't audio.
            visible = [here / file for file in files if not file.startswith(".")]
            self.audio += [file for file in visible if file.suffix.lower() in _EXTENSIONS]
            self.tables += [file for file in visible if is_table(file.name)]
            self.skipped += [
                Skipped(file, "Parquet is not read; convert it to metadata.jsonl")
                for file in visible
                if file.suffix == ".parquet"
            ]
            self._names[here] = {file.stem + file.suffix.lower(): file.name for file in visible}
        self.audio.sort()
        self.tables.sort()

    def _refuse(self, error: OSError) -> None:
        raise read_error(Path(error.filename or self.folder), error, "allow it, or move it away")

    def has_folder(self, folder: Path) -> bool:
        return folder in self._names

    def sidecar(self, audio: Path, extension: str) -> Path | None:
        names = self._names.get(audio.parent, {})
        for stem in sidecar_stems(audio.stem):
            if stem + extension in names:
                return audio.parent / names[stem + extension]
        return None


def _is_written_by_training(folder: Path, output: Path | None) -> bool:
    """Whether it is `output`, or has a model or an adapter in it, as that of an earlier training."""
    if output is not None and os.path.realpath(folder) == os.path.realpath(output):
        return True
    names = ("adapter_config.json", "lm.safetensors", "checkpoint-*/adapter_config.json")
    return any(next(folder.glob(name), None) for name in names)


def _read_tables(found: _Found) -> tuple[dict[Path, Entry], list[Skipped]]:
    """The entry of each file that is there, and the files that aren't or may not be used."""
    entries: dict[Path, Entry] = {}
    skipped = []
    for table in found.tables:
        for entry in read_table(table):
            path = _locate(found.folder, table.parent, entry)
            if isinstance(path, Skipped):
                skipped.append(path)
                continue
            first = entries.setdefault(path, entry)
            if entry.split and first.split and entry.split != first.split:
                skipped.append(Skipped(path, "another split of a file that has one", entry.place))
            if entry.caption and not first.caption:
                entries[path] = replace(first, caption=entry.caption)
            elif entry.caption not in (None, first.caption):
                skipped.append(Skipped(path, "another caption of a file that has one", entry.place))
    return entries, skipped


def _locate(root: Path, folder: Path, entry: Entry) -> Path | Skipped:
    """The file that a table in `folder` names, if it is inside of `root`: a stranger's may name any."""
    name = entry.name.replace("\\", "/")  # as Windows writes it
    path = Path(os.path.normpath(folder / name))
    candidates = [path] if _is_inside(path, root) else []
    if entry.is_of_another_machine:
        parts = [part for part in PurePosixPath(os.path.normpath(name)).parts if part not in ("/", "..")]
        tails = [Path(*parts[first:]) for first in range(len(parts))]
        candidates += [base / tail for tail in tails for base in dict.fromkeys((folder, root))]
    for candidate in candidates:
        if os.path.isfile(candidate):
            # The file itself may be a link, as those of the Hub's cache are, but not the way to it.
            if _is_inside(Path(os.path.realpath(candidate.parent)), Path(os.path.realpath(root)), True):
                return candidate
            return Skipped(candidate, "a path in a table leads out of the folder", entry.place)
    if candidates:
        return Skipped(path, "named in a table, but not there", entry.place)
    return Skipped(Path(entry.name), "a path in a table leads out of the folder", entry.place)


def _is_inside(path: Path, folder: Path, or_equal: bool = False) -> bool:
    return path.is_relative_to(folder) and (or_equal or path != folder)


def _read_file(found: _Found, path: Path, entry: Entry | None, prompt: str | None) -> TrainingFile | Skipped:
    split = (entry.split if entry else None) or _split_of_folders(found, path) or "train"
    if split == "test":
        return Skipped(path, "of a test split")
    try:
        caption = _find_caption(found, path, entry)
    except UsageError as error:
        return Skipped(path, "its caption can't be read", str(error))
    text = caption
    if text is None:
        if prompt is None:
            return Skipped(path, "no caption; give one, or --prompt for all that have none")
        text = clean_caption(prompt)
    try:
        duration = read_duration(path)
    except UsageError as error:
        return Skipped(path, "not readable", str(error))
    if duration < MIN_SECONDS:
        return Skipped(path, f"shorter than {MIN_SECONDS:g} s", f"{duration:.2f} s")
    return TrainingFile(path, text, split, duration, is_prompted=caption is None)


def _find_caption(found: _Found, path: Path, entry: Entry | None) -> str | None:
    if entry and entry.caption:
        return entry.caption
    for extension, read in ((".json", read_json_sidecar), (".txt", read_text_sidecar)):
        sidecar = found.sidecar(path, extension)
        caption = read(sidecar) if sidecar else None
        if caption:
            return caption
    return None


def _split_of_folders(found: _Found, path: Path) -> Split | None:
    """That of the folder that the file is in, if it is `train` or beside it: an album may be called Test."""
    for folder in path.parents:
        if folder == found.folder:
            return None
        split = SPLIT_NAMES.get(folder.name)
        if split and found.has_folder(folder.parent / "train"):
            return split
    return None


def _without_duplicates(files: Sequence[TrainingFile]) -> tuple[list[TrainingFile], list[Skipped]]:
    """`files` without those whose bytes are another's: the first one stays, before all one to train on."""
    ordered = sorted(files, key=lambda file: file.split == "validation")
    kept_one: dict[Path, Path] = {}
    groups = [[file.path for file in ordered]]
    # From what costs nothing to what reads all of a file, each within what the ones before left together.
    for key in (file_size, sampled_digest, digest):
        groups = [same for group in groups for same in _groups(group, key)]
    for first, *others in groups:
        kept_one |= dict.fromkeys(others, first)
    kept = [file for file in files if file.path not in kept_one]
    reason = "the same audio as another file"
    return kept, [Skipped(path, reason, f"{first.name} is used") for path, first in kept_one.items()]


def _groups(paths: Sequence[Path], key: Callable[[Path], object]) -> list[list[Path]]:
    """Those of several `paths` with the same `key`, in their order."""
    groups: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _hold_out(files: Sequence[TrainingFile], folder: Path, fraction: float, seed: int) -> list[TrainingFile]:
    """`files`, with at least `fraction` of them for validation, but not all."""
    if not fraction:
        return list(files)

    def order(song: str) -> bytes:
        return hashlib.sha256(f"{seed}:{song}".encode("utf-8", "surrogateescape")).digest()

    songs: dict[str, list[TrainingFile]] = defaultdict(list)
    for file in files:
        name = file.path.relative_to(folder)
        songs[name.with_name(song_of(name.stem)).as_posix()].append(file)
    if len(songs) == 1:  # parts of it, then
        songs = {file.path.relative_to(folder).as_posix(): [file] for file in files}
    wanted = max(1, round(fraction * len(files)))
    held_out: set[Path] = set()
    for song in sorted(songs, key=order)[: len(songs) - 1]:
        if len(held_out) < wanted:
            held_out |= {file.path for file in songs[song]}
    return [replace(file, split="validation") if file.path in held_out else file for file in files]
