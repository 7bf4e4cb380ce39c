"""Audio file formats, and which one a file name and the options choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath

# Bits per sample of each format, the default first; 32 bits are floating point.
BIT_DEPTHS: dict[str, tuple[int, ...]] = {"wav": (16, 24, 32), "flac": (16, 24), "mp3": (), "ogg": ()}


@dataclass(frozen=True)
class AudioFormat:
    """A format, named as its usual file extension, and its bits per sample (None: mp3 and ogg have none)."""

    name: str
    bits: int | None


WAV = AudioFormat("wav", 16)


def choose_format(path: StrPath, name: str | None = None, bits: int | None = None) -> AudioFormat:
    """The format called `name`, or by default that of the extension of `path`, with `bits` per sample.

    Raises:
        UsageError: there is no such format, it doesn't have this bit depth, or the extension of `path` names
            another format.
    """
    formats = ", ".join(BIT_DEPTHS)
    extension = Path(path).suffix[1:].lower()
    if name is None and extension not in BIT_DEPTHS:
        raise UsageError(f"{path} doesn't end in the name of a format; choose one of {formats}")
    chosen = name or extension
    if chosen not in BIT_DEPTHS:
        raise UsageError(f"the format must be one of {formats}, not {chosen!r}")
    if extension in BIT_DEPTHS and extension != chosen:
        raise UsageError(f"{path} ends in .{extension}, but the format is {chosen}; change one of them")
    depths = BIT_DEPTHS[chosen]
    if bits is not None and bits not in depths:
        available = f"has {' or '.join(map(str, depths))} bits per sample" if depths else "has no bit depth"
        raise UsageError(f"{chosen} {available}; {bits} can't be chosen")
    return AudioFormat(chosen, bits or next(iter(depths), None))
