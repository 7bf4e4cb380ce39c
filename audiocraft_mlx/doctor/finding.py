"""What a check returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Value = str | int | float | bool | None


class Verdict(str, Enum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could, or a part of it is missing."""
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        text: what was found, one line.
        advice: what to do about it, one line; "" for nothing.
        values: the same for programs; their names are documented in docs/DOCTOR.md.
    """

    verdict: Verdict
    text: str
    advice: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)


def ok(text: str, **values: Value) -> Finding:
    return Finding(Verdict.OK, text, values=values)


def warning(text: str, advice: str = "", **values: Value) -> Finding:
    return Finding(Verdict.WARNING, text, advice, values)


def wrong(text: str, advice: str = "", **values: Value) -> Finding:
    return Finding(Verdict.WRONG, text, advice, values)
