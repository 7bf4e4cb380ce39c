"""The names of chords → notes: `C Am F G`, `| Dm7 G7 | Cmaj7 % |`, `|: C G/B Am F :|x2`."""

from __future__ import annotations

import re

from audiocraft_mlx.conditioning.notes import Notes, Sound
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import BEATS_PER_BAR, BPM, DEFAULT_BEATS_PER_BAR

MAX_CHARACTERS = 10_000
_MAX_BARS = 10_000
_EXAMPLES = "C, Am, F#m7, Bbmaj9, Gsus4 or C/E"
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"#": 1, "♯": 1, "b": -1, "♭": -1}
_TOKEN = re.compile(r"\|:|:\|(?:\s*x\s*(?P<times>[0-9]+))?|\|+|(?:\([^()|]*\)|[^\s|,:]|:(?!\|))+")
_NONE = {"N.C.", "NC", "N.C"}
_NAME = re.compile(
    r"(?P<root>[A-G])(?P<accidental>[#♯b♭]?)"
    r"(?P<quality>[mM]aj|min|dim|aug|sus|mi|ma(?!dd)|[-mMΔ°oø+])?(?P<rest>.*?)"
    r"(?:/(?P<bass>[A-G])(?P<bass_accidental>[#♯b♭]?))?"
)
# What is behind the quality, one after the other.
_PART = re.compile(
    r"(?P<both>6/?9)|(?P<major>[mM]aj|ma|M|Δ)(?P<major_number>7|9|11|13)?|sus(?P<sus>2|4)?|add(?P<add>[b#♭♯]?[0-9]+)"
    r"|(?:no|omit)(?P<no>3|5)|(?P<changed>[b#♭♯+-](?:5|9|11|13))|(?P<number>13|11|[25679])|(?P<aug>aug|\+)"
)
_DEGREES = {2: 2, 3: 4, 4: 5, 5: 7, 6: 9, 7: 10, 9: 14, 11: 17, 13: 21}


def chord_notes(text: str, bpm: float, beats_per_bar: int | None = None) -> Notes:
    """A progression of chords, which is repeated from its end on.

    Without bar lines each chord lasts a bar; the chords between two bar lines share theirs. `%` is the bar
    before again, `|: … :|` twice what is between, `:|x4` four times, `N.C.` no chord, and `.` the chord
    before. Of a chord only its pitch classes count, with its bass, if it has another.

    Args:
        beats_per_bar: default 4.

    Raises:
        UsageError: a name is no chord, there is none, or a number is out of its range.
    """
    BPM.validate("bpm", bpm)
    beats = DEFAULT_BEATS_PER_BAR if beats_per_bar is None else beats_per_bar
    BEATS_PER_BAR.validate("beats_per_bar", beats)
    bar = beats * 60 / bpm
    sounds: list[Sound] = []
    bars = parse_chords(text)
    for number, chords in enumerate(bars):
        for index, pitches in enumerate(chords):
            start, end = ((number + part / len(chords)) * bar for part in (index, index + 1))
            if pitches:
                sounds.append(Sound(start, end, pitches))
    return Notes(tuple(sounds), len(bars) * bar)


def parse_chords(text: str) -> list[list[tuple[int, ...]]]:
    """The chords of each bar, each as its pitches from its bass up, none for no chord. See `chord_notes`.

    Raises `UsageError`.
    """
    if not isinstance(text, str):
        raise UsageError(f"chords must be a string, not {text!r}")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"these are {len(text)} characters; give at most {MAX_CHARACTERS}")
    with_lines = "|" in text
    bars: list[list[tuple[int, ...]]] = []
    bar: list[tuple[int, ...]] = []
    repeat_from: int | None = None

    def end_bar() -> None:
        nonlocal bar
        if bar:
            bars.append(bar)
            bar = []
        if len(bars) > _MAX_BARS:
            raise UsageError(f"these are more than {_MAX_BARS} bars; give fewer, they are repeated anyway")

    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "|:":
            end_bar()
            repeat_from = len(bars)
        elif token.startswith(":|"):
            end_bar()
            times = 2 if match["times"] is None else int(match["times"][:9])
            repeated = bars[repeat_from or 0 :]
            if not repeated or not times:
                raise UsageError(f"{token!r} repeats nothing; put it behind chords, as in '|: C G :|'")
            if times * len(repeated) > _MAX_BARS:
                raise UsageError(
                    f"these are more than {_MAX_BARS} bars; give fewer, they are repeated anyway"
                )
            bars += repeated * (times - 1)
            repeat_from = len(bars)
        elif token.startswith("|"):
            end_bar()
        elif token == "%":
            if bar or not bars:
                raise UsageError("'%' is the bar before again; put it alone into a bar, behind another one")
            bars.append(bars[-1])
        elif token == ".":
            before = next((chord for each in [bar, *bars[::-1]] for chord in each[::-1]), None)
            if before is None:
                raise UsageError("'.' is the chord before again; put it behind a chord")
            bar.append(before)
        else:
            bar.append(() if token.upper() in _NONE else _pitches(token))
        if not with_lines:
            end_bar()
    end_bar()
    if not any(chord for each in bars for chord in each):
        raise UsageError("there is no chord; give some, such as 'C Am F G'")
    return bars


def _pitches(name: str) -> tuple[int, ...]:
    """The pitches of a chord: its bass in the octave below the middle C, the others above it."""
    match = _NAME.fullmatch(name)
    tones = None if match is None else _tones(match["quality"] or "", match["rest"])
    if match is None or tones is None:
        raise UsageError(f"{name[:20]!r} is no chord; write them as {_EXAMPLES}")
    root = _LETTERS[match["root"]] + _ACCIDENTALS.get(match["accidental"], 0)
    bass = root
    if match["bass"]:
        bass = _LETTERS[match["bass"]] + _ACCIDENTALS.get(match["bass_accidental"], 0)
    return (48 + bass % 12, *sorted({60 + root % 12 + tone for tone in tones}))


def _tones(quality: str, rest: str) -> set[int] | None:
    """Semitones above the root; None if it isn't a quality, numbers and changes."""
    third, fifth, seventh = 4, 7, 10
    if quality in ("m", "min", "mi", "-", "dim", "°", "o", "ø"):
        third = 3
    if quality in ("dim", "°", "o", "ø"):
        fifth = 6
    if quality in ("dim", "°", "o"):
        seventh = 9
    if quality in ("aug", "+"):
        fifth = 8
    if quality in ("maj", "Maj", "ma", "M", "Δ"):
        seventh = 11
    tones = {0, third, fifth}
    if quality == "ø" or (quality == "Δ" and not rest[:1].isdigit()):
        tones.add(seventh)
    rest = re.sub(r"[(), ]", "", rest)
    if quality == "sus":
        rest = f"sus{rest}"
    while rest:
        part = _PART.match(rest)
        if part is None:
            return None
        rest = rest[part.end() :]
        if part["both"]:
            tones |= {9, 14}
        elif part["major"]:
            tones |= _stack(int(part["major_number"] or 7), 11)
        elif part["aug"]:
            tones = tones - {fifth} | {8}
        elif part[0].startswith("sus"):
            tones = tones - {third} | {_DEGREES[int(part["sus"] or 4)]}
        elif part["add"]:
            tone = _degree(part["add"])
            if tone is None:
                return None
            tones.add(tone)
        elif part["no"]:
            tones -= {third if part["no"] == "3" else fifth}
        elif part["changed"]:
            tone = _degree(part["changed"])
            if tone is None:
                return None
            # A changed fifth stands for the fifth, and a changed ninth for the ninth.
            tones = tones - {fifth if part["changed"].endswith("5") else _degree(part["changed"][1:])} | {
                tone
            }
        else:
            number = int(part["number"])
            if number == 5:
                tones -= {third}
            elif number == 2:
                tones.add(_DEGREES[2])
            else:
                tones |= {9} if number == 6 else _stack(number, seventh)
    return tones


def _stack(number: int, seventh: int) -> set[int]:
    """The thirds above the fifth, up to this one. A thirteenth has no eleventh, as it is played."""
    return {seventh, *(_DEGREES[n] for n in (9, 11, 13) if n <= number and (n, number) != (11, 13))}


def _degree(text: str) -> int | None:
    """Semitones of `b9`, `#11`, `9`."""
    change = {"b": -1, "♭": -1, "-": -1, "#": 1, "♯": 1, "+": 1}.get(text[0], 0)
    semitones = _DEGREES.get(int(text.lstrip("b♭-#♯+")))
    return None if semitones is None else semitones + change
