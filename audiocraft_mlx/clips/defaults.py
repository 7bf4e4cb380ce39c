"""The commands that generate clips, and their defaults; the chunks that every front asks for."""

from __future__ import annotations

from dataclasses import dataclass

# The codec's rounding depends on where its chunks begin: with these a seed has the same samples everywhere.
CHUNK_SECONDS = 1.0
"""Of all chunks but those at the beginning and the last one."""
FIRST_CHUNK_SECONDS = 0.04
"""Two frames, for which the codec needs four more: the next ones last until those after them are there."""


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
