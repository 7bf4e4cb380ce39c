"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.clips.requests import ModelOptions


@dataclass(frozen=True)
class Limits:
    duration: float = 300.0
    """Seconds of a clip."""
    takes: int = 8
    prompt_characters: int = 10_000
    waiting: int = 200
    """Jobs in all."""
    waiting_per_client: int = 100
    body_bytes: int = 50_000_000
    audio_seconds: float = 1800.0
    """Of an upload, decoded."""
    free_bytes: int = 200_000_000
    """That the disk must keep."""
    connections: int = 100


@dataclass(frozen=True)
class ServerSettings:
    data: Path
    model: ModelOptions
    hint: str | None = None
    allow_downloads: bool = False
    limits: Limits = Limits()
    lora: tuple[LoraSpec, ...] = ()
    """Adapters of `model`: with each it is one more model of the list."""
