"""Attributes → a caption, in many wordings; those of `unseen_caption` are only for the evaluation."""

from __future__ import annotations

import random

from compose import Attributes

INSTRUMENTS = {
    "piano": ("piano", "grand piano", "piano melody", "keys", "piano tune"),
    "guitar": ("guitar", "acoustic guitar", "nylon guitar", "plucked guitar"),
    "strings": ("strings", "string ensemble", "violins", "orchestral strings", "string section"),
    "flute": ("flute", "wooden flute", "flute melody", "soft flute"),
    "organ": ("organ", "church organ", "pipe organ", "hammond organ"),
    "marimba": ("marimba", "mallets", "xylophone", "wooden marimba"),
    "synth": ("synth", "synth lead", "synthesizer", "electronic lead", "8-bit synth"),
    "vibraphone": ("vibraphone",),  # only for an adapter (`vibraphone.py`)
}
TEMPOS = {
    "slow": ("slow", "calm", "gentle", "relaxed", "slow tempo", "peaceful", "leisurely"),
    "medium": ("medium tempo", "mid-tempo", "moderate", "steady", "walking pace"),
    "fast": ("fast", "quick", "energetic", "lively", "fast tempo", "rapid", "upbeat"),
}
MODES = {
    "major": ("happy", "cheerful", "joyful", "bright", "major key", "sunny", "uplifting"),
    "minor": ("sad", "melancholic", "dark", "minor key", "moody", "gloomy", "sorrowful"),
}
DRUMS = {
    "rock": ("rock drums", "rock beat", "a drum kit", "driving drums", "rock"),
    "dance": ("dance beat", "house beat", "four on the floor", "club beat", "electronic drums"),
    "none": ("no drums", "without drums", "no percussion", "drumless"),
}
BASS = {True: ("with bass", "and bass", "bass line"), False: ("solo", "unaccompanied", "alone")}
NOUNS = ("track", "song", "tune", "piece", "loop", "music", "melody")


def caption(attributes: Attributes, random_: random.Random) -> str:
    """A training caption: a list, a phrase or a sentence, which may leave out attributes."""
    instrument = random_.choice(INSTRUMENTS[attributes.instrument])
    tempo = random_.choice(TEMPOS[attributes.tempo]) if random_.random() < 0.9 else ""
    mode = random_.choice(MODES[attributes.mode]) if random_.random() < 0.9 else ""
    named = attributes.drums != "none" or random_.random() < 0.5
    drums = random_.choice(DRUMS[attributes.drums]) if named else ""
    bass = random_.choice(BASS[attributes.bass]) if random_.random() < 0.5 else ""
    noun = random_.choice(NOUNS)
    form = random_.random()
    if form < 0.35:
        parts = [part for part in (tempo, mode, instrument, drums, bass) if part]
        random_.shuffle(parts)
        text = ", ".join(parts)
    elif form < 0.7:
        adjectives = [tempo, mode]
        random_.shuffle(adjectives)
        article = random_.choice(("a", ""))
        text = f"{article} {' '.join(adjectives)} {instrument} {noun} {drums_phrase(drums)} {bass}"
    else:
        text = f"{random_.choice(('a', ''))} {mode} {tempo} {noun} {random_.choice(('with', 'for', 'on'))}"
        text += f" {instrument} {drums_phrase(drums, 'and')} {bass}"
    return " ".join(text.split())


def drums_phrase(drums: str, word: str = "with") -> str:
    return drums if not drums or drums.startswith(("no ", "without", "drumless")) else f"{word} {drums}"


def unseen_caption(attributes: Attributes, random_: random.Random) -> str:
    """A caption for the evaluation, a sentence not in training, with all attributes but the bass."""
    instrument = random_.choice(INSTRUMENTS[attributes.instrument])
    tempo = random_.choice(TEMPOS[attributes.tempo])
    mode = random_.choice(MODES[attributes.mode])
    drums = random_.choice(DRUMS[attributes.drums])
    template = random_.choice(
        (
            "please play {mode} music at a {tempo} speed, {instrument} {drums}",
            "{instrument} playing something {mode} and {tempo} {drums}",
            "I would like a {tempo}, {mode} {instrument} recording {drums}",
            "background music: {mode} {instrument} {drums}, {tempo}",
        )
    )
    return template.format(mode=mode, tempo=tempo, instrument=instrument, drums=drums_phrase(drums))
