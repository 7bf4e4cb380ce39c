"""Checks of values that a caller passes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from audiocraft_mlx.errors import UsageError


def validate_number(name: str, value: Any, expected: str, is_valid: Callable[[float], bool]) -> None:
    """Raise `UsageError`, naming what is `expected`, unless `value` is a finite number that `is_valid`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not is_valid(number):
        raise UsageError(f"{name} must be {expected}, not {value!r}")


def validate_int(name: str, value: Any, expected: str, is_valid: Callable[[int], bool]) -> None:
    """The same for integers."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not is_valid(int(value)):
        raise UsageError(f"{name} must be {expected}, not {value!r}")
