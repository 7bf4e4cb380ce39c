"""A dozen clips of an instrument that the demo model doesn't know, to train an adapter on: `write_clips`.

The codec and the language model were trained without the vibraphone. All else of these clips is as in their
training: songs whose melody an electric piano has, and here the vibraphone, and their captions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import wordings
from attributes import Attributes
from draw import roles
from render import SAMPLE_RATE, render
from song import Song
from songs import ENDING, SECONDS, song
from words import Caption, caption

from audiocraft_mlx.audio.write import write_audio

NAME, PROGRAM = "vibraphone", 11
OTHER = "electric piano"
"""The instrument in whose place it plays: it has about the same range."""
LOUDER = 1.17
"""MIDI's volume: in the SoundFont the vibraphone is 2.7 dB quieter than the electric piano."""
TRAIN_CLIPS = HELD_OUT_CLIPS = 12
LONG_SECONDS, SHORT_SECONDS = 10.0, 2.5
LONG_STARTS, SHORT_STARTS = 2, 6
OTHER_NAMES = re.compile(
    "|".join(sorted({*wordings.INSTRUMENTS[OTHER].exact}, key=len, reverse=True)), re.IGNORECASE
)


def songs(held_out: bool = False) -> Iterator[Song]:
    """All songs in which the vibraphone has the melody, and no electric piano is beside it."""
    for number in count():
        composed = song(number, held_out, SECONDS + ENDING)
        parts = roles(composed.attributes)
        if [part for part, name in parts.items() if name == OTHER] == ["lead"]:
            volume = min(127, round(LOUDER * composed.volumes["lead"]))
            yield replace(
                composed,
                parts=composed.parts | {"lead": PROGRAM},
                volumes=composed.volumes | {"lead": volume},
            )


def clips(number: int, held_out: bool = False, first: int = 0) -> list[tuple[Song, np.ndarray]]:
    """So many songs and their first 20 s, float32 `[samples]`: to train on, or others."""
    return [
        (each, render(each)[: SECONDS * SAMPLE_RATE])
        for each in islice(songs(held_out), first, first + number)
    ]


def caption_of(
    attributes: Attributes,
    random_: random.Random,
    make: Callable[[Attributes, random.Random], Caption] = caption,
) -> str:
    """A caption that names the vibraphone; `make` is `caption` or `unseen_caption`."""
    while True:
        made = make(attributes, random_)
        text, replaced = OTHER_NAMES.subn(NAME, made.text)
        if OTHER in made.instruments and replaced == 1:
            return text


def write_clips(folder: Path, train: int = TRAIN_CLIPS, held_out: int = HELD_OUT_CLIPS) -> None:
    """Write clips into the folders `train` and `validation`, with their captions beside them.

    A clip to train on is there from each of its first `LONG_STARTS` bars on, and `SHORT_SECONDS` of it from
    each of its first `SHORT_STARTS`, each time with a caption in other words: clips begin with more different
    notes, and a dozen captions are few to learn a new word from.
    """
    random_ = random.Random(3)
    for number, (composed, audio) in enumerate(clips(train)):
        for kind, seconds, starts in (
            ("", SHORT_SECONDS, SHORT_STARTS),
            ("-long", LONG_SECONDS, LONG_STARTS),
        ):
            begins = [bar for bar in composed.bars if bar + seconds <= SECONDS]
            for bar, begin in enumerate(begins[:starts]):
                part = audio[round(begin * SAMPLE_RATE) :][: round(seconds * SAMPLE_RATE)]
                path = folder / "train" / f"{NAME}{kind}{number:02}-{bar}.wav"
                write_clip(path, part, caption_of(composed.attributes, random_))
    for number, (composed, audio) in enumerate(clips(held_out, held_out=True)):
        path = folder / "validation" / f"{NAME}{number:02}.wav"
        part = audio[: round(LONG_SECONDS * SAMPLE_RATE)]
        write_clip(path, part, caption_of(composed.attributes, random_))


def write_clip(path: Path, audio: np.ndarray, text: str) -> None:
    """Write `audio`, float32 `[samples]`, and its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, audio[None], SAMPLE_RATE)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
