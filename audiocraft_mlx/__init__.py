"""MusicGen on Apple's MLX: text to music, with the released weights and without PyTorch."""

from typing import TYPE_CHECKING

from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, OutputError, UsageError

if TYPE_CHECKING:
    from audiocraft_mlx.models.musicgen import MusicGen

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DownloadError",
    "MusicGen",
    "MusicGenError",
    "OutputError",
    "UsageError",
    "__version__",
]


# Imported on first use: it brings MLX along, which `musicgen-mlx --help` shouldn't wait for.
def __getattr__(name: str) -> object:
    if name == "MusicGen":
        from audiocraft_mlx.models.musicgen import MusicGen

        return MusicGen
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "MusicGen"])
