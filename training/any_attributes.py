"""Attributes that don't depend on each other, also of songs that nobody composes.

What a word means is learned, and tested, with them.
"""

from __future__ import annotations

import random

from attributes import FAMILIES, INSTRUMENTS, METERS, MODES, STYLES, TONICS, Attributes

LEADS = tuple(name for name, (_, family) in INSTRUMENTS.items() if family in FAMILIES)


def any_attributes(random_: random.Random) -> Attributes:
    style, lead = random_.choice(STYLES), random_.choice(LEADS)
    others = [name for name in INSTRUMENTS if name != lead]
    return Attributes(
        style=style,
        bpm=random_.randint(60, 170),
        tonic=random_.randrange(len(TONICS)),
        mode=random_.choice(tuple(MODES)),
        meter="3/4" if style == "waltz" else random_.choice(METERS),
        drums=style not in ("ambient", "string quartet") and random_.random() < 0.6,
        lead=lead,
        accompaniment=tuple(random_.sample(others, random_.randint(0, 3))),
        crackle=random_.random() < 0.3,
    )
