"""Loops by number: the same number is the same loop, for ever.

There are some 2,000 different ones. Every twentieth is held out, as a whole: none of its kind is ever trained
on, under whatever number.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
from compose import Attributes, compose, draw_attributes
from synth import render

FRAMES = 400  # 8 s


def loop(number: int, held_out: bool = False) -> tuple[Attributes, np.ndarray]:
    """Attributes and audio, float32 `[FRAMES * 640]`, of loop `number` of the one set or the other."""
    random_ = random.Random(number)
    while True:
        attributes = draw_attributes(random_)
        events = compose(attributes, random_, FRAMES)
        if (zlib.crc32(repr((attributes, events)).encode()) % 20 == 0) == held_out:
            return attributes, render(events, FRAMES)
