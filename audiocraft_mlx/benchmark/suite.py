"""What is measured, in which order: a generator of the table's rows."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.benchmark import measure
from audiocraft_mlx.benchmark.companion import companion, require_transformers
from audiocraft_mlx.benchmark.measure import Sample
from audiocraft_mlx.benchmark.ours import Ours
from audiocraft_mlx.benchmark.side import Side
from audiocraft_mlx.benchmark.subject import Subject
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.validation import validate_int, validate_number

SECONDS = (0, 10, 20, 30)
"""Where in the music the transformer's speed is measured: the further, the more there is to look back at."""
_WARM_UP_DURATION = 0.5


@dataclass(frozen=True)
class Settings:
    duration: float
    """Seconds of the music that is made as a whole."""
    runs: int
    bits: int | None = None
    """To which ours is quantized."""
    fast: bool = False
    """Whether ours calculates with 8-bit activations."""
    cache_bits: int | None = None
    """In which ours keeps its keys and values; None: in what suits the weights."""
    compare: bool = False
    """Whether with transformers."""

    def __post_init__(self) -> None:
        validate_number(
            "duration", self.duration, "from 0.1 to 1000 s", lambda seconds: 0.1 <= seconds <= 1000
        )
        validate_int("runs", self.runs, "a whole number of at least 1", lambda runs: runs >= 1)


@dataclass(frozen=True)
class Row:
    """One thing that was measured. `theirs` is None where there is nothing to compare, or nobody to."""

    name: str
    unit: str
    ours: Sample
    theirs: Sample | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as good ours is; None without a comparison."""
        if self.theirs is None:
            return None
        ours, theirs = self.ours.median, self.theirs.median
        return ours / theirs if self.more_is_better else theirs / ours


def measure_all(subject: Subject, settings: Settings) -> Iterator[Row]:
    """Yield each row as soon as it is known. Raises `MusicGenError`."""
    runs, duration = settings.runs, settings.duration
    if settings.compare:
        require_transformers()
    checkpoint, loading = _load(subject, settings)
    yield Row("random weights" if subject.random else "load", "s", loading)
    ours = Ours(subject.name, checkpoint)
    with ExitStack() as stack:
        sides: list[Side] = [ours]
        if settings.compare:
            sides.append(stack.enter_context(companion(subject)))
        for side in sides:
            side.generate(min(duration, _WARM_UP_DURATION))
        yield _compare("text encoding", "ms", sides, runs, lambda side: 1e3 * side.encode_text())
        rates = {}
        for second in SECONDS:
            if second <= checkpoint.max_duration:
                row = _compare_steps(second, sides, runs)
                rates[second] = row.ours
                yield row
        yield _compare(f"codec, {duration:g} s", "s", sides, runs, lambda side: side.decode(duration))
        yield _compare(f"generation, {duration:g} s", "s", sides, runs, lambda side: side.generate(duration))
        # Elsewhere a process can't tell, or it is another kind of memory.
        comparable = sys.platform == "linux" and mx.default_device() == mx.cpu
        tellers = sides if comparable else sides[:1]
        yield _compare("peak memory", "GB", tellers, 1, lambda side: side.peak_memory() / 1e9)
    yield _compare("host time per step", "ms", [ours], runs, lambda side: 1e3 * ours.host_time())
    yield Row("kernels per layer and step", "", Sample((ours.kernels_of_layer(),)))
    yield from _limits(ours, rates)


def _load(subject: Subject, settings: Settings) -> tuple[ModelBundle, Sample]:
    checkpoint = subject.read()  # downloads what isn't there yet
    times = []
    for _ in range(settings.runs):
        # Never two models at once.
        del checkpoint
        gc.collect()
        start = time.perf_counter()
        checkpoint = subject.load(settings.bits, settings.fast, settings.cache_bits)
        times.append(time.perf_counter() - start)
    return checkpoint, Sample(tuple(times))


def _compare(
    name: str,
    unit: str,
    sides: Sequence[Side],
    runs: int,
    work: Callable[[Side], float],
    more_is_better: bool = False,
) -> Row:
    """`work` of all sides in turns, so that whatever else the machine does meets each of them."""
    values = [[work(side) for side in sides] for _ in range(runs)]
    ours, *theirs = (Sample(of_side) for of_side in zip(*values, strict=True))
    return Row(name, unit, ours, theirs[0] if theirs else None, more_is_better)


def _compare_steps(second: int, sides: Sequence[Side], runs: int) -> Row:
    name = f"LM at {second} s"
    return _compare(name, "steps/s", sides, runs, lambda side: 1 / side.step(second), more_is_better=True)


def _limits(ours: Ours, rates: dict[int, Sample]) -> Iterator[Row]:
    """What the memory would allow if nothing but reading took time, and how much of that is reached."""
    bandwidth = measure.read_bandwidth()
    yield Row("memory bandwidth", "GB/s", Sample((bandwidth / 1e9,)))
    for second, rate in rates.items():
        size = ours.bytes_of_step(second)
        limit = bandwidth / size
        yield Row(f"read per step at {second} s", "GB", Sample((size / 1e9,)))
        yield Row(f"limit at {second} s", "steps/s", Sample((limit,)))
        reached = tuple(100 * value / limit for value in rate.values)
        yield Row(f"reached at {second} s", "%", Sample(reached))
