"""The formats that audio is written in, and which one a file's name and the options ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.errors import UsageError

# The bits per sample that can be chosen, the first unless said otherwise; 32 are floating point.
BIT_DEPTHS: dict[str, tuple[int, ...]] = {"wav": (16, 24, 32), "flac": (16, 24), "mp3": (), "ogg": ()}


@dataclass(frozen=True)
class AudioFormat:
    """A format by its usual ending, and its bits per sample: None where it has none (mp3, ogg)."""

    name: str
    bits: int | None


WAV = AudioFormat("wav", 16)


def choose_format(path: Path, name: str | None = None, bits: int | None = None) -> AudioFormat:
    """The format called `name`, or without one that of `path`'s ending, with `bits` per sample.

    Raises:
        UsageError: there is no such format, it doesn't have such a bit depth, or `path` ends in the name of
            another one.
    """
    formats = ", ".join(BIT_DEPTHS)
    ending = path.suffix[1:].lower()
    if name is None and ending not in BIT_DEPTHS:
        raise UsageError(f"{path} doesn't end in the name of a format; choose one of {formats}")
    chosen = name or ending
    if chosen not in BIT_DEPTHS:
        raise UsageError(f"the format must be one of {formats}, not {chosen!r}")
    if ending in BIT_DEPTHS and ending != chosen:
        raise UsageError(f"{path} ends in .{ending}, but the format is {chosen}; change one of them")
    depths = BIT_DEPTHS[chosen]
    if bits is not None and bits not in depths:
        wanted = f"has {' or '.join(map(str, depths))} bits per sample" if depths else "has no bit depth"
        raise UsageError(f"{chosen} {wanted}; {bits} can't be chosen")
    return AudioFormat(chosen, bits or next(iter(depths), None))
