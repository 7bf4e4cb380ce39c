"""Composes a song: chords, themes, parts that enter, fills and an end."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise

from attributes import INSTRUMENTS, Attributes
from draw import roles
from melody import RANGES, Theme, Tone, invent_theme, is_strong, realize, vary
from mix import volume
from patterns import bar_of, read_pattern
from song import DRUMS, FRAME, STEPS, Note, Song, on_frame, step_seconds
from styles import STYLES, Groove, Style
from theory import Chord, chord_scale, nearest, read_progression, step_in_scale, voicing

SECTION = 8
"""Bars."""
FORMS = ("ABA", "AAB", "AABA", "ABAB")
DRUM_KEYS = {
    "kick": 36,
    "stick": 37,
    "snare": 38,
    "clap": 39,
    "low tom": 45,
    "high tom": 48,
    "closed": 42,
    "pedal": 44,
    "open": 46,
    "crash": 49,
    "ride": 51,
    "tambourine": 54,
    "shaker": 70,
}
LOUDNESS = {"X": 8, "x": 0, "o": -22}
VELOCITIES = {"lead": 92, "comping": 76, "viola": 76, "bass": 86, "pad": 70, "drums": 88}
BASS_RANGES = {"cello": (36, 55)}
BASS_RANGE = (31, 50)
PAD_RANGE = (50, 67)
LEVEL = 8
"""Velocities are multiples of it."""
HABIT = 4
"""Bars."""
STRUM = 0.012
"""Seconds between the strings of a guitar's chord."""
INTRO_SECONDS = 4.0
"""Longest time before the lead, so that no clip of ten seconds is without it."""


@dataclass(frozen=True)
class Material:
    """What a song is made of, in no key: the sections A and B have one of each."""

    progressions: tuple[str, str]
    themes: tuple[Theme, Theme]
    bass: tuple[str, str]
    comping: tuple[str, str]
    grooves: tuple[Groove, Groove]
    fill: Groove
    form: str
    intro: str
    """`all` (everything from the beginning), `groove` (the lead is late) or `build` (the drums are, too)."""


@dataclass(frozen=True)
class Bar:
    section: int
    """0 is A, 1 is B."""
    number: int
    """In the section; negative in the intro."""
    chords: list[tuple[int, Chord]]
    """With their steps in the bar."""


def invent(attributes: Attributes, random_: random.Random) -> Material:
    style, meter = STYLES[attributes.style], attributes.meter

    def two(choices: tuple) -> tuple:
        """For A and B: two different ones, if there are."""
        return tuple(random_.sample(choices, 2)) if len(choices) > 1 else (choices or ("",)) * 2

    return Material(
        progressions=two(style.progressions[attributes.mode]),
        themes=(invent_theme(style, meter, 0, random_), invent_theme(style, meter, 3, random_)),
        bass=two(style.bass_patterns.get(meter, ())),
        comping=two(style.comping_patterns.get(meter, ())),
        grooves=two(style.grooves.get(meter, ({},))),
        fill=random_.choice(style.fills.get(meter, ({},))),
        form=random_.choice(FORMS),
        intro=random_.choices(("all", "groove", "build"), (0.45, 0.3, 0.25))[0],
    )


def compose(attributes: Attributes, random_: random.Random, seconds: float | None = None) -> Song:
    """A song of 8 to 16 bars, or of exactly `seconds`: as many bars as fit; the last chord rings on."""
    return arrange(attributes, invent(attributes, random_), random_, seconds)


def arrange(
    attributes: Attributes, material: Material, random_: random.Random, seconds: float | None = None
) -> Song:
    style = STYLES[attributes.style]
    steps_per_bar = STEPS[attributes.meter]
    step = step_seconds(attributes.bpm, attributes.meter)
    bar_seconds = steps_per_bar * step
    if seconds is None:
        count = random_.randint(8, 16)
        seconds = count * bar_seconds
    else:
        count = int(seconds / bar_seconds + 1e-6)
    if count < 2:
        raise ValueError(f"{seconds} s are less than two bars at {attributes.bpm} bpm")
    bars = plan(attributes, material, count)
    parts = roles(attributes)
    players = {
        "lead": lambda: play_lead(attributes, material, bars, random_),
        "comping": lambda: play_comping(attributes, parts, material, bars),
        "viola": list,  # with the comping
        "bass": lambda: play_bass(attributes, parts["bass"], material, bars),
        "pad": lambda: play_pad(attributes, bars),
    }
    events = [event for part in parts for event in players[part]()]
    if attributes.drums:
        events += play_drums(style, material, bars, attributes.meter, random_)
    programs = {part: INSTRUMENTS[name][0] for part, name in parts.items()}
    volumes = {part: volume(part, name, style.levels.get(part, 0)) for part, name in parts.items()}
    if attributes.drums:
        programs["drums"] = DRUMS
        volumes["drums"] = volume("drums", attributes.style, style.levels.get("drums", 0))
    return Song(
        attributes=attributes,
        notes=perform(events, attributes, seconds, random_),
        parts=programs,
        volumes=volumes,
        kit=style.kit,
        reverb=style.reverb,
        chords=changes(bars, steps_per_bar, step),
        bars=tuple(bar_seconds * number for number in range(count)),
        seconds=seconds,
    )


def plan(attributes: Attributes, material: Material, count: int) -> list[Bar]:
    """The bars with their chords: an intro, sections in the material's form, two bars of cadence."""
    style, steps_per_bar = STYLES[attributes.style], STEPS[attributes.meter]
    progressions = [
        read_progression(text, attributes.tonic, steps_per_bar)
        for text in (*material.progressions, style.cadences[attributes.mode])
    ]
    bar_seconds = steps_per_bar * step_seconds(attributes.bpm, attributes.meter)
    intro = 0 if material.intro == "all" else min(2, int(INTRO_SECONDS / bar_seconds))
    bars = []
    for number in range(count):
        played = number - intro
        section = "AB".index(material.form[max(played, 0) // SECTION % len(material.form)])
        in_section = played % SECTION if played >= 0 else played
        left = count - number
        if left <= 2:
            chords = progressions[2][2 - left]
        else:
            progression = progressions[section]
            chords = progression[(in_section if played >= 0 else number) % len(progression)]
        bars.append(Bar(section, in_section, chords))
    return bars


def changes(bars: list[Bar], steps_per_bar: int, step: float) -> tuple[tuple[float, Chord], ...]:
    found: list[tuple[float, Chord]] = []
    for number, bar in enumerate(bars):
        for at, chord in bar.chords:
            if not found or chord != found[-1][1]:
                found.append(((number * steps_per_bar + at) * step, chord))
    return tuple(found)


@dataclass(frozen=True)
class Event:
    """A note in sixteenths from the song's beginning."""

    part: str
    step: int
    steps: int
    key: int
    accent: int = 0
    """To add to the velocity."""
    late: float = 0.0
    """Seconds."""
    last: bool = False
    """Of the song's last chord, which rings."""


def play_lead(
    attributes: Attributes, material: Material, bars: list[Bar], random_: random.Random
) -> list[Event]:
    meter, steps_per_bar = attributes.meter, STEPS[attributes.meter]
    events = []
    known: dict[tuple[int, int], list[Tone]] = {}
    previous = None
    for number, bar in enumerate(bars):
        left = len(bars) - number
        if bar.number < 0:
            continue
        theme = material.themes[bar.section]
        place = (bar.section, bar.number)
        if left == 1:
            low, high = RANGES[attributes.lead]
            middle = (low + high) / 2 if previous is None else previous
            key = nearest({bar.chords[0][1].root}, middle, low, high)
            tones = [Tone(0, steps_per_bar, key)]
        elif place in known and left > 2:
            # What returns is the same, or nearly.
            tones = known[place]
            if random_.random() < 0.25 and len(bar.chords) == 1:
                pitch_classes = chord_scale(bar.chords[0][1], attributes.tonic, attributes.mode)
                tones = vary(tones, pitch_classes, meter, random_)
        else:
            tones = realize(
                theme.bars[bar.number],
                theme.heights[bar.number],
                bar.chords,
                attributes.tonic,
                attributes.mode,
                meter,
                attributes.lead,
                previous,
                closes=bar.number == SECTION - 1,
            )
            if left > 2:
                known[place] = tones
        previous = tones[-1].key
        events += [
            Event("lead", number * steps_per_bar + tone.step, tone.steps, tone.key, last=left == 1)
            for tone in tones
        ]
    return events


def split_at_changes(
    events: list[tuple[int, int, str]], chords: list[tuple[int, Chord]], first: str
) -> list[tuple[int, int, str, Chord]]:
    """The events with their chords; a note held while the chord changes begins again as `first`."""
    found = []
    for step, steps, character in events:
        starts = [step, *(at for at, _ in chords if step < at < step + steps), step + steps]
        for start, end in pairwise(starts):
            chord = [chord for at, chord in chords if at <= start][-1]
            changed = start in [at for at, _ in chords if at > 0]
            found.append((start, end - start, first if changed and first else character, chord))
    return found


def play_comping(
    attributes: Attributes, parts: dict[str, str], material: Material, bars: list[Bar]
) -> list[Event]:
    style, steps_per_bar = STYLES[attributes.style], STEPS[attributes.meter]
    instrument = parts["comping"]
    guitar = INSTRUMENTS[instrument][1] == "guitar"
    low, high = below_lead(style.comping_range, attributes.lead)
    events: list[Event] = []
    keys: tuple[int, ...] = ()
    before = None
    for number, bar in enumerate(bars):
        last = number == len(bars) - 1
        pattern = bar_of(material.comping[bar.section], bar.number, steps_per_bar)
        if last:
            pattern = [(0, steps_per_bar, "x")]
        for step, steps, character, chord in split_at_changes(pattern, bar.chords, ""):
            if chord != before:
                keys, before = (
                    (
                        power_chord(chord, low)
                        if instrument == "distorted guitar"
                        else voicing(chord, style.voices, low, high, keys)
                    ),
                    chord,
                )
            at = number * steps_per_bar + step
            if character.isdigit():
                octave, voice = divmod(int(character), len(keys))
                voices = [(voice, keys[voice] + 12 * octave)]
            else:
                voices = list(enumerate(keys))
            for voice, key in voices:
                # Of a quartet's two inner voices the viola has the lower one.
                part = "viola" if "viola" in parts and voice == 0 else "comping"
                late = STRUM * voice if guitar and len(voices) > 1 else 0.0
                events.append(Event(part, at, steps, key, LOUDNESS.get(character, 0), late, last))
    return events


def below_lead(keys: tuple[int, int], lead: str) -> tuple[int, int]:
    """A range of keys, moved down where it would reach the middle of the lead's."""
    down = max(0, keys[1] - (sum(RANGES[lead]) // 2 - 4))
    return keys[0] - down, keys[1] - down


def power_chord(chord: Chord, low: int) -> tuple[int, ...]:
    root = nearest({chord.root}, low + 5, low - 3, low + 9)
    return (root, root + 7, root + 12)


def play_bass(attributes: Attributes, instrument: str, material: Material, bars: list[Bar]) -> list[Event]:
    steps_per_bar = STEPS[attributes.meter]
    low, high = BASS_RANGES.get(instrument, BASS_RANGE)
    root = low + 6
    events = []
    for number, bar in enumerate(bars):
        last = number == len(bars) - 1
        following = bars[min(number + 1, len(bars) - 1)].chords[0][1]
        pattern = bar_of(material.bass[bar.section], bar.number, steps_per_bar)
        if last:
            pattern = [(0, steps_per_bar, "R")]
        for step, steps, character, chord in split_at_changes(pattern, bar.chords, "R"):
            root = nearest({chord.root}, root, low, low + 13)
            if character == "a":
                later = [next_chord for at, next_chord in bar.chords if at > step]
                goal = nearest({(later[0] if later else following).root}, root, low, low + 13)
                pitch_classes = chord_scale(chord, attributes.tonic, attributes.mode)
                key = step_in_scale(pitch_classes, goal, 1 if root > goal else -1)
            else:
                key = root + bass_interval(character, chord)
            while key > high:
                key -= 12
            while key < low - 3:
                key += 12
            events.append(Event("bass", number * steps_per_bar + step, steps, key, last=last))
    return events


def bass_interval(character: str, chord: Chord) -> int:
    """Semitones above the root."""
    if character == "R":
        return 0
    if character == "8":
        return 12
    if character == "3":
        return chord.intervals[1]
    if character == "5":
        return next((interval for interval in chord.intervals if interval in (6, 7, 8)), 7)
    if character == "7":
        return next((interval for interval in chord.intervals if interval in (9, 10, 11)), 12)
    raise ValueError(f"a bass doesn't know {character}")


def play_pad(attributes: Attributes, bars: list[Bar]) -> list[Event]:
    steps_per_bar = STEPS[attributes.meter]
    events = []
    keys: tuple[int, ...] = ()
    for number, bar in enumerate(bars):
        starts = [at for at, _ in bar.chords] + [steps_per_bar]
        for (at, chord), end in zip(bar.chords, starts[1:], strict=True):
            keys = voicing(chord, 3, *below_lead(PAD_RANGE, attributes.lead), keys)
            # Where there is no bass the pad has the root.
            low = () if STYLES[attributes.style].bass else (nearest({chord.root}, 42, 36, 48),)
            events += [
                Event("pad", number * steps_per_bar + at, end - at, key, last=number == len(bars) - 1)
                for key in (*low, *keys)
            ]
    return events


def play_drums(
    style: Style, material: Material, bars: list[Bar], meter: str, random_: random.Random
) -> list[Event]:
    steps_per_bar = STEPS[meter]
    events = []
    for number, bar in enumerate(bars):
        first = number * steps_per_bar
        last = number == len(bars) - 1
        groove = material.grooves[bar.section]
        if last:
            hits = [("kick", 0, "X")] + [("crash", 0, "x")] * style.crash
        elif bar.number < 0 and material.intro == "build":
            hits = []
        else:
            hits = [
                (drum, step, character)
                for drum, pattern in groove.items()
                for step, _, character in bar_of(pattern, bar.number, steps_per_bar)
            ]
        ends_section = bar.number in (SECTION - 1, -1) or number == len(bars) - 2
        if not last and material.fill and (ends_section or (bar.number == 3 and random_.random() < 0.4)):
            length = len(next(iter(material.fill.values())))
            begin = steps_per_bar - length
            hits = [hit for hit in hits if hit[1] < begin] + [
                (drum, begin + step, character)
                for drum, pattern in material.fill.items()
                for step, _, character in read_pattern(pattern)
            ]
        if style.crash and bar.number == 0 and not last:
            hits.append(("crash", 0, "x"))
        events += [
            Event("drums", first + step, 1, DRUM_KEYS[drum], LOUDNESS[character], last=last)
            for drum, step, character in hits
        ]
    return events


def swung(step: float, style: Style) -> float:
    """Where a step is played: of each pair of the swinging notes the second is late."""
    unit, amount = style.swing
    pair, within = divmod(step, 2 * unit)
    late = within * (1 + amount) if within < unit else unit * (1 + amount) + (within - unit) * (1 - amount)
    return pair * 2 * unit + late


def perform(
    events: list[Event], attributes: Attributes, seconds: float, random_: random.Random
) -> tuple[Note, ...]:
    """The notes with swing, and with the small differences of players.

    These are a player's habits: the same note at the same place of four bars is played in the same way.
    """
    style = STYLES[attributes.style]
    step = step_seconds(attributes.bpm, attributes.meter)
    habits: dict[tuple[str, int, int], tuple[float, float]] = {}
    notes = []
    for event in events:
        place = event.part, event.key, event.step % (HABIT * STEPS[attributes.meter])
        if place not in habits:
            habits[place] = max(-2.5, min(2.5, random_.gauss(0, 1))), random_.gauss(0, 3)
        late, louder = habits[place]
        start = swung(event.step, style) * step
        end = swung(event.step + event.steps, style) * step
        if event.last:
            end = max(end, min(seconds, start + 4))
        spread = style.timing * (0.4 if event.part in ("drums", "bass") else 0.7)
        # The note's own place first: between two frames a small difference would be a matter of luck.
        start = max(0.0, on_frame(start) + on_frame(event.late + late * spread))
        longest = style.longest if event.part == "lead" else 6.0
        length = on_frame(min((end - start) * 0.96, longest)) or FRAME
        loudness = (
            VELOCITIES[event.part] + event.accent + 4 * is_strong(event.step, attributes.meter) + louder
        )
        velocity = LEVEL * round(loudness / LEVEL)
        if start < seconds:
            length = min(length, seconds - start)
            notes.append(Note(event.part, start, length, event.key, max(1, min(127, velocity))))
    return without_overlaps(sorted(notes, key=lambda note: (note.start, note.part, note.key)))


def without_overlaps(notes: list[Note]) -> tuple[Note, ...]:
    """Ends notes before the same key, or the lead's next note, begins."""
    found: list[Note] = []
    latest: dict[object, int] = {}
    for note in notes:
        voice = "lead" if note.part == "lead" else (note.part, note.key)
        if voice in latest:
            before = found[latest[voice]]
            if before.start + before.seconds > note.start - 0.005:
                found[latest[voice]] = replace(before, seconds=max(note.start - 0.005 - before.start, 0.02))
        latest[voice] = len(found)
        found.append(note)
    return tuple(found)
