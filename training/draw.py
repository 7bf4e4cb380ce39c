"""Draws what a song shall be, as its style allows."""

from __future__ import annotations

import random
from typing import TypeVar

from attributes import TONICS, Attributes
from styles import STYLES

T = TypeVar("T")


def draw(weights: dict[T, float], random_: random.Random) -> T:
    return random_.choices(tuple(weights), tuple(weights.values()))[0]


def draw_attributes(random_: random.Random, style_name: str | None = None) -> Attributes:
    """Attributes of a song of any style, or of the given one."""
    style_name = style_name or random_.choice(tuple(STYLES))
    style = STYLES[style_name]
    meter = draw({meter: weight for meter, (_, _, weight) in style.meters.items()}, random_)
    lowest, highest, _ = style.meters[meter]
    lead = draw(style.leads, random_)
    accompaniment = []
    if lead not in style.comps_itself:
        others = {
            name: weight for name, weight in style.comping.items() if name != lead or len(style.comping) == 1
        }
        accompaniment.append(draw(others, random_))
    if style_name == "string quartet":
        accompaniment.append("viola")
    if style.bass:
        accompaniment.append(draw(style.bass, random_))
    pads = {name: weight for name, weight in style.pads.items() if name not in (lead, *accompaniment)}
    if pads and random_.random() < style.pad:
        accompaniment.append(draw(pads, random_))
    return Attributes(
        style=style_name,
        bpm=random_.randint(lowest, highest),
        tonic=random_.randrange(len(TONICS)),
        mode=draw(style.modes, random_),
        meter=meter,
        drums=random_.random() < style.drums,
        lead=lead,
        accompaniment=tuple(accompaniment),
        crackle=random_.random() < style.crackle,
    )


def roles(attributes: Attributes) -> dict[str, str]:
    """The instrument of each part but the drums: lead, comping, bass, pad, and a string quartet's viola."""
    style = STYLES[attributes.style]
    parts = {"lead": attributes.lead}
    if attributes.lead in style.comps_itself:
        parts["comping"] = attributes.lead
    for name in attributes.accompaniment:
        if name == "viola":
            parts["viola"] = name
        elif name in style.bass and "bass" not in parts:
            parts["bass"] = name
        elif name in style.comping and "comping" not in parts:
            parts["comping"] = name
        elif name in style.pads and "pad" not in parts:
            parts["pad"] = name
        else:
            raise ValueError(f"{attributes.style} has no part for {name}")
    return parts
