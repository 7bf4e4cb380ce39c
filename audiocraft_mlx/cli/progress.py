"""The progress bar of a generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(duration: float, clips: int, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, moved by the callback `(steps done, steps in all)`.

    `duration` is in seconds, of each of the `clips` that are made at a time.
    """
    from tqdm import tqdm

    layout = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}{postfix}]"
    start = time.perf_counter()
    with tqdm(total=duration, disable=None, dynamic_ncols=True, bar_format=layout, desc=label) as bar:

        def show(done: int, total: int) -> None:
            made = duration * done / total
            speed = clips * made / (time.perf_counter() - start)
            bar.set_postfix_str(f"{speed:.2f}x real time", refresh=False)
            bar.update(made - bar.n)

        yield show
