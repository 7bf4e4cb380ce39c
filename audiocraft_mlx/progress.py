"""The progress of a generation, and its bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def progress_bar(
    seconds: float | None = None, label: str = "", *, only_terminal: bool = True
) -> Iterator[Callable[[float, float], None]]:
    """A bar on stderr; yields the callback `(done, in all)`, of steps or of seconds, that moves it.

    Args:
        seconds: of audio, in all. The bar then counts them and shows the speed; without it, steps.
        label: stands in front of the bar.
        only_terminal: show it only if stderr is a terminal.
    """
    from tqdm import tqdm

    disable = None if only_terminal else False  # None: tqdm looks whether it is a terminal
    if seconds is None:
        with tqdm(unit="step", disable=disable, dynamic_ncols=True, desc=label or None) as bar:

            def show_steps(done: float, total: float) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show_steps
        return
    layout = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}{postfix}]"
    start = time.perf_counter()
    with tqdm(total=seconds, disable=disable, dynamic_ncols=True, bar_format=layout, desc=label) as bar:

        def show_seconds(done: float, total: float) -> None:
            made = seconds * done / total
            speed = made / (time.perf_counter() - start)
            bar.set_postfix_str(f"{speed:.2f}x real time", refresh=False)
            bar.update(made - bar.n)

        yield show_seconds


def beside_bars() -> AbstractContextManager[None]:
    """For lines on the terminal while there is a bar: it makes room, and is drawn again behind them."""
    from tqdm import tqdm

    beside: AbstractContextManager[None] = tqdm.external_write_mode()
    return beside


class StepCount:
    """A callback `(steps done, steps in all)` of several generations, one after the other, as of one.

    `later` are the steps of those that follow the first one; `on_step` is told all of them.
    """

    def __init__(self, on_step: Callable[[int, int], None] | None, later: int) -> None:
        self._on_step, self._before, self._now, self._later = on_step, 0, 0, later

    def __call__(self, done: int, total: int) -> None:
        self._now = total
        if self._on_step is not None:
            self._on_step(self._before + done, self._before + total + self._later)

    def next(self, steps: int) -> None:
        """The next generation begins, one of `steps` steps."""
        self._before += self._now
        self._now = steps
        self._later -= steps
