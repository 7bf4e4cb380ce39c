"""The results as a table and as JSON."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from audiocraft_mlx.benchmark.measure import Measurement
from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.benchmark.suite import Result, Settings
from audiocraft_mlx.machine import num_cpus
from audiocraft_mlx.version import __version__

_NAME, _UNIT, _VALUE, _RATIO = 28, 8, 30, 8
"""Widths of the table's columns."""


def title(model: BenchmarkModel, settings: Settings) -> str:
    """The model, the settings and the machine in one line."""
    text = f"{model.name}, random weights" if model.random else model.name
    text += "" if settings.bits is None else f", {settings.bits} bits"
    text += ", int8 activations" if settings.int8_activations else ""
    text += "" if settings.cache_bits is None else f", {settings.cache_bits}-bit cache"
    runs = f"{settings.runs} run{'s' if settings.runs > 1 else ''}"
    return f"{text}; MLX {_mlx_version()} on the {_device()}, {num_cpus()} cores; {runs}"


def header(settings: Settings) -> str:
    """The column headings; those of a comparison only if there is one."""
    line = f"{'':{_NAME}}{'':{_UNIT}}{'ours':>{_VALUE}}"
    return line + f"{'transformers':>{_VALUE}}{'ratio':>{_RATIO}}" if settings.compare else line


def line(result: Result) -> str:
    """One row of the table: the median, and minimum and maximum of several runs."""
    text = f"{result.name:{_NAME}}{result.unit:{_UNIT}}{_format(result.ours):>{_VALUE}}"
    if result.transformers is not None:
        text += f"{_format(result.transformers):>{_VALUE}}{f'{result.ratio:.2f}x':>{_RATIO}}"
    return text


def as_json(model: BenchmarkModel, settings: Settings, results: list[Result]) -> dict[str, Any]:
    """Settings, machine and all values, for other programs."""
    return {
        "version": __version__,
        "model": model.name,
        "random_weights": model.random,
        "bits": settings.bits,
        "int8_activations": settings.int8_activations,
        "cache_bits": settings.cache_bits,
        "duration": settings.duration,
        "runs": settings.runs,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": num_cpus(),
            "python": platform.python_version(),
            "mlx": _mlx_version(),
            "device": _device(),
        },
        "rows": [
            {
                "name": result.name,
                "unit": result.unit,
                "more_is_better": result.more_is_better,
                "ours": _measurement(result.ours),
                "transformers": None if result.transformers is None else _measurement(result.transformers),
                "ratio": result.ratio,
            }
            for result in results
        ],
    }


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {
        "median": measurement.median,
        "min": measurement.min,
        "max": measurement.max,
        "values": list(measurement.values),
    }


def _format(measurement: Measurement) -> str:
    if len(measurement.values) == 1:
        return _round(measurement.median)
    return f"{_round(measurement.median)} ({_round(measurement.min)} to {_round(measurement.max)})"


def _round(value: float) -> str:
    """Three significant digits, or all digits of a longer integer part."""
    if value == int(value):
        return str(int(value))
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _mlx_version() -> str:
    return version("mlx")


def _device() -> str:
    return "GPU" if mx.default_device() == mx.gpu else "CPU"
