"""How far the clips of a command are: the bar over all of them, and what is told when they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from audiocraft_mlx.clips.making import Progress
from audiocraft_mlx.clips.planning import ClipPlan
from audiocraft_mlx.progress import beside_bars, progress_bar


class ClipsProgress:
    """Counts seconds of music, of clips that begin and end at any time."""

    def __init__(self, seconds: float, clips: int) -> None:
        """`seconds` of music in all, in so many clips."""
        self._seconds, self._clips = seconds, clips
        self._finished, self._finished_seconds = 0, 0.0
        # Of clips that began together, by the index of the first one: seconds in all, and those made.
        self._together: dict[int, float] = {}
        self._made: dict[int, float] = {}
        self._begun: float | None = None
        self._bar = ExitStack()
        self._show: Callable[[float, float], None] | None = None

    def start(self, batch: Sequence[ClipPlan]) -> None:
        """They begin together."""
        self._together[batch[0].index] = sum(plan.seconds for plan in batch)
        if self._begun is None:
            self._begun = time.perf_counter()
            label = "" if self._clips == 1 else f"{self._clips} clips "
            self._show = self._bar.enter_context(progress_bar(self._seconds, label))

    def advance(self, progress: Progress) -> None:
        """Clips that began together have come so far."""
        if self._show is not None and progress.first in self._together:
            self._made[progress.first] = self._together[progress.first] * progress.done / progress.total
            self._show(min(self._finished_seconds + sum(self._made.values()), self._seconds), self._seconds)

    def finish(self, plan: ClipPlan) -> None:
        """A clip is complete."""
        self._finished += 1
        self._finished_seconds += plan.seconds
        # The first of those that began together is the first to finish.
        self._together.pop(plan.index, None)
        self._made.pop(plan.index, None)
        if self._finished == self._clips:
            self.close()

    @property
    def is_complete(self) -> bool:
        return self._finished == self._clips

    def __str__(self) -> str:
        """How long it took."""
        elapsed = time.perf_counter() - (self._begun or 0.0)
        return f"{elapsed:.1f} s to make, {self._finished_seconds / elapsed:.2f}x real time"

    @contextmanager
    def beside(self) -> Iterator[None]:
        """For lines on the terminal: the bar makes room, and is drawn again behind them."""
        if self._show is None:
            yield
            return
        with beside_bars():
            yield

    def close(self) -> None:
        self._bar.close()
        self._show = None
