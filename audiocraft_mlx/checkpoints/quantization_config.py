"""The settings of MLX's affine quantization, as a configuration has them. (Light to import.)"""

from __future__ import annotations

from dataclasses import dataclass

from audiocraft_mlx.errors import UsageError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64


@dataclass(frozen=True)
class Quantization:
    """Bits per weight, and how many weights share a scale and a bias. Raises `UsageError`."""

    bits: int
    group_size: int = DEFAULT_GROUP_SIZE

    def __post_init__(self) -> None:
        for name, value, known in (("bits", self.bits, BITS), ("group_size", self.group_size, GROUP_SIZES)):
            if isinstance(value, bool) or value not in known:
                raise UsageError(f"{name} must be one of {', '.join(map(str, known))}, not {value!r}")
