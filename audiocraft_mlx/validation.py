"""Checks of values that a caller passes in, and the ranges of those that come from more than one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from audiocraft_mlx.errors import UsageError

TRAINED_TOKENS = 512
"""Tokens of the longest texts that T5 was trained with (Raffel et al. 2020, section 3.1.1)."""
MAX_PROMPT_CHARACTERS = 10_000
"""T5's attention takes memory with the square of a text's length."""
MAX_PROMPT_TOKENS = 4096
"""Of clips that are planned. English has a quarter as many tokens as characters, other texts up to some 18
times as many: the tokenizer spells out ligatures and symbols (Unicode's NFKC)."""


def validate_number(name: str, value: Any, expected: str, is_valid: Callable[[float], bool]) -> None:
    """Raise `UsageError` unless `value` is a finite number that `is_valid`; `expected` describes those."""
    try:
        number = float(value) if _is_number(value, Real) else math.nan
    except OverflowError:  # an integer beyond the range of floats
        number = math.inf
    if not math.isfinite(number) or not is_valid(number):
        raise UsageError(f"{name} must be {expected}, not {value!r}")


def validate_int(name: str, value: Any, expected: str, is_valid: Callable[[int], bool]) -> None:
    """Raise `UsageError` unless `value` is an integer that `is_valid`; `expected` describes those."""
    if not _is_number(value, Integral) or not is_valid(int(value)):
        raise UsageError(f"{name} must be {expected}, not {value!r}")


def validate_prompt(prompt: str) -> None:
    """Raise `UsageError` for a text that is too long to be a prompt, a file for example, or not Unicode."""
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UsageError(
            f"the prompt has {len(prompt)} characters; give at most {MAX_PROMPT_CHARACTERS}"
            f" (the text encoder was trained with up to {TRAINED_TOKENS} tokens, about 2000 characters)"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        character = f"its character {error.start + 1}, {prompt[error.start]!r}"
        raise UsageError(
            f"the prompt is not valid UTF-8: {character}, is half of a surrogate pair; remove it"
        ) from error


def validate_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise `UsageError` unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def validate_decoding_steps(steps: Any) -> tuple[int, ...]:
    """The iterations of each codebook of a MAGNeT. Raises `UsageError` for what is no list of integers."""
    if isinstance(steps, (str, bytes)) or not hasattr(steps, "__len__") or not len(steps):
        raise UsageError(f"decoding_steps must be a list of integers, not {steps!r}")
    for count in steps:
        DECODING_STEPS.validate("each of decoding_steps", count)
    return tuple(int(count) for count in steps)


def _is_number(value: Any, kind: type[Integral] | type[Real]) -> bool:
    # Python's own first: an abstract class takes ten times as long to answer.
    if type(value) is int or type(value) is float:
        return kind is Real or type(value) is int
    return isinstance(value, kind) and not isinstance(value, bool)


def use_python_numbers(values: object, *names: str) -> None:
    """Make fields of a frozen dataclass Python's numbers: NumPy's overflow, and can't be written as JSON."""
    for name in names:
        number = getattr(values, name)
        if isinstance(number, Real) and type(number) not in (int, float, bool):
            plain = int(number) if isinstance(number, Integral) else float(number)
            object.__setattr__(values, name, plain)


@dataclass(frozen=True)
class NumberRange:
    """The valid values of a parameter. The command line, JSON requests and Python share it."""

    kind: type[int] | type[float]
    expected: str
    """Completes "must be …"."""
    is_valid: Callable[[float], bool]

    def validate(self, name: str, value: Any) -> None:
        """Raise `UsageError`, with `name` in it, unless `value` is a number of this kind and range."""
        validate = validate_int if self.kind is int else validate_number
        validate(name, value, self.expected, self.is_valid)


SEED = NumberRange(int, "an integer from 0 to 4294967295", lambda seed: 0 <= seed < 2**32)
TOP_K = NumberRange(int, "an integer, 0 or more", lambda k: 0 <= k < 2**31)
TOP_P = NumberRange(float, "a number from 0 to 1", lambda p: 0 <= p <= 1)
TEMPERATURE = NumberRange(float, "a number, 0 or more", lambda temperature: temperature >= 0)
DECODING_STEPS = NumberRange(int, "an integer from 1 to 10000", lambda steps: 1 <= steps <= 10_000)
CANDIDATES = NumberRange(int, "an integer from 1 to 64", lambda count: 1 <= count <= 64)
CFG_COEF = NumberRange(float, "a number", lambda coef: True)
DURATION = NumberRange(float, "a number of seconds above 0 and below 1000000", lambda s: 0 < s < 1e6)
SECONDS = NumberRange(float, "a number of seconds above 0", lambda seconds: seconds > 0)
BPM = NumberRange(float, "a number of beats per minute from 10 to 1000", lambda bpm: 10 <= bpm <= 1000)
BEATS_PER_BAR = NumberRange(int, "an integer from 1 to 64", lambda beats: 1 <= beats <= 64)
DEFAULT_BEATS_PER_BAR = 4
BARS = NumberRange(int, "an integer from 1 to 10000", lambda bars: 1 <= bars <= 10_000)
MIDI_TRACK = NumberRange(int, "an integer of at least 1", lambda track: 1 <= track < 2**31)
LUFS = NumberRange(float, "a number from -70 to 0", lambda lufs: -70 <= lufs <= 0)
ENDINGS = ("cut", "fade", "natural")
SPAN_ARRANGEMENTS = ("nonoverlap", "stride1")
"""Of a MAGNeT's masks: spans side by side, or spans that begin at any frame."""
MELODY_SEPARATIONS = ("auto", "on", "off")
"""Whether drums and bass are removed from a melody; auto: as audiocraft, which always does, so as on."""
