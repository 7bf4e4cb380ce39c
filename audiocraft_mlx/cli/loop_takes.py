"""The takes of loops that are finished, until all of their prompt are: the best comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranked(Generic[T]):
    """A take, and the `place` of a request, whose files it gets; None: it isn't kept."""

    place: int | None
    take: T


class LoopTakes(Generic[T]):
    """Of each prompt there are some requests side by side, of which the first ones have files."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[tuple[float, int, T]]] = {}
        self._kept: dict[int, int] = {}

    def add(self, index: int, score: float, take: T, group: range, kept: int) -> list[Ranked[T]]:
        """The take of request `index`; all of its prompt, the best first, if it is the last one.

        `group` has the requests of that prompt, of which the first `kept` have files.
        """
        waiting = self._waiting.setdefault(group.start, [])
        waiting.append((score, index, take))
        self._kept[group.start] = kept
        return self._rank(group.start) if len(waiting) == len(group) else []

    def rest(self) -> list[Ranked[T]]:
        """Those of prompts that aren't complete."""
        return [ranked for first in sorted(self._waiting) for ranked in self._rank(first)]

    def _rank(self, first: int) -> list[Ranked[T]]:
        order = sorted(self._waiting.pop(first), key=lambda each: each[:2])
        kept = self._kept.pop(first)
        return [
            Ranked(first + place if place < kept else None, take) for place, (_, _, take) in enumerate(order)
        ]
