"""The benchmark: what is measured, in which order; a generator of the table's rows."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.benchmark import measure
from audiocraft_mlx.benchmark.backend import Backend
from audiocraft_mlx.benchmark.measure import Measurement
from audiocraft_mlx.benchmark.mlx_backend import MLXBackend
from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.benchmark.transformers_process import require_transformers, transformers_process
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.validation import validate_int, validate_number

POSITIONS = (0, 10, 20, 30)
"""Seconds of the music at which the LM's speed is measured: the later, the more its attention reads."""
_WARM_UP_DURATION = 0.5


@dataclass(frozen=True)
class Settings:
    duration: float
    """Seconds, of the clip that is generated from the prompt to the audio."""
    runs: int
    bits: int | None = None
    """To which our weights are quantized; None: not at all."""
    int8_activations: bool = False
    """Whether our quantized layers compute with int8 activations."""
    cache_bits: int | None = None
    """Of our KV cache; None: the type that suits the weights."""
    compare: bool = False
    """Whether transformers is measured too."""

    def __post_init__(self) -> None:
        validate_number(
            "duration", self.duration, "from 0.1 to 1000 s", lambda seconds: 0.1 <= seconds <= 1000
        )
        validate_int("runs", self.runs, "an integer of at least 1", lambda runs: runs >= 1)


@dataclass(frozen=True)
class Result:
    """One row of the table. `transformers` is None if it wasn't measured."""

    name: str
    unit: str
    ours: Measurement
    transformers: Measurement | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is, by the medians; None without a comparison."""
        if self.transformers is None:
            return None
        ours, theirs = self.ours.median, self.transformers.median
        return ours / theirs if self.more_is_better else theirs / ours


def run_benchmark(model: BenchmarkModel, settings: Settings) -> Iterator[Result]:
    """Yield each row as soon as it is known. Raises `MusicGenError`."""
    runs, duration = settings.runs, settings.duration
    if settings.compare:
        require_transformers()
    bundle, load_time = _load(model, settings)
    yield Result("random weights" if model.random else "load", "s", load_time)
    ours = MLXBackend(model.name, bundle, settings.cache_bits)
    with ExitStack() as stack:
        backends: list[Backend] = [ours]
        if settings.compare:
            backends.append(stack.enter_context(transformers_process(model)))
        for backend in backends:
            backend.generate(min(duration, _WARM_UP_DURATION))
        yield _measure("text encoding", "ms", backends, runs, lambda backend: 1e3 * backend.encode_text())
        rates = {}
        for second in POSITIONS:
            if second <= bundle.max_duration:
                result = _measure_steps(second, backends, runs)
                rates[second] = result.ours
                yield result
        yield _measure(
            f"codec, {duration:g} s", "s", backends, runs, lambda backend: backend.decode(duration)
        )
        yield _measure(
            f"generation, {duration:g} s", "s", backends, runs, lambda backend: backend.generate(duration)
        )
        # On a GPU and elsewhere than on Linux the numbers of the two programs aren't comparable.
        comparable = sys.platform == "linux" and mx.default_device() == mx.cpu
        memory_backends = backends if comparable else backends[:1]
        yield _measure("peak memory", "GB", memory_backends, 1, lambda backend: backend.peak_memory() / 1e9)
    yield _measure("host time per step", "ms", [ours], runs, lambda backend: 1e3 * ours.host_time())
    yield Result("kernels per layer and step", "", Measurement((ours.kernels_per_layer(),)))
    yield from _bandwidth_bounds(ours, rates)


def _load(model: BenchmarkModel, settings: Settings) -> tuple[ModelBundle, Measurement]:
    bundle = model.read()  # downloads missing files, before the time is taken
    times = []
    for _ in range(settings.runs):
        # Never two models in memory.
        del bundle
        gc.collect()
        start = time.perf_counter()
        bundle = model.load(settings.bits, settings.int8_activations)
        times.append(time.perf_counter() - start)
    return bundle, Measurement(tuple(times))


def _measure(
    name: str,
    unit: str,
    backends: Sequence[Backend],
    runs: int,
    work: Callable[[Backend], float],
    more_is_better: bool = False,
) -> Result:
    """Run `work` for the backends in turns, so that other load on the machine affects all of them."""
    values = [[work(backend) for backend in backends] for _ in range(runs)]
    ours, *theirs = (Measurement(of_backend) for of_backend in zip(*values, strict=True))
    return Result(name, unit, ours, theirs[0] if theirs else None, more_is_better)


def _measure_steps(second: int, backends: Sequence[Backend], runs: int) -> Result:
    name = f"LM at {second} s"
    return _measure(
        name, "steps/s", backends, runs, lambda backend: 1 / backend.step(second), more_is_better=True
    )


def _bandwidth_bounds(ours: MLXBackend, rates: dict[int, Measurement]) -> Iterator[Result]:
    """The rate if a step only had to read its bytes from memory, and the share of it that is reached."""
    bandwidth = measure.read_bandwidth()
    yield Result("memory bandwidth", "GB/s", Measurement((bandwidth / 1e9,)))
    for second, rate in rates.items():
        size = ours.bytes_per_step(second)
        bound = bandwidth / size
        yield Result(f"bytes per step at {second} s", "GB", Measurement((size / 1e9,)))
        yield Result(f"bandwidth bound at {second} s", "steps/s", Measurement((bound,)))
        share = tuple(100 * value / bound for value in rate.values)
        yield Result(f"% of bound at {second} s", "%", Measurement(share))
