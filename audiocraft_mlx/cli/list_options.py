"""The options for many clips: files of prompts, what was made of them, and sharing the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.clips.shards import Shard
from audiocraft_mlx.errors import UsageError


def add_prompts(add: Callable[..., object]) -> None:
    """`add` is that of a group."""
    add(
        "--prompts",
        dest="prompts_file",
        metavar="FILE",
        type=Path,
        help="read more prompts from this file: a text, one a line, where lines that begin with # are "
        "skipped; or CSV (.csv) or JSON lines (.jsonl), with any option that describes a clip by its name, "
        "such as prompt, seed, duration, cfg_coef, output; other options are defaults for what a line "
        "doesn't say",
    )


def add_list_options(add: Callable[..., object]) -> None:
    """`add` is that of a group."""
    add(
        "--manifest",
        metavar="FILE",
        type=Path,
        help="append a line of JSON for each file as it is finished: its name, SHA-256, length, and how it "
        "was made, which --prompts reads",
    )
    add(
        "--skip-existing",
        action="store_true",
        help="don't make clips again whose files are there, whole and, by their tags, made as asked for "
        "(without --seed: with any seed, and the others get the seeds that go with it); a file that was made "
        "otherwise is an error, and nothing is made",
    )
    add(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="make only the clips I, I+N, I+2N, ... of all; names and seeds stay those of the whole list, "
        "and other processes may make the others at the same time (needs --output and --seed, or output and "
        "seed on each line)",
    )


def check_list_options(
    clips: Sequence[ListedClip],
    output: Path | None,
    prompts_file: Path | None,
    manifest: Path | None,
    skip_existing: bool,
    shard: Shard | None,
    tags: bool,
) -> None:
    """Raise `UsageError` for options that don't go together."""
    given = {"--manifest": manifest, "--skip-existing": skip_existing, "--shard": shard}
    for option in (option for option, value in given.items() if value):
        if str(output) == "-":
            raise UsageError(f"{option} is for files; give one to --output instead of -")
        if option != "--manifest" and output is None and any(clip.path is None for clip in clips):
            raise UsageError(
                f"{option} needs names that are the same each time; give --output, or output on each line"
            )
    if skip_existing and not tags:
        raise UsageError(
            "--skip-existing knows by the tags which clips are there; leave --no-tags out, or make all again"
        )
    if shard is not None and not all(clip.own_seed for clip in clips):
        raise UsageError(
            "--shard needs --seed, the same for all shards, or seed on each line: else each one draws its own"
        )
    if manifest is not None and prompts_file is not None and _is_same(manifest, prompts_file):
        raise UsageError("--manifest is the file that --prompts reads; choose another one")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
