"""The regular expressions for modules in PEFT's `rank_pattern` and `alpha_pattern`, in bounded time.

They come from a file of anybody, and Python's `re` can take longer than the universe for one of 30
characters. So these are matched here, by the set of all positions at which a part may end (Thompson 1968,
"Regular expression search algorithm"): the time grows with the length of the pattern times that of the name.
Known are characters, `.`, classes, `\\d`, `\\w`, groups, `|`, `*`, `+`, `?` and anchors at the ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

_MAX_LENGTH = 200
_MAX_PATTERNS = 10_000
_MAX_CHARACTERS = 2000
"""Of all patterns that aren't plain names."""
_MAX_DEPTH = 8
_PLAIN = re.compile(r"[A-Za-z0-9_]+((\.|\\\.)[A-Za-z0-9_]+)*")

_Value = TypeVar("_Value")
_Step = Callable[[str, int], int]
"""A name and the positions (bits) at which a part of a pattern begins → those at which it may end."""


class PatternError(ValueError):
    """A pattern isn't supported; the message completes a sentence that begins with the pattern."""


class ModulePatterns(Generic[_Value]):
    """A mapping by patterns: the value of a module is that of the first pattern that matches it.

    As PEFT: a pattern must match all of a module's name, or all after one of its dots.

    Raises `PatternError`, with the pattern in front.
    """

    def __init__(self, values: Mapping[str, _Value]) -> None:
        self._plain: dict[str, tuple[int, _Value]] = {}
        self._others: list[tuple[int, _Step, _Value]] = []
        left = _MAX_CHARACTERS
        if len(values) > _MAX_PATTERNS:
            raise PatternError(f"has more than {_MAX_PATTERNS} patterns")
        for index, (pattern, value) in enumerate(values.items()):
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern.replace("\\", ""), (index, value))
                continue
            left -= len(pattern)
            if len(pattern) > _MAX_LENGTH or left < 0:
                raise PatternError("has patterns that are too long or too many; write modules' names instead")
            try:
                step = _Parser(pattern).parse()
            except PatternError as error:
                raise PatternError(f"has the pattern {pattern!r}, which {error}") from None
            self._others.append((index, step, value))

    def get(self, module: str, default: _Value) -> _Value:
        """The value of the module, whose name has at most a few hundred characters."""
        starts = [0, *(match.end() for match in re.finditer(r"\.", module))]
        found = [self._plain[module[start:]] for start in starts if module[start:] in self._plain]
        begin, end = sum(1 << start for start in starts), 1 << len(module)
        found += [(index, value) for index, step, value in self._others if step(module, begin) & end]
        return min(found, key=lambda each: each[0])[1] if found else default


class _Parser:
    """Recursive descent: alternatives → sequences → repeated parts."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth, self._repeats = pattern, 0, 0, 0

    def parse(self) -> _Step:
        step = self._alternatives()
        if self._at < len(self._pattern):
            raise PatternError("has a ')' too many")
        return step

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise PatternError("ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> _Step:
        steps = [self._sequence()]
        while self._peek() == "|":
            self._next()
            steps.append(self._sequence())
        if len(steps) == 1:
            return steps[0]

        def any_of(name: str, starts: int) -> int:
            ends = 0
            for step in steps:
                ends |= step(name, starts)
            return ends

        return any_of

    def _sequence(self) -> _Step:
        steps: list[_Step] = []
        while self._peek() not in ("", "|", ")"):
            steps.append(self._repeated())

        def one_after_the_other(name: str, starts: int) -> int:
            for step in steps:
                starts = step(name, starts)
            return starts

        return one_after_the_other

    def _repeated(self) -> _Step:
        before = self._repeats
        step = self._part()
        kind = self._peek()
        if kind not in ("*", "+", "?"):
            return step
        self._next()
        if self._peek() in ("*", "+", "?"):
            raise PatternError("repeats a repetition")
        if kind == "?":
            return lambda name, starts: starts | step(name, starts)
        if self._repeats > before:
            raise PatternError("has a repetition in a repetition")
        self._repeats += 1

        def repeat(name: str, starts: int) -> int:
            ends = new = starts if kind == "*" else step(name, starts)
            while new:
                new = step(name, new) & ~ends
                ends |= new
            return ends

        return repeat

    def _part(self) -> _Step:
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "^":
            return lambda name, starts: starts & 1
        if character == "$":
            return lambda name, starts: starts & 1 << len(name)
        if character in "*+?{}":
            raise PatternError(f"has {character!r}, which isn't supported here")
        if character == ".":
            return _one_of(lambda c: True)
        return _one_of(self._escaped() if character == "\\" else lambda c: c == character)

    def _group(self) -> _Step:
        if self._peek() == "?":
            self._next()
            if self._next() != ":":
                raise PatternError("has a group of a kind that isn't supported")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError("has too many groups in one another")
        step = self._alternatives()
        if self._peek() != ")":
            raise PatternError("lacks a ')'")
        self._next()
        self._depth -= 1
        return step

    def _escaped(self) -> Callable[[str], bool]:
        character = self._next()
        if character == "d":
            return str.isdecimal
        if character == "w":
            return lambda c: c.isalnum() or c == "_"
        if character.isalnum():
            raise PatternError(f"has '\\{character}', which isn't supported")
        return lambda c: c == character

    def _class(self) -> _Step:
        wanted = self._peek() != "^"
        if not wanted:
            self._next()
        tests: list[Callable[[str], bool]] = []
        while self._peek() != "]" or not tests:
            character = self._next()
            if character == "\\":
                tests.append(self._escaped())
            elif self._pattern[self._at : self._at + 1] == "-" and self._pattern[self._at + 1 :][:1] != "]":
                self._next()
                last = self._next()
                tests.append(_between(character, last))
            else:
                tests.append(_between(character, character))
        self._next()
        return _one_of(lambda c: any(test(c) for test in tests) == wanted)


def _one_of(test: Callable[[str], bool]) -> _Step:
    def step(name: str, starts: int) -> int:
        ends = 0
        for at, character in enumerate(name):
            if starts >> at & 1 and test(character):
                ends |= 2 << at
        return ends

    return step


def _between(first: str, last: str) -> Callable[[str], bool]:
    return lambda character: first <= character <= last
