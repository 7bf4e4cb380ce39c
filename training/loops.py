"""Loops by number; a number always gives the same loop.

There are about 2,000 different loops, and several numbers can give the same one. A twentieth of the loops is
held out: no number of the training set gives one of these.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
from compose import Attributes, compose, draw_attributes
from synth import render

FRAMES = 400  # 8 s


def loop(number: int, held_out: bool = False) -> tuple[Attributes, np.ndarray]:
    """Attributes and audio, float32 `[FRAMES * 640]`, of loop `number` of the training or held-out set."""
    random_ = random.Random(number)
    while True:
        attributes = draw_attributes(random_)
        events = compose(attributes, random_, FRAMES)
        if (zlib.crc32(repr((attributes, events)).encode()) % 20 == 0) == held_out:
            return attributes, render(events, FRAMES)
