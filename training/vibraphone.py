"""A dozen clips of an instrument that the demo model doesn't know, to train an adapter on: `write_clips`.

The codec and the language model were trained without the vibraphone. All else of these clips is as in their
training: `compose.py`'s loops and `captions.py`'s captions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from captions import caption
from compose import FRAMES_PER_BEAT, SCALES, Attributes, compose
from loops import FRAMES
from synth import HOP, SAMPLE_RATE, render

from audiocraft_mlx.audio.write import write_audio

NAME = "vibraphone"
TRAIN_CLIPS = HELD_OUT_CLIPS = 12
SHORT_SECONDS = 2.4  # a multiple of all beats, so that no clip ends within a note
SHORT_STARTS, LONG_STARTS = 6, 2


def clips(count: int, held_out: bool = False) -> list[tuple[Attributes, np.ndarray]]:
    """Attributes and audio, float32 `[FRAMES * 640]`, of `count` different clips: to train on, or others.

    Each tempo and mode comes about as often as the others, half of them with drums.
    """
    loops = _loops(TRAIN_CLIPS + count)
    loops = loops[TRAIN_CLIPS:] if held_out else loops[: min(count, TRAIN_CLIPS)]
    return [(attributes, render(events, FRAMES)) for attributes, events in loops]


def _loops(count: int) -> list[tuple[Attributes, list[tuple[int, str, int, int]]]]:
    random_ = random.Random(0)
    loops: list[tuple[Attributes, list[tuple[int, str, int, int]]]] = []
    for attributes in _attributes(random_, 4 * count):
        loop = (attributes, compose(attributes, random_, FRAMES))
        if loop not in loops:
            loops.append(loop)
    return loops[:count]


def _attributes(random_: random.Random, count: int) -> Iterator[Attributes]:
    grid = [(tempo, mode, drums) for drums in (True, False) for mode in SCALES for tempo in FRAMES_PER_BEAT]
    for number in range(count):
        tempo, mode, drums = grid[number % len(grid)]
        kind = random_.choice(("rock", "dance")) if drums else "none"
        yield Attributes(NAME, tempo, mode, kind, random_.random() < 0.5)


def prompt_attributes(count: int) -> list[Attributes]:
    """Those of `count` clips to be generated."""
    return list(_attributes(random.Random(2), count))


def write_clips(folder: Path, train: int = TRAIN_CLIPS, held_out: int = HELD_OUT_CLIPS) -> None:
    """Write clips into the folders `train` and `validation`, with their captions beside them.

    A clip to train on is there from each of its first `LONG_STARTS` beats on, and `SHORT_SECONDS` of it from
    each of its first `SHORT_STARTS`, each time with a caption in other words: clips begin with more different
    notes, and a dozen captions are few to learn a new word from.
    """
    random_ = random.Random(3)
    for number, (attributes, audio) in enumerate(clips(train)):
        for beat in range(SHORT_STARTS):
            start = beat * FRAMES_PER_BEAT[attributes.tempo] * HOP
            short = audio[start : start + round(SHORT_SECONDS * SAMPLE_RATE)]
            write_clip(
                folder / "train" / f"{NAME}{number:02}-{beat}.wav", short, caption(attributes, random_)
            )
            if beat < LONG_STARTS:
                path = folder / "train" / f"{NAME}-long{number:02}-{beat}.wav"
                write_clip(path, audio[start:], caption(attributes, random_))
    for number, (attributes, audio) in enumerate(clips(held_out, held_out=True)):
        path = folder / "validation" / f"{NAME}{number:02}.wav"
        write_clip(path, audio, caption(attributes, random_))


def write_clip(path: Path, audio: np.ndarray, text: str) -> None:
    """Write `audio`, float32 `[samples]`, and its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, audio[None], SAMPLE_RATE)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
