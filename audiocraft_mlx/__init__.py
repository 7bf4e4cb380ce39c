"""MusicGen, AudioGen and MAGNeT on Apple's MLX, with the released weights and without PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING

from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, OutputError, UsageError
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from audiocraft_mlx.models.audiogen import AudioGen
    from audiocraft_mlx.models.magnet import MAGNeT
    from audiocraft_mlx.models.musicgen import MusicGen

__all__ = [
    "AudioGen",
    "CheckpointError",
    "DownloadError",
    "MAGNeT",
    "MusicGen",
    "MusicGenError",
    "OutputError",
    "UsageError",
    "__version__",
]


_MODELS = {
    "AudioGen": "audiocraft_mlx.models.audiogen",
    "MAGNeT": "audiocraft_mlx.models.magnet",
    "MusicGen": "audiocraft_mlx.models.musicgen",
}


# Imported on first use: they bring MLX along, which `musicgen-mlx --help` shouldn't wait for.
def __getattr__(name: str) -> object:
    if name in _MODELS:
        return getattr(import_module(_MODELS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODELS])
