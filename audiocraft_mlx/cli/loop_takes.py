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
    """Of each prompt there are `takes` requests side by side, of which the first `kept` have files."""

    def __init__(self, takes: int, kept: int) -> None:
        self._takes, self._kept = takes, kept
        self._waiting: dict[int, list[tuple[float, int, T]]] = {}

    def add(self, index: int, score: float, take: T) -> list[Ranked[T]]:
        """The take of request `index`; all of its prompt, the best first, if it is the last one."""
        prompt = index // self._takes
        waiting = self._waiting.setdefault(prompt, [])
        waiting.append((score, index, take))
        return self._rank(prompt) if len(waiting) == self._takes else []

    def rest(self) -> list[Ranked[T]]:
        """Those of prompts that aren't complete."""
        return [ranked for prompt in sorted(self._waiting) for ranked in self._rank(prompt)]

    def _rank(self, prompt: int) -> list[Ranked[T]]:
        order = sorted(self._waiting.pop(prompt), key=lambda each: each[:2])
        first = prompt * self._takes
        return [
            Ranked(first + place if place < self._kept else None, take)
            for place, (_, _, take) in enumerate(order)
        ]
