"""The commands that generate clips, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandDefaults:
    """A command that generates clips, and its defaults."""

    name: str
    model: str
    duration: float
    """Seconds."""
    output_name: str
    """The default file name, without its extension."""


MUSICGEN = CommandDefaults("musicgen-mlx", "facebook/musicgen-small", 8.0, "musicgen_output")
AUDIOGEN = CommandDefaults("audiogen-mlx", "facebook/audiogen-medium", 5.0, "audiogen_output")
PROGRAMS = {program.name: program for program in (MUSICGEN, AUDIOGEN)}
