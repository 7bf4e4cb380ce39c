"""How fast the language model is here, of the demo model and in the shape of musicgen-small."""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx

from audiocraft_mlx.benchmark.measure import read_bandwidth
from audiocraft_mlx.benchmark.mlx_backend import MLXBackend
from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.checkpoints.model_files import DEMO
from audiocraft_mlx.doctor.finding import Finding, Value, ok, warning
from audiocraft_mlx.machine import memory_below_rlimits, memory_size

REAL_TIME = 50.0
"""Steps for each second of music."""
SMALL = "small"
SMALL_BYTES = 3 * 10**9
"""Measured: musicgen-small's shape with random weights takes 2.4 GB at most, in float32 on a CPU."""
_ENOUGH_SECONDS = 2.0
# Measured shares of the memory's bandwidth at musicgen-small's shape: some 50 % on 2 cores of a server, 5 to
# 9 % on an H100, whose bound are launches of kernels. Less than a fifth of that is worth a word.
_LOW_SHARE = {False: 0.10, True: 0.01}


def demo_speed() -> Finding:
    """Steps per second of the demo model."""
    backend = MLXBackend(DEMO, BenchmarkModel(DEMO, random=False).load(None))
    rate = _steps_per_second(backend)
    return ok(_rate(rate), steps_per_second=rate)


def bandwidth() -> Finding:
    """Bytes per second that can be read from memory."""
    rate = read_bandwidth()
    return ok(f"{rate / 1e9:.3g} GB/s can be read", bytes_per_second=rate)


def small_speed(bytes_per_second: Callable[[], float]) -> Finding:
    """Steps per second in musicgen-small's shape, and the share of the memory's `bytes_per_second` in use."""
    limits = [memory_size(), *([left] if (left := memory_below_rlimits()) is not None else [])]
    if min(limits) < SMALL_BYTES:
        return warning(
            "not measured: it takes 2.4 GB of memory", "musicgen-small needs -q 4 here", measured=False
        )
    backend = MLXBackend(SMALL, BenchmarkModel(SMALL, random=True).load(None))
    rate = _steps_per_second(backend)
    return judge_small(rate, backend.bytes_per_step(0), bytes_per_second(), mx.default_device() == mx.gpu)


def judge_small(rate: float, step_bytes: int, bytes_per_second: float, on_gpu: bool) -> Finding:
    """The verdict on `rate` steps per second that read `step_bytes` each."""
    share = rate * step_bytes / bytes_per_second
    values: dict[str, Value] = {
        "measured": True,
        "steps_per_second": rate,
        "bytes_per_step": step_bytes,
        "bandwidth_share": share,
    }
    # The bandwidth is measured at another moment: what comes out above it is at the limit.
    limit = f"{share:.0%} of the memory's bandwidth" if share < 1 else "at the memory's limit"
    text = f"{_rate(rate)}; {step_bytes / 1e9:.2g} GB a step, {limit}"
    if share < _LOW_SHARE[on_gpu]:
        advice = "run it again when nothing else runs; musicgen-mlx-bench --shape small shows each part"
        return warning(text, advice, **values)
    return ok(text, **values)


def _steps_per_second(backend: MLXBackend) -> float:
    """The better of two, if the first didn't take long."""
    start = time.perf_counter()
    best = backend.step(0)
    if time.perf_counter() - start < _ENOUGH_SECONDS:
        best = min(best, backend.step(0))
    return 1 / best


def _rate(rate: float) -> str:
    digits = 0 if rate >= 20 else 1
    return f"{rate:.{digits}f} steps/s ({rate / REAL_TIME:.2g} times real time)"
