"""Attributes → a sentence, in many wordings. Some words are kept for the evaluation and never trained on."""

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
THINGS = ("track", "song", "tune", "piece", "loop", "music", "melody")


def caption(attributes: Attributes, random_: random.Random) -> str:
    """One of the training wordings: lists, phrases and sentences, with parts left out at times."""
    instrument = random_.choice(INSTRUMENTS[attributes.instrument])
    tempo = random_.choice(TEMPOS[attributes.tempo]) if random_.random() < 0.9 else ""
    mode = random_.choice(MODES[attributes.mode]) if random_.random() < 0.9 else ""
    told = attributes.drums != "none" or random_.random() < 0.5
    drums = random_.choice(DRUMS[attributes.drums]) if told else ""
    bass = random_.choice(BASS[attributes.bass]) if random_.random() < 0.5 else ""
    thing = random_.choice(THINGS)
    shape = random_.random()
    if shape < 0.35:
        parts = [part for part in (tempo, mode, instrument, drums, bass) if part]
        random_.shuffle(parts)
        text = ", ".join(parts)
    elif shape < 0.7:
        adjectives = [tempo, mode]
        random_.shuffle(adjectives)
        text = (
            f"{random_.choice(('a', ''))} {' '.join(adjectives)} {instrument} {thing} {joined(drums)} {bass}"
        )
    else:
        text = f"{random_.choice(('a', ''))} {mode} {tempo} {thing} {random_.choice(('with', 'for', 'on'))}"
        text += f" {instrument} {joined(drums, 'and')} {bass}"
    return " ".join(text.split())


def joined(drums: str, word: str = "with") -> str:
    return drums if not drums or drums.startswith(("no ", "without", "drumless")) else f"{word} {drums}"


def unseen_caption(attributes: Attributes, random_: random.Random) -> str:
    """Wordings for the evaluation: sentences that training never has; every attribute is told."""
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
    return template.format(mode=mode, tempo=tempo, instrument=instrument, drums=joined(drums))
