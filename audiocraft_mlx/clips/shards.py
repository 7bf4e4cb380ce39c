"""A list of clips divided among processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Every `count`th part of a list, from the `number`th on (from 1). Raises `UsageError`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"must be I/N with I from 1 to N, such as 1/8, not '{self}'")

    @classmethod
    def parse(cls, text: str) -> Shard:
        match = re.fullmatch(r"\s*([0-9]{1,9})/([0-9]{1,9})\s*", text, re.ASCII)
        if match is None:
            raise UsageError(f"must be I/N with I from 1 to N, such as 1/8, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def clips(self, clips: Sequence[ListedClip]) -> list[ListedClip]:
        """Those of `clips` that are this shard's, in order."""
        groups = list(made_together(clips))
        return [clip for group in groups[self.number - 1 :: self.count] for clip in group]


def made_together(clips: Iterable[ListedClip]) -> Iterator[list[ListedClip]]:
    """`clips` one by one, but for loops: all takes of one are compared, and the best are kept."""
    group: list[ListedClip] = []
    for clip in clips:
        if group and (clip.first != group[0].first or not clip.request.loop):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group
