"""Which adapter, and how strongly: as the command line, Python and the tags of files have it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import expand_home

_MOST = 100.0


@dataclass(frozen=True)
class LoraSpec:
    """An adapter's folder or repository on the Hub, and its weight: 0 is without it, 1 as it was trained.

    Raises `UsageError`: there is no name, or the weight is no number from -100 to 100.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError("an adapter needs a name: its folder, or a repository on the Hugging Face Hub")
        number = self.weight
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= _MOST:
            raise UsageError(
                f"the weight of the adapter {self.name} must be a number from {-_MOST:g} to {_MOST:g}, not"
                f" {number!r}"
            )
        object.__setattr__(self, "weight", float(number))

    @classmethod
    def parse(cls, text: str) -> LoraSpec:
        """`NAME` or `NAME@WEIGHT`; what follows the last @ belongs to the name unless it is a number."""
        name, at, weight = text.rpartition("@")
        try:
            number = float(weight) if at else None
        except ValueError:
            number = None
        return cls(text) if number is None else cls(name, number)

    def without_folder(self) -> LoraSpec:
        """The same to be shown to others: of a folder only its own name, not where it is on this machine."""
        folder = expand_home(self.name)
        return LoraSpec(folder.resolve().name or "adapter", self.weight) if folder.is_dir() else self

    def __str__(self) -> str:
        """What `parse` reads."""
        if self.weight == 1 and LoraSpec.parse(self.name) == self:
            return self.name
        short = f"{self.weight:g}"
        return f"{self.name}@{short if float(short) == self.weight else repr(self.weight)}"


_Name = str | os.PathLike[str]
_Adapter = _Name | LoraSpec | tuple[_Name, float]
LoraArgument = _Adapter | Sequence[_Adapter] | None


def lora_specs(lora: LoraArgument) -> tuple[LoraSpec, ...]:
    """The adapters that Python users give: None, a name, a pair of name and weight, or a list of these.

    Raises `UsageError`.
    """
    if lora is None:
        return ()
    items: Any = [lora] if isinstance(lora, (str, os.PathLike, LoraSpec)) or _is_pair(lora) else lora
    if not isinstance(items, Sequence):
        raise UsageError(f"lora must be an adapter's name, a pair (name, weight) or a list, not {lora!r}")
    return tuple(_spec(item) for item in items)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], (str, os.PathLike))
        and not isinstance(value[1], (str, os.PathLike, tuple, LoraSpec))
    )


def _spec(item: Any) -> LoraSpec:
    if isinstance(item, LoraSpec):
        return item
    if isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], (str, os.PathLike)):
        return LoraSpec(os.fspath(item[0]), item[1])
    if isinstance(item, (str, os.PathLike)):
        return LoraSpec(os.fspath(item))
    raise UsageError(f"lora: an adapter is a name or a pair (name, weight), not {item!r}")
