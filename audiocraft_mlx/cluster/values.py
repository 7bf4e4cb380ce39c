"""What travels between the command and the machines of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.errors import MusicGenError

InputKey = tuple[str, str, float | int | None]
"""What tells the audio that clips are made from apart: the field of the request, the file, how it is read."""


@dataclass(frozen=True)
class ModelSpec:
    """A model and how it is loaded."""

    program: str
    """The name of the command."""
    options: ModelOptions


@dataclass(frozen=True)
class Needs:
    """What a machine must be able to do for a list of clips."""

    seconds: float
    """Of music that is made for the longest one."""
    branches: int
    """Of guidance, at most."""
    alone: bool
    """Whether some clips can't be made beside others."""
    stems: bool
    folders: tuple[Path, ...]
    """Where it writes clips."""


@dataclass(frozen=True)
class ModelFacts:
    """What a machine knows after it has loaded the model."""

    condition_types: frozenset[str]
    fills_masks: bool
    slots: int
    """How many clips it makes at once."""


@dataclass(frozen=True)
class ClipTask:
    """A clip to be made, and how its files are."""

    model: ModelSpec
    request: ClipRequest
    """Its audio files are paths; what is in them travels beside it."""
    output: OutputOptions
    metadata: GenerationMetadata | None
    """The file's tags."""
    path: Path | None = None
    """Where the machine writes the file; None: its bytes come back."""
    line: int | None = None
    """Of the file of prompts, for the manifest."""
    manifest: GenerationMetadata | None = None
    """What the manifest says of a file that the machine writes."""


@dataclass(frozen=True)
class MadeFile:
    """One file of a clip. `stem` is the name of a stem, None for the clip itself."""

    stem: str | None
    data: bytes | None
    """None if the machine has written it."""
    channels: int
    samples: int
    sample_rate: int
    peak: float
    """Above 1: what the audio was scaled down by."""


@dataclass(frozen=True)
class MadeClip:
    """A clip that a machine has made."""

    seconds: float
    """Of new music."""
    elapsed: float
    files: tuple[MadeFile, ...]
    """Its own first, then its stems."""
    loop: tuple[float, str] | None = None
    """The score of a loop among its takes, lower is better, and what is told of it."""
    manifest_line: dict[str, Any] | None = None
    """Of a file that the machine has written."""


@dataclass(frozen=True)
class Failed:
    """It can't be done there. As a value: the machine itself is well."""

    error: MusicGenError
