"""Attributes → a caption as people write them, in many wordings.

Those of `unseen_caption` are only for the evaluation.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field

import wordings
from attributes import INSTRUMENTS, Attributes

BRIGHT = ("major", "mixolydian")
"""Modes with a major third."""


@dataclass(frozen=True)
class Caption:
    """A caption and what it names.

    Of several instruments the one with the melody is named first; those that are named without it are said to
    accompany, but for a bass or a pad, of which that goes without saying.
    """

    text: str
    named: frozenset[str]
    """Attributes: "style", "bpm" (a number), "speed" (slow, medium or fast, or `bpm`), "tonic", "mode",
    "third" (a mood of a major or minor scale, or `mode`), "meter", "drums" (with or without), "lead",
    "family" (of the lead), "crackle"."""
    instruments: frozenset[str] = frozenset()
    """Those that it names exactly, the lead included."""


def speed(bpm: int) -> str:
    return "slow" if bpm < 85 else "medium" if bpm <= 120 else "fast"


def third(mode: str) -> str:
    return "major" if mode in BRIGHT else "minor"


def caption(attributes: Attributes, random_: random.Random, plain: bool = False) -> Caption:
    """A training caption, which may leave out most attributes.

    Some have a mistake in typing, many have words that the tokenizer doesn't know; none if `plain`.
    """
    while True:
        writer = Writer(attributes, random_)
        form = random_.choices(list(FORMS), list(FORMS.values()))[0]
        text = as_typed(writer.with_noise(form(writer)), random_)
        if not plain and random_.random() < 0.05:
            text = with_typo(text, random_)
        if not plain and random_.random() < 0.35:
            text = with_invented_words(text, random_)
        if content(text) not in RESERVED:
            return writer.caption(text)


def unseen_caption(attributes: Attributes, random_: random.Random) -> Caption:
    """A caption for the evaluation, which `caption` never makes."""
    known = {**vars(attributes), "speed": speed(attributes.bpm)}
    sentences = [
        sentence
        for sentence in wordings.UNSEEN_SENTENCES
        if all(known[name] == value for name, value in sentence.attributes.items())
    ]
    if sentences and random_.random() < 0.15:
        sentence = random_.choice(sentences)
        lead = sentence.attributes.get("lead")
        return Caption(
            sentence.text, with_implied(set(sentence.attributes)), frozenset({str(lead)} if lead else ())
        )
    writer = Writer(attributes, random_)
    slots: dict[str, Callable[[], str]] = {
        "style": writer.style_noun,
        "lead": lambda: writer.instrument(attributes.lead, exact=True),
        "mood": writer.mood,
        "speed": writer.speed_adjective,
        "bpm": lambda: writer.bpm(random_.choice((wordings.BPM, wordings.UNSEEN_BPM))),
        "key": lambda: writer.key(random_.choice((wordings.KEY_PHRASES, wordings.UNSEEN_KEYS))),
        "in_key": lambda: writer.key(("in {}",)),
        "in_meter": lambda: writer.meter(prefix="in "),
        "drums": writer.unseen_drums,
    }
    if attributes.crackle:
        slots["crackle"] = lambda: writer.crackle(wordings.UNSEEN_CRACKLE)
    if writer.others():
        slots["accompaniment"] = lambda: writer.instrument(random_.choice(writer.others()))
    templates = [template for template in wordings.UNSEEN_TEMPLATES if slots_of(template) <= set(slots)]
    template = random_.choice(templates)
    text = template.format(**{name: slots[name]() for name in sorted(slots_of(template))})
    return writer.caption(" ".join(text.split()).replace(" ,", ",").strip(" ,"))


def slots_of(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def content(text: str) -> frozenset[str]:
    """The words that matter of a caption: what makes two captions the same."""
    return frozenset(re.findall(r"[^\s,.;:!?()]+", text.lower())) - {
        "a",
        "an",
        "the",
        "and",
        "with",
        "please",
    }


RESERVED = frozenset(content(sentence.text) for sentence in wordings.UNSEEN_SENTENCES)


def with_implied(named: set[str]) -> frozenset[str]:
    implied = {"bpm": "speed", "mode": "third", "lead": "family"}
    return frozenset(named | {implied[name] for name in named if name in implied})


@dataclass
class Writer:
    """Chooses words for the attributes of one song, and keeps which of them it has named."""

    attributes: Attributes
    random_: random.Random
    named: set[str] = field(default_factory=set)
    instruments: set[str] = field(default_factory=set)

    def caption(self, text: str) -> Caption:
        return Caption(text, with_implied(self.named), frozenset(self.instruments))

    def choose(self, words: tuple[str, ...]) -> str:
        return self.random_.choice(words)

    def chance(self, probability: float) -> bool:
        return self.random_.random() < probability

    # Words for one attribute each

    @property
    def style(self) -> wordings.StyleWords:
        return wordings.STYLES[self.attributes.style]

    def style_adjective(self) -> str:
        self.named.add("style")
        return self.choose(self.style.adjectives)

    def style_noun(self) -> str:
        self.named.add("style")
        return self.choose(self.style.nouns)

    def style_thing(self) -> str:
        """That takes an article."""
        self.named.add("style")
        if self.attributes.drums and self.style.beats and self.chance(0.35):
            self.named.add("drums")
            return self.choose(self.style.beats)
        return self.choose(self.style.things)

    def scene(self) -> str:
        self.named.add("style")
        return self.choose(self.style.scenes)

    def mood(self) -> str:
        attributes = self.attributes
        moods = [
            mood
            for mood in wordings.MOODS
            if attributes.style in mood.styles
            and mood.bpm[0] <= attributes.bpm <= mood.bpm[1]
            and mood.third in (None, third(attributes.mode))
        ]
        if not moods:
            return ""
        mood = self.random_.choice(moods)
        if mood.third:
            self.named.add("third")
        return self.choose(mood.words)

    def speed_adjective(self) -> str:
        self.named.add("speed")
        return self.choose(wordings.SPEEDS[speed(self.attributes.bpm)][0])

    def bpm(self, phrases: tuple[str, ...]) -> str:
        self.named.add("bpm")
        return self.choose(phrases).format(self.attributes.bpm)

    def tempo(self) -> str:
        """As it stands after a noun."""
        if self.chance(0.65):
            return self.bpm(wordings.BPM)
        self.named.add("speed")
        return self.choose(wordings.SPEEDS[speed(self.attributes.bpm)][1])

    def key(self, phrases: tuple[str, ...]) -> str:
        self.named |= {"tonic", "mode"}
        name = self.choose(wordings.TONICS[self.attributes.tonic])
        mode = self.choose(wordings.KEYS[self.attributes.mode])
        if len(name) > 2 and mode[2] != " ":  # no "A flatm"
            mode = wordings.KEYS[self.attributes.mode][0]
        return self.choose(phrases).format(mode.format(name))

    def key_or_mode(self) -> str:
        if self.chance(0.7):
            return self.key(wordings.KEY_PHRASES)
        self.named.add("mode")
        return self.choose(wordings.MODES[self.attributes.mode])

    def meter(self, prefix: str = "") -> str:
        self.named.add("meter")
        words = wordings.METERS[self.attributes.meter]
        return self.choose(tuple(word for word in words if word.startswith(prefix)))

    def drums(self) -> str:
        self.named.add("drums")
        if not self.attributes.drums:
            return self.choose(wordings.NO_DRUMS)
        return self.choose(self.style.drums if self.style.drums and self.chance(0.4) else wordings.DRUMS)

    def unseen_drums(self) -> str:
        if self.chance(0.5):
            return self.drums()
        self.named.add("drums")
        return self.choose(wordings.UNSEEN_DRUMS if self.attributes.drums else wordings.UNSEEN_NO_DRUMS)

    def crackle(self, words: tuple[str, ...] = wordings.CRACKLE) -> str:
        self.named.add("crackle")
        return self.choose(words)

    def instrument(self, name: str, exact: bool = False) -> str:
        words = wordings.INSTRUMENTS[name]
        if words.broad and not exact and self.chance(0.25):
            text = self.choose(words.broad)
        else:
            text = self.choose(words.exact)
            self.instruments.add(name)
        if words.sounds and self.chance(0.2):
            sound = self.choose(words.sounds)
            if sound not in text:
                text = f"{sound} {text}"
        if name == self.attributes.lead:
            self.named.add("lead" if name in self.instruments else "family")
        return text

    def lead(self) -> str:
        attributes = self.attributes
        text = self.instrument(attributes.lead)
        if not attributes.accompaniment and not attributes.drums and self.chance(0.4):
            self.named.add("drums")
            return self.choose(("solo {}", "only {}", "{} alone", "unaccompanied {}", "just {}")).format(text)
        role = self.choose(wordings.LEADS)
        return text if "lead" in text or "melody" in text else role.format(text)

    def others(self) -> list[str]:
        """The instruments that accompany, but for a second one of the lead's kind."""
        return [name for name in self.attributes.accompaniment if name != self.attributes.lead]

    def accompaniment(self, after_lead: bool) -> list[str]:
        """One, two or all other instruments. Where no lead comes before it is said that they accompany."""
        others = self.others()
        self.random_.shuffle(others)
        result = []
        for name in others[: self.random_.choice((1, 1, 2, 4))]:
            background = name == "pad" or INSTRUMENTS[name][1] == "bass"
            roles = wordings.BACKGROUND_ROLES if background else wordings.ROLES
            plain = self.chance(0.7) if after_lead else False
            result.append(
                self.instrument(name) if plain else self.choose(roles).format(self.instrument(name))
            )
        return result

    # Forms

    def plan(self) -> set[str]:
        """What to speak of: in some captions of much, in others of little."""
        attributes = self.attributes
        detail = self.choose((0.1, 0.3, 0.6, 1.0))
        probabilities = {
            "style": 0.85,
            "mood": 0.5,
            "tempo": 0.2 + 0.6 * detail,
            "key": 0.05 + 0.55 * detail,
            "meter": (0.05 if attributes.meter == "4/4" else 0.15) + 0.25 * detail,
            "lead": 0.3 + 0.6 * detail,
            "accompaniment": 0.6 * detail if self.others() else 0,
            "drums": 0.15 + 0.5 * detail,
            "crackle": 0.6 if attributes.crackle else 0,
        }
        plan = {name for name, probability in probabilities.items() if self.chance(probability)}
        return plan if plan & {"style", "lead", "mood"} else plan | {"style"}

    def list_form(self) -> str:
        plan = self.plan()
        parts, instruments = [], []
        mood = self.mood() if "mood" in plan else ""
        if "lead" in plan:
            instruments.append(self.lead())
        if "accompaniment" in plan:
            instruments += self.accompaniment(after_lead="lead" in plan)
        if "style" in plan:
            style = self.choose((self.style_adjective(), self.style_noun()))
            parts.append(f"{mood} {style}" if mood and self.chance(0.5) else style)
            if mood and mood not in parts[0]:
                parts.append(mood)
        elif mood:
            parts.append(mood)
        if "tempo" in plan:
            parts.append(self.tempo() if self.chance(0.7) else self.speed_adjective())
        if "key" in plan:
            parts.append(self.key_or_mode())
        if "meter" in plan:
            parts.append(self.meter())
        if "drums" in plan:
            parts.append(self.drums())
        if "crackle" in plan:
            parts.append(self.crackle())
        if self.chance(0.6):
            self.random_.shuffle(parts)
        # The instruments stay in their order: the first one has the melody.
        places = sorted(self.random_.randint(0, len(parts)) for _ in instruments)
        for place, name in reversed(list(zip(places, instruments, strict=True))):
            parts.insert(place, name)
        separator = self.random_.choices(
            (", ", "; ", " | ", " / ", " - ", " + ", " "), (16, 1, 1, 1, 1, 1, 3)
        )[0]
        return separator.join(parts)

    def phrase(self) -> str:
        """A noun with what it is before it and what it has after it."""
        plan = self.plan()
        before, having, after = [], [], []
        if "mood" in plan:
            before.append(self.mood())
            if self.chance(0.15):
                other = self.mood()
                before[-1] += f" and {other}" if self.chance(0.3) else f", {other}"
                if other == "" or before[-1].split(" and ")[0].split(", ")[0] == other:
                    before[-1] = other
        if "tempo" in plan:
            if self.chance(0.4):
                before.append(self.speed_adjective())
            else:
                after.append(self.tempo())
        if "key" in plan:
            after.append(self.key_or_mode())
        if "meter" in plan:
            after.append(self.meter())
        if "drums" in plan:
            if self.attributes.drums:
                having.append(self.drums())
            elif self.chance(0.2):
                self.named.add("drums")
                before.append(self.choose(wordings.DRUMLESS))
            else:
                after.append(self.drums())
        if "crackle" in plan:
            having.append(self.crackle())
        # A lead that is named before the noun comes before all other instruments.
        adjunct = "lead" in plan and self.chance(0.3)
        if "lead" in plan and not adjunct:
            having.insert(0, with_article(self.lead(), self.random_))
        if "accompaniment" in plan:
            others = self.accompaniment(after_lead="lead" in plan)
            plain = "lead" in plan and self.chance(0.5)
            if plain:
                having[1 if not adjunct else 0 :] = others + having[1 if not adjunct else 0 :]
            else:
                after = others + after
        self.random_.shuffle(before)
        noun, countable = self.noun(style="style" in plan, adjunct=adjunct)
        if self.chance(0.3):
            self.random_.shuffle(after)
        text = " ".join(part for part in [*before, noun] if part)
        if countable and self.chance(0.7):
            text = article(text)
        if having:
            joint = self.choose(("with", "with", "with", "featuring", "including"))
            text += f" {joint} {enumeration(having, self.random_)}"
        joint = self.choose((" ", " ", ", "))
        return joint.join([text, *after])

    def noun(self, style: bool, adjunct: bool) -> tuple[str, bool]:
        """A noun, and whether it takes an article."""
        if not style and self.attributes.drums and not adjunct and self.chance(0.1):
            self.named.add("drums")
            return self.choose(wordings.BEATS), True
        instrument = self.instrument(self.attributes.lead) if adjunct else ""
        if style and not adjunct and self.chance(0.5):
            return self.style_thing(), True
        countable = self.chance(0.7)
        general = self.choose(wordings.NOUNS if countable else wordings.MASS_NOUNS)
        words = [self.style_adjective() if style else "", instrument, general]
        return " ".join(word for word in words if word), countable

    def request(self) -> str:
        request = self.choose(wordings.REQUESTS)
        text = f"{request} {self.phrase()}"
        if request.startswith(("can", "could")) and self.chance(0.6):
            text += "?"
        return text

    def sentences(self) -> str:
        """A noun, and a sentence or a fragment for the rest."""
        attributes = self.attributes
        plan = self.plan()
        noun, countable = self.noun(style="style" in plan, adjunct=False)
        mood = self.mood() if "mood" in plan else ""
        first = f"{mood} {noun}".strip()
        first = self.choose(("{}", "{}", "this is {}", "think of {}", "it's {}")).format(
            article(first) if countable else first
        )
        rest = []
        if "lead" in plan:
            name = self.instrument(attributes.lead)
            plays = self.choose(
                (
                    "the melody is played by {}",
                    "{} plays the melody",
                    "melody on {}",
                    "the lead is {}",
                    "{} takes the lead",
                    "main instrument: {}",
                    "it has {}",
                )
            )
            rest.append(plays.format(name))
        if "accompaniment" in plan:
            others = self.accompaniment(after_lead=False)
            rest += [self.choose(("{}", "{}", "also {}")).format(other) for other in others]
        if "tempo" in plan:
            bpm = self.chance(0.6)
            said = str(attributes.bpm) if bpm else self.speed_adjective()
            self.named.add("bpm" if bpm else "speed")
            forms = ("{}",) if "tempo" in said else ("the tempo is {}", "tempo: {}", "it should be {}", "{}")
            rest.append(self.choose(forms).format(f"{said} bpm" if bpm else said))
        if "key" in plan:
            rest.append(self.key(("in {}", "it is in {}", "the key is {}", "key: {}", "written in {}")))
        if "meter" in plan:
            rest.append(self.meter())
        if "drums" in plan:
            drums = self.drums()
            rest.append(
                self.choose(("there are {}", "{}", "{} please")).format(drums) if "drums" in drums else drums
            )
        if "crackle" in plan:
            rest.append(self.choose(("{}", "you can hear {}", "add {}")).format(self.crackle()))
        if len(rest) > 1 and self.chance(0.3):
            return f"{first}. {', '.join(rest)}"
        capital = self.chance(0.8)
        return ". ".join(part[0].upper() + part[1:] if capital else part for part in [first, *rest])

    def title(self) -> str:
        """What it is for, or a name, and perhaps a little more."""
        text = self.scene() if self.chance(0.6) else f"{self.mood()} {self.style_noun()}".strip()
        if self.chance(0.3):
            text = string.capwords(text)
        rest = []
        if self.chance(0.25):
            rest.append(self.style_noun())
        if self.chance(0.3):
            rest.append(self.lead())
        if self.chance(0.3):
            rest.append(self.tempo())
        if self.chance(0.15):
            rest.append(self.key(("{}", "in {}")))
        if self.chance(0.15):
            rest.append(self.drums())
        if self.attributes.crackle and self.chance(0.3):
            rest.append(self.crackle())
        if not rest:
            return text
        return self.choose(("{} ({})", "{}, {}", "{} - {}", "{}: {}")).format(text, ", ".join(rest))

    def fields(self) -> str:
        """As in a table."""
        plan = self.plan()
        parts = []
        if "style" in plan:
            parts.append((self.choose(("genre", "style", "genre")), self.style_noun()))
        if "mood" in plan and (mood := self.mood()):
            parts.append(("mood", mood))
        if "tempo" in plan:
            if self.chance(0.7):
                self.named.add("bpm")
                parts.append(("bpm", str(self.attributes.bpm)))
            else:
                parts.append(("tempo", self.speed_adjective()))
        if "key" in plan:
            parts.append(("key", self.key(("{}",))))
        if "meter" in plan:
            self.named.add("meter")
            parts.append((self.choose(("meter", "time signature", "time")), self.attributes.meter))
        if "lead" in plan:
            names = [self.instrument(self.attributes.lead)]
            if "accompaniment" in plan:
                names += [self.instrument(name) for name in self.others()]
            parts.append(
                (
                    self.choose(("instruments", "instrumentation", "lead"))
                    if len(names) == 1
                    else "instruments",
                    ", ".join(names),
                )
            )
        if "drums" in plan:
            self.named.add("drums")
            parts.append(
                ("drums", self.choose(("yes", "with drums") if self.attributes.drums else ("no", "none")))
            )
        if self.chance(0.3):
            self.random_.shuffle(parts)
        separator = self.choose(("; ", ", ", " | ", ". ", " "))
        colon = self.choose((": ", ": ", " = ", "=", ":"))
        return separator.join(f"{name}{colon}{value}" for name, value in parts)

    def single(self) -> str:
        """A word or two."""
        kind = self.random_.random()
        if kind < 0.45:
            return self.style_noun()
        if kind < 0.6:
            return f"{self.mood()} {self.style_noun()}".strip()
        if kind < 0.75:
            return self.lead()
        if kind < 0.9:
            return f"{self.style_adjective()} {self.instrument(self.attributes.lead)}"
        return f"{self.speed_adjective()} {self.style_noun()}"

    def with_noise(self, text: str) -> str:
        """The text with words that say nothing of the music."""
        for _ in range(2):
            if self.chance(0.12):
                noise = self.choose(wordings.NOISE)
                text = self.choose(("{0}, {1}", "{0}, {1}", "{0} {1}", "{1}, {0}", "{1} {0}")).format(
                    text, noise
                )
        if self.chance(0.08):
            text = f"{text}{self.choose((' ', ', '))}{self.choose(wordings.PLACES)}"
        if self.chance(0.12):
            words = " ".join(self.random_.sample(wordings.OTHER_WORDS, self.random_.randint(1, 5)))
            forms = (
                "{0}, {1}",
                "{1}: {0}",
                "{0} {1}",
                "{1} {0}",
                "{0} inspired by {1}",
                '{0} called "{1}"',
                "{1}, {0}",
            )
            text = self.choose(forms).format(text, words)
        if self.chance(0.02):
            text += self.choose((" 🎵", " 🎧", "!!!", " :)", " ❤️", " 🌙", "..."))
        return text


FORMS: dict[Callable[[Writer], str], float] = {
    Writer.list_form: 0.27,
    Writer.phrase: 0.3,
    Writer.request: 0.13,
    Writer.sentences: 0.1,
    Writer.title: 0.06,
    Writer.fields: 0.06,
    Writer.single: 0.12,
}


def article(text: str) -> str:
    first = text.split()[0].lower()
    return ("an " if first[0] in "aeiou" or first.startswith("8") else "a ") + text


def with_article(text: str, random_: random.Random) -> str:
    countable = not re.search(r"[^s]s\b", text)
    bare = not text.startswith(("a ", "the ", "solo ", "only ", "just ", "lead "))
    return article(text) if countable and bare and random_.random() < 0.4 else text


def enumeration(parts: list[str], random_: random.Random) -> str:
    """a, b and c"""
    if len(parts) == 1:
        return parts[0]
    last = random_.choice((" and ", " and ", " & ", ", "))
    return ", ".join(parts[:-1]) + last + parts[-1]


def as_typed(text: str, random_: random.Random) -> str:
    """Mostly in lower case, sometimes with a full stop."""
    text = " ".join(text.split())
    case = random_.random()
    if case < 0.5:
        text = text.lower()
    elif case < 0.8:
        text = text[0].upper() + text[1:]
    elif case < 0.83:
        text = text.upper()
    if random_.random() < 0.12 and text[-1].isalnum():
        text += "."
    return text


def with_typo(text: str, random_: random.Random) -> str:
    """A letter of a word doubled, left out or exchanged with the next one."""
    words = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not words:
        return text
    word = random_.choice(words)
    place = random_.randrange(word.start() + 1, word.end() - 1)
    before, letter, next_, after = text[:place], text[place], text[place + 1], text[place + 2 :]
    wrong = random_.choice((letter * 2 + next_, next_, next_ + letter))
    return before + wrong + after


def with_invented_words(text: str, random_: random.Random) -> str:
    """Up to five words that don't exist before, after or between the others.

    The tokenizer splits them, as each word that it doesn't know, into pieces and letters, which then aren't
    taken for keys.
    """
    words = text.split(" ")
    for _ in range(random_.randint(1, 5)):
        first, last = random_.sample(wordings.OTHER_WORDS, 2)
        invented = first[: random_.randint(1, 4)] + last[-random_.randint(1, 4) :]
        words.insert(random_.choice((0, len(words), random_.randint(0, len(words)))), invented)
    return " ".join(words)
