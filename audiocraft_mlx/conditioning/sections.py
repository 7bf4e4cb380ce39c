"""Sections: a description whose text changes with time, as a value. Nothing heavy is imported here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audiocraft_mlx.configs import shown
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_number, validate_prompt

FORMAT = "SECONDS: TEXT, or SECONDS~FADE: TEXT"
_EXAMPLE = "'12: drums come in'"
# Without a space behind its colon, which `str` of a section has.
_MINUTES = re.compile(r"\s*([0-9]+):(?=[0-5]?[0-9](?:\.[0-9]*)?\s*[~:])")


@dataclass(frozen=True)
class Section:
    """From `start` seconds on the text is `text`; over `fade` seconds it cross-fades with the one before.

    Raises `UsageError` for values out of range.
    """

    start: float
    text: str
    fade: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("the beginning of a section", self.start), ("its cross-fade", self.fade)):
            validate_number(name, value, "a number of seconds, 0 or more", lambda seconds: seconds >= 0)
        if not isinstance(self.text, str):
            raise UsageError(f"the text of a section must be a string, not {self.text!r}")
        validate_prompt(self.text)
        object.__setattr__(self, "start", float(self.start))
        object.__setattr__(self, "fade", float(self.fade))

    def __str__(self) -> str:
        """As `parse_section` reads it."""
        fade = f"~{_number(self.fade)}" if self.fade else ""
        return f"{_number(self.start)}{fade}: {self.text}"

    @classmethod
    def of(cls, value: Any) -> Section:
        """`value` as a section: one, `(seconds, text)`, `(seconds, text, fade)`, or a JSON object.

        Raises:
            UsageError: it is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            if not {"start", "text"} <= {*value} <= {"start", "text", "fade"}:
                raise UsageError(f"a section must have start, text and perhaps fade, not {dict(value)!r}")
            fade = value.get("fade")
            return cls(value["start"], value["text"], 0.0 if fade is None else fade)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (2, 3):
            start, text, *fades = value
            return cls(start, "" if text is None else text, *fades)
        raise UsageError(f"a section must be (seconds, text) or (seconds, text, fade), not {value!r}")


def parse_section(text: str) -> Section:
    """The section in `12: drums come in` or, with a cross-fade of 4 s, `24~4: full orchestra`.

    `1:30: drums come in` begins after a minute and a half. Raises `UsageError`.
    """
    minutes = _MINUTES.match(text)
    times, colon, words = text[minutes.end() if minutes else 0 :].partition(":")
    start, tilde, fade = times.partition("~")
    try:
        if not colon or not words.strip():
            raise ValueError
        seconds = [float(start) + 60 * int(minutes[1] if minutes else 0), *([float(fade)] if tilde else [])]
        if not all(math.isfinite(number) and number >= 0 for number in seconds):
            raise ValueError
    except ValueError:
        raise UsageError(f"must be {FORMAT}, such as {_EXAMPLE}, not {shown(text)}") from None
    return Section(seconds[0], words.strip(), *seconds[1:])


def split_description(description: Any) -> tuple[str | None, tuple[Section, ...]]:
    """A row's text at its beginning, and its later sections.

    `description` is a text, None for none, or a list of what `Section.of` takes, the first one at 0.

    Raises:
        UsageError: it is neither, or the sections are not in order.
    """
    if description is None or isinstance(description, str):
        validate_prompt(description or "")
        return description, ()
    if not isinstance(description, Sequence) or not description:
        raise UsageError(
            f"a description must be a string, None or a list of (seconds, text), not {description!r}"
        )
    first, *later = (Section.of(section) for section in description)
    if first.start:
        raise UsageError(
            f"the first section begins at {first.start:g} s; say what to play from 0 on (None: no text)"
        )
    if first.fade:
        raise UsageError("the first section can't cross-fade: there is nothing before it")
    require_order(later)
    return first.text, tuple(later)


def require_order(sections: Sequence[Section]) -> None:
    """Raise `UsageError` unless `sections` begin after 0, each after the one before and its cross-fade."""
    before = Section(0.0, "")
    for section in sections:
        if section.start <= before.start:
            raise UsageError(
                f"sections must be in order: the one at {section.start:g} s comes after the one at"
                f" {before.start:g} s"
            )
        if before.fade > section.start - before.start:
            raise _too_short_to_fade(before, section.start)
        before = section


def require_within(sections: Sequence[Section], duration: float) -> None:
    """Raise `UsageError` unless `sections`, in order, fit into a clip of `duration` seconds."""
    if sections and sections[-1].start >= duration:
        raise UsageError(
            f"the section at {sections[-1].start:g} s begins beyond the end of the clip, at {duration:g} s"
        )
    if sections and sections[-1].fade > duration - sections[-1].start:
        raise _too_short_to_fade(sections[-1], duration)


@dataclass(frozen=True)
class FrameSection:
    """A section in frames of codes."""

    frame: int
    text: str | None
    fade: int = 0


def frame_sections(
    first: str | None, sections: Sequence[Section], frame_rate: float, frames: int
) -> tuple[FrameSection, ...]:
    """The text `first` and then `sections`, of a clip of `frames` frames. Each begins at the nearest frame.

    A section with the text of the one before is a part of that one.

    Raises:
        UsageError: one is shorter than a frame, or beyond the end.
    """
    require_within(sections, (frames + 1) / frame_rate)
    found = [FrameSection(0, first)]
    before = 0
    for section in sections:
        frame = round(section.start * frame_rate)
        if not before < frame < frames:
            raise UsageError(
                f"a section is shorter than a frame, {1 / frame_rate:g} s: the one"
                f" {'that begins' if frame >= frames else 'that ends'} at {section.start:g} s"
            )
        before = frame
        if (section.text or None) != (found[-1].text or None):
            found.append(FrameSection(frame, section.text, round(section.fade * frame_rate)))
    # Both ends are rounded.
    ends = [*(section.frame for section in found[1:]), frames]
    return tuple(
        FrameSection(section.frame, section.text, min(section.fade, end - section.frame))
        for section, end in zip(found, ends, strict=True)
    )


def text_at(sections: Sequence[FrameSection], frame: int) -> str | None:
    """The text of the section that `frame` is in."""
    return next(section.text for section in reversed(sections) if section.frame <= frame)


def _too_short_to_fade(section: Section, end: float) -> UsageError:
    return UsageError(
        f"the section at {section.start:g} s cross-fades over {section.fade:g} s, and lasts"
        f" {end - section.start:g} s"
    )


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)
