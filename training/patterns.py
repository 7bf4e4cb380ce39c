"""Patterns of characters (`styles/style.py`) → what they say."""

from __future__ import annotations


def read_pattern(pattern: str) -> list[tuple[int, int, str]]:
    """(step, steps, character) of each note of a pattern."""
    events: list[tuple[int, int, str]] = []
    for step, character in enumerate(pattern):
        if character == "-":
            start, steps, note = events[-1]
            if start + steps != step:
                raise ValueError(f"{pattern}: a hold follows a rest")
            events[-1] = (start, steps + 1, note)
        elif character != ".":
            events.append((step, 1, character))
    return events


def bar_of(pattern: str, bar: int, steps_per_bar: int) -> list[tuple[int, int, str]]:
    """The events of a bar, of a pattern that is repeated and may last several bars."""
    first = bar * steps_per_bar % len(pattern)
    return read_pattern(pattern[first : first + steps_per_bar])
