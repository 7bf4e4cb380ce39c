"""Sequences that take their steps together, and join and leave between any two of them.

Continuous batching (Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models"): a machine reads the weights once for all of them, and none waits for the longest one to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import mlx.core as mx

from audiocraft_mlx.decoding.step import DecoderSteps, LMStep
from audiocraft_mlx.networks.cache import DecoderState

Item = TypeVar("Item")


class MergedSteps:
    """Takes single steps of several sequences as one: their rows are in one state."""

    def __init__(self) -> None:
        self._steps: DecoderSteps | None = None
        self._rows: dict[DecoderSteps, list[int]] = {}

    def take(self, steps: Sequence[LMStep]) -> None:
        """Take `steps`, each of one position."""
        parts = [part for step in steps for part in step.parts]
        taking = {own for own, _ in parts}
        for own in [own for own in self._rows if own not in taking]:
            own.split()  # it goes on alone
        for own, _ in parts:
            if own not in self._rows:
                self._join(own)
        assert self._steps is not None
        places = [row for own, _ in parts for row in self._rows[own]]
        codes = mx.concatenate([codes for _, codes in parts])
        in_order = places == list(range(len(places)))
        if not in_order:
            codes = codes[mx.array(sorted(range(len(places)), key=places.__getitem__))]
        logits = self._steps(codes)
        if not in_order:
            logits = logits[mx.array(places)]
        first = 0
        for step in steps:
            step.logits = []
            for _, own_codes in step.parts:
                step.logits.append(logits[first : first + len(own_codes)])
                first += len(own_codes)

    def _join(self, own: DecoderSteps) -> None:
        state, first = own.state, 0
        if self._steps is None:
            self._steps = own.like(state)
        else:
            first = self._steps.state.batch
            # In powers of two: where rows come and go, the caches soon have room for all.
            self._steps.state.extend(state, slots=1 << (first + state.batch - 1).bit_length())
        self._rows[own] = list(range(first, first + state.batch))
        own.merge(self)

    def take_out(self, own: DecoderSteps) -> DecoderState:
        """The state of its rows, which are no longer here."""
        assert self._steps is not None
        state, rows = self._steps.state, self._rows[own]
        if len(self._rows) > 1:
            state = state.rows(rows)
            state.eval()
        elif rows != sorted(rows):
            state.filter(rows)
        self.drop(own)
        return state

    def abandon(self) -> None:
        """Let all rows go: a step has failed, and in what state that left them isn't known."""
        self._steps, self._rows = None, {}

    def drop(self, own: DecoderSteps) -> None:
        """Let its rows go. Rows behind them take their places, so that few are copied."""
        left = self._rows.pop(own, None)
        if left is None or self._steps is None:  # abandoned
            return
        state = self._steps.state
        if not self._rows:
            self._steps = None
            return
        rows = state.batch - len(left)
        order = list(range(rows))
        behind = [row for row in range(rows, state.batch) if row not in left]
        for source, target in zip(behind, [row for row in left if row < rows], strict=True):
            order[target] = source
        state.filter(order)
        moved = {source: target for target, source in enumerate(order)}
        self._rows = {other: [moved[row] for row in own_rows] for other, own_rows in self._rows.items()}


@dataclass(frozen=True)
class Ended:
    """A sequence has ended: with an error, or (None) as it should."""

    error: Exception | None = None


@dataclass
class _Member(Generic[Item]):
    items: Iterator[Item | LMStep]
    step: LMStep | None = None
    """What it waits for."""
    is_there: bool = True
    """False when it was removed."""


Key = TypeVar("Key")


class ContinuousBatch(Generic[Key, Item]):
    """Advances generators of items and of steps together: `add`, and then `step` as long as there are any."""

    def __init__(self) -> None:
        self._members: dict[Key, _Member[Item]] = {}
        self._merged = MergedSteps()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, key: Key, items: Iterator[Item | LMStep]) -> None:
        """From the next step on `items` are advanced, too."""
        self._members[key] = _Member(items)

    def remove(self, key: Key) -> None:
        """Close its generator; no error if it has ended."""
        member = self._members.pop(key, None)
        if member is not None:
            member.is_there = False
            _close(member.items)

    def step(self) -> Iterator[tuple[Key, Item | Ended]]:
        """Advance each generator to the next step that it needs, and then take these together.

        Of steps of several positions, with which prompts are read, no more than one is taken.

        Yields:
            What the generators yield, as it comes, and which of them have ended. Between two of them others
            may be added or removed.
        """
        singles: dict[Key, _Member[Item]] = {}
        longer: dict[Key, _Member[Item]] = {}
        for key, member in list(self._members.items()):
            if member.step is None:
                for item in self._advance(key, member):
                    yield key, item
            if member.step is None or not member.is_there:
                continue
            if member.step.is_single:
                singles[key] = member
            elif not longer:
                longer[key] = member
        yield from self._take(singles)
        yield from self._take(longer)

    def _advance(self, key: Key, member: _Member[Item]) -> Iterator[Item | Ended]:
        """What a member yields before the next step."""
        ended = Ended()
        try:
            for item in member.items:
                if isinstance(item, LMStep):
                    member.step = item
                    return
                yield item
                if not member.is_there:
                    return
        except Exception as error:
            ended = Ended(error)
        self.remove(key)
        yield ended

    def _take(self, members: dict[Key, _Member[Item]]) -> Iterator[tuple[Key, Ended]]:
        """Take the steps of those that are still there; all of them end if that fails."""
        members = {key: member for key, member in members.items() if member.is_there}
        steps = [member.step for member in members.values() if member.step is not None]
        # The caches of a single one are its own.
        together = len(self._members) > 1 and all(step.is_single for step in steps)
        try:
            if together and steps:
                self._merged.take(steps)
            else:
                for step in steps:
                    step.take()
        except Exception as error:
            if together:
                self._merged.abandon()
            for key in members:
                self.remove(key)
                yield key, Ended(error)
        for member in members.values():
            member.step = None


def _close(items: Iterator[object]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
