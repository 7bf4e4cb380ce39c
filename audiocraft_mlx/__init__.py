"""MusicGen, AudioGen and MAGNeT on Apple's MLX, with the released weights and without PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING

from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, OutputError, UsageError
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from audiocraft_mlx.conditioning.chords import chord_notes
    from audiocraft_mlx.conditioning.midi import read_midi
    from audiocraft_mlx.conditioning.notes import Notes
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
    "Notes",
    "OutputError",
    "UsageError",
    "__version__",
    "chord_notes",
    "read_midi",
]


_LATER = {
    "AudioGen": "audiocraft_mlx.models.audiogen",
    "MAGNeT": "audiocraft_mlx.models.magnet",
    "MusicGen": "audiocraft_mlx.models.musicgen",
    "Notes": "audiocraft_mlx.conditioning.notes",
    "chord_notes": "audiocraft_mlx.conditioning.chords",
    "read_midi": "audiocraft_mlx.conditioning.midi",
}


# Imported on first use: models bring MLX along, which `musicgen-mlx --help` shouldn't wait for.
def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
