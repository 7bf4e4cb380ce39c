"""The notes that a clip follows in place of audio: a MIDI file's melody, or chords."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from audiocraft_mlx.conditioning.chords import chord_notes
from audiocraft_mlx.conditioning.midi import read_midi
from audiocraft_mlx.conditioning.notes import Notes
from audiocraft_mlx.files import StrPath


@dataclass(frozen=True, eq=False)
class NoteInput:
    """A melody as notes. Rows that share one encode it once."""

    notes: Notes
    name: str | None = None
    """Its file, for the metadata."""


def read_notes(path: StrPath, track: int | None) -> NoteInput:
    """Of a MIDI file; see `read_midi`. Raises `UsageError`."""
    return NoteInput(read_midi(path, track), str(path))


notes_of_chords = lru_cache(maxsize=64)(chord_notes)
"""`chord_notes`, whose result rows with equal chords share."""
