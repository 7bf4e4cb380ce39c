"""A tempo in words and in seconds."""

from __future__ import annotations

import re

_TEMPO = re.compile(r"\d\s*-?\s*(?:bpm\b|beats\s+(?:per|a|/)\s*minute)", re.IGNORECASE)


def with_tempo(prompt: str, bpm: float | None) -> str:
    """`prompt` with the tempo at its end, unless there is one in it, or it is empty."""
    if bpm is None or not prompt.strip() or _TEMPO.search(prompt):
        return prompt
    return f"{prompt.rstrip(' .,;')}, {bpm:g} bpm"


def seconds_of_bars(bars: int, bpm: float, beats_per_bar: int) -> float:
    return bars * beats_per_bar * 60 / bpm
