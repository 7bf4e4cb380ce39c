"""The measurements as a table and as JSON."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from audiocraft_mlx.benchmark.measure import Sample, cores
from audiocraft_mlx.benchmark.subject import Subject
from audiocraft_mlx.benchmark.suite import Row, Settings
from audiocraft_mlx.version import __version__

_NAME, _UNIT, _VALUE, _RATIO = 28, 8, 30, 8


def title(subject: Subject, settings: Settings) -> str:
    """What was measured, where and how, in a line."""
    what = f"{subject.name}, random weights" if subject.random else subject.name
    bits = "" if settings.bits is None else f", {settings.bits} bits"
    bits += ", 8-bit activations" if settings.fast else ""
    bits += "" if settings.cache_bits is None else f", {settings.cache_bits}-bit cache"
    runs = f"{settings.runs} run{'s' if settings.runs > 1 else ''}"
    return f"{what}{bits}; MLX {_mlx_version()} on the {_device()}, {cores()} cores; {runs}"


def header(settings: Settings) -> str:
    """The heads of the columns, those of a comparison only if there is one."""
    line = f"{'':{_NAME}}{'':{_UNIT}}{'ours':>{_VALUE}}"
    return line + f"{'transformers':>{_VALUE}}{'ratio':>{_RATIO}}" if settings.compare else line


def line(row: Row) -> str:
    """One row of the table: medians, with the least and the most if there are several values."""
    text = f"{row.name:{_NAME}}{row.unit:{_UNIT}}{_spread(row.ours):>{_VALUE}}"
    if row.theirs is not None:
        text += f"{_spread(row.theirs):>{_VALUE}}{f'{row.ratio:.2f}x':>{_RATIO}}"
    return text


def as_json(subject: Subject, settings: Settings, rows: list[Row]) -> dict[str, Any]:
    """All of it, for other programs."""
    return {
        "version": __version__,
        "model": subject.name,
        "random_weights": subject.random,
        "bits": settings.bits,
        "fast": settings.fast,
        "cache_bits": settings.cache_bits,
        "duration": settings.duration,
        "runs": settings.runs,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": cores(),
            "python": platform.python_version(),
            "mlx": _mlx_version(),
            "device": _device(),
        },
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "more_is_better": row.more_is_better,
                "ours": _sample(row.ours),
                "transformers": None if row.theirs is None else _sample(row.theirs),
                "ratio": row.ratio,
            }
            for row in rows
        ],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "median": sample.median,
        "min": sample.low,
        "max": sample.high,
        "values": list(sample.values),
    }


def _spread(sample: Sample) -> str:
    if len(sample.values) == 1:
        return _digits(sample.median)
    return f"{_digits(sample.median)} ({_digits(sample.low)} to {_digits(sample.high)})"


def _digits(value: float) -> str:
    """Three digits that count, or more in front of the point."""
    if value == int(value):
        return str(int(value))
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _mlx_version() -> str:
    return version("mlx")


def _device() -> str:
    return "GPU" if mx.default_device() == mx.gpu else "CPU"
