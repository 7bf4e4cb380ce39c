"""The two spectrograms that all measures of music are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np

from audiocraft_mlx.files import write_file

SAMPLE_RATE = 32000
FULL_SCALE = 32767  # of 16 bits
MEL_HOP, KEY_HOP = 320, 1280  # samples: 10 ms and 40 ms
MELS = 96
LOWEST_KEY, KEYS = 28, 80
FLOOR = 1e-6  # power of a mel band: -60 dB


@dataclass(frozen=True)
class Spectra:
    mel: np.ndarray
    """Power in dB, at least -60: float `[MELS, frames]`, a frame each 10 ms."""
    keys: np.ndarray
    """Magnitudes of the semitones from MIDI's `LOWEST_KEY` on: float `[KEYS, frames]`, one each 40 ms."""

    @property
    def seconds(self) -> float:
        return self.mel.shape[1] * MEL_HOP / SAMPLE_RATE

    @property
    def chroma(self) -> np.ndarray:
        """Magnitudes of the pitch classes from C on: float `[12, frames]`, a frame each 40 ms."""
        return fold(self.keys)


def fold(keys: np.ndarray) -> np.ndarray:
    """Sums over octaves: `[KEYS, …]` → `[12, …]`."""
    classes = (LOWEST_KEY + np.arange(KEYS)) % 12
    return np.stack([keys[classes == pitch_class].sum(axis=0) for pitch_class in range(12)])


def spectra(audio: np.ndarray) -> Spectra:
    """Of float `[samples]` at 32 kHz.

    The keys are librosa's variable-Q transform (Schörkhuber et al. 2014): a constant Q would smear the bass.
    """
    mel = librosa.feature.melspectrogram(y=audio, sr=SAMPLE_RATE, n_fft=2048, hop_length=MEL_HOP, n_mels=MELS)
    lowest = librosa.midi_to_hz(LOWEST_KEY)
    keys = librosa.vqt(
        audio, sr=SAMPLE_RATE, hop_length=KEY_HOP, fmin=lowest, n_bins=KEYS, gamma=10, dtype=np.complex64
    )
    return Spectra(
        librosa.power_to_db(mel, ref=1.0, amin=FLOOR, top_db=None)[:, : len(audio) // MEL_HOP],
        np.abs(keys)[:, : len(audio) // KEY_HOP],
    )


def to_float(audio: np.ndarray) -> np.ndarray:
    """Float32 of the int16 that files have."""
    return audio.astype(np.float32) / FULL_SCALE


def cached_spectra(path: Path, clips: Iterable[np.ndarray]) -> list[Spectra]:
    """Of int16 `[samples]` of one length, in half precision; `path` keeps them."""
    if not path.exists():
        made = [spectra(to_float(clip)) for clip in clips]
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "mel": np.stack([each.mel for each in made]).astype(np.float16),
            "keys": np.stack([each.keys for each in made]).astype(np.float16),
        }
        write_file(path, lambda file: np.savez(file, **arrays))
    with np.load(path) as kept:
        mel, keys = kept["mel"], kept["keys"]
    return [Spectra(m.astype(np.float32), k.astype(np.float32)) for m, k in zip(mel, keys, strict=True)]
