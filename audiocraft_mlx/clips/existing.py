"""Which clips of a list are there already, by the tags of their files.

Files are written atomically, and one of a clip that was interrupted says so: a file that says the recipe of
its clip is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_mlx.checkpoints.model_files import released_repository
from audiocraft_mlx.clips.metadata import GenerationMetadata, read_metadata
from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.clips.shards import made_together
from audiocraft_mlx.configs import shown
from audiocraft_mlx.errors import UsageError

STEMS = ("drums", "bass", "other", "vocals")
_SEEDS = 2**32


@dataclass(frozen=True)
class Existing:
    """What is there of a list."""

    made: Mapping[int, GenerationMetadata]
    """The clips that needn't be made again, by their index, and how the file of each was made."""
    first_seed: int | None
    """What the first clip's seed was if seeds were drawn, by a file of an earlier run; None: unknown."""
    differing: Sequence[tuple[ListedClip, str]]
    """Clips in whose place is something else, and what: it would be lost."""


def find_existing(
    clips: Sequence[ListedClip],
    files: Callable[[ListedClip], Sequence[Path]],
    describe: Callable[[ListedClip], GenerationMetadata],
    most_differing: int = 10,
) -> Existing:
    """Look which of `clips` are there.

    The takes of a loop are there if all of them that are kept are: which one is the best isn't known before.

    Args:
        files: the files of a clip, its own first; without any it isn't kept.
        describe: how a clip is to be made.
        most_differing: after so many the others aren't looked at.
    """
    made: dict[int, GenerationMetadata] = {}
    differing: list[tuple[ListedClip, str]] = []
    first_seed: int | None = None
    for group in made_together(clips):
        wanted = [describe(clip) for clip in group]
        found: dict[int, GenerationMetadata] = {}
        all_there = True
        for clip in group:
            paths = files(clip)
            if not paths:
                continue
            if not os.path.lexists(paths[0]):
                all_there = False
                continue
            metadata, difference = _compare(paths[0], clip, wanted)
            if metadata is None:
                differing.append((clip, difference))
                all_there = False
                continue
            if first_seed is None and not clip.own_seed and len(group) == 1:
                first_seed = (metadata.seed - clip.index) % _SEEDS
            found[clip.index] = metadata
            all_there &= not metadata.partial and all(map(os.path.lexists, paths))
        if all_there:
            made |= {clip.index: found.get(clip.index, wanted[0]) for clip in group}
        if len(differing) >= most_differing:
            break
    return Existing(made, first_seed, differing)


def _compare(
    path: Path, clip: ListedClip, wanted: Sequence[GenerationMetadata]
) -> tuple[GenerationMetadata | None, str]:
    """How the file was made if that is one of `wanted`; else None, and what differs."""
    try:
        metadata = read_metadata(path)
    except UsageError as error:
        return None, str(error)
    if metadata is None:
        return None, f"{path} is there, and has no tags that say how it was made"
    difference = ""
    for each in wanted:
        name = _differing(metadata, each, with_seed=clip.own_seed)
        if name is None:
            return metadata, ""
        there, here = (_recipe(values).get(name) for values in (metadata, each))
        difference = f"{path} is there, and was made with another {name}: {_shown(there)}, not {_shown(here)}"
    return None, difference


def _differing(a: GenerationMetadata, b: GenerationMetadata, with_seed: bool) -> str | None:
    """The name of the first value that they don't share; None if they make the same clip."""
    of_a, of_b = _recipe(a), _recipe(b)
    names = [*of_a, *(name for name in of_b if name not in of_a)]
    if not with_seed:
        names.remove("seed")
    return next((name for name in names if of_a.get(name) != of_b.get(name)), None)


def _recipe(metadata: GenerationMetadata) -> dict[str, Any]:
    """What decides the samples, as JSON has it."""
    values = json.loads(metadata.to_json())
    options = values.pop("options")
    for name in ("version", "partial"):
        values.pop(name, None)
    values["model"] = released_repository(metadata.model) or metadata.model
    return {**values, **options}


def _shown(value: object) -> str:
    return "the default" if value is None else shown(value)
