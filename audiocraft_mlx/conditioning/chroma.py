"""Chroma: the energy in each of the twelve pitch classes over time, the feature of a melody.

Equal to audiocraft's `ChromaExtractor` and what its `ChromaStemConditioner` does with the frames
(`modules/chroma.py`, `modules/conditioners.py`), and to transformers' `MusicgenMelodyFeatureExtractor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from audiocraft_mlx.configs import SAMPLE_RATE, SEGMENT_SECONDS, ConfigSection, Range
from audiocraft_mlx.errors import UsageError

_EPS = 1e-6
# librosa's `filters.chroma`: octaves are counted from A0 and weighted by a Gaussian around the fifth.
_A0 = 27.5
_CENTER_OCTAVE, _OCTAVES = 5.0, 2.0


N_CHROMA = Range(1, 128)
N_FFT = Range(4, 2**20)
LENGTH = Range(1, 2**14)


@dataclass(frozen=True)
class ChromaConfig:
    """How chroma is computed; the defaults are the released models'."""

    sample_rate: int = 32000
    n_chroma: int = 12
    n_fft: int = 16384
    hop_length: int = 4096
    length: int = 235
    """Frames of every melody: those of a training segment."""
    one_hot: bool = True
    """Only the strongest pitch class of a frame is kept, as 1."""

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> ChromaConfig:
        """Read `xp.cfg` of a melody model. Raises `CheckpointError`."""
        self_wav = config.section("conditioners").section("self_wav")
        self_wav.require("model", "chroma_stem")
        chroma = self_wav.section("chroma_stem")
        sample_rate = chroma.integer("sample_rate", within=SAMPLE_RATE)
        exponent = chroma.integer("radix2_exp", within=Range(2, 20))
        for key in ("nfft", "winlen", "winhop", "norm"):
            chroma.require(key, None, None)
        duration = config.section("dataset").number("segment_duration", 30.0, SEGMENT_SECONDS)
        n_fft, hop_length = 2**exponent, 2**exponent // 4
        length = 1 + max(int(sample_rate * duration), n_fft) // hop_length
        if length not in LENGTH:
            raise chroma.error("radix2_exp", f"gives a melody of {length} frames, not {LENGTH}")
        return cls(
            sample_rate=sample_rate,
            n_chroma=chroma.integer("n_chroma", within=N_CHROMA),
            n_fft=n_fft,
            hop_length=hop_length,
            length=length,
            one_hot=chroma.boolean("argmax", False),
        )

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> ChromaConfig:
        """Read `config.json` of type `musicgen_melody`; the rest is as released. Raises `CheckpointError`."""
        config.require("model_type", "musicgen_melody")
        codec = config.section("audio_encoder")
        return cls(
            sample_rate=codec.integer("sampling_rate", 24000, SAMPLE_RATE),
            n_chroma=config.integer("num_chroma", 12, N_CHROMA),
            length=config.integer("chroma_length", 235, LENGTH),
        )


def melody_chroma(wav: mx.array, config: ChromaConfig) -> mx.array:
    """`chroma` of `wav`, repeated or cut to `config.length` frames: `[B, config.length, n_chroma]`.

    Samples beyond these frames are ignored.
    """
    used = (config.length - 1) * config.hop_length + config.n_fft // 2
    return _fit(chroma(wav[..., : max(used, config.n_fft)], config), config.length)


def null_chroma(config: ChromaConfig) -> mx.array:
    """The chroma where there is no melody, that of silence: `[1, config.length, n_chroma]`."""
    return melody_chroma(mx.zeros((1, 1)), config)


def chroma(wav: mx.array, config: ChromaConfig) -> mx.array:
    """Float32 `[B, frames, n_chroma]` of mono `wav`, float `[B, T]` or `[B, 1, T]` at `config.sample_rate`.

    `frames` is `1 + max(T, n_fft) // hop_length`. Each frame is power relative to its strongest class, which
    is 1; in silence all are 0. One-hot, the strongest is 1 and the others 0; in silence that is C.

    Raises:
        UsageError: `wav` has another shape.
    """
    if wav.ndim == 3 and wav.shape[1] == 1:
        wav = wav[:, 0]
    if wav.ndim != 2:
        raise UsageError(f"a melody must be mono, [batch, samples], not {list(wav.shape)}")
    power = _power_spectrum(wav.astype(mx.float32), config.n_fft, config.hop_length)
    filters = mx.array(chroma_filters(config.sample_rate, config.n_fft, config.n_chroma))
    classes = power @ filters.T
    if config.one_hot:
        # As int32: argmax is uint32, and to compare the two MLX takes int64.
        strongest = classes.argmax(axis=-1, keepdims=True).astype(mx.int32)
        return (mx.arange(config.n_chroma) == strongest).astype(mx.float32)
    return classes / mx.maximum(classes.max(axis=-1, keepdims=True), _EPS)


@lru_cache(maxsize=2)
def chroma_filters(sample_rate: int, n_fft: int, n_chroma: int) -> np.ndarray:
    """The weight of each FFT bin in each pitch class, from C up: float32 `[n_chroma, n_fft // 2 + 1]`.

    Equal to `librosa.filters.chroma(tuning=0)`: a Gaussian around each class, as wide as a class, or as the
    step to the next bin where that is wider, weighted less the farther the bin's octave is from the fifth.
    """
    pitch = n_chroma * np.log2(np.arange(1, n_fft // 2 + 2) * (sample_rate / n_fft) / _A0)
    # 0 Hz has no pitch: as in librosa it is put 1.5 octaves below the first bin.
    pitch = np.concatenate([pitch[:1] - 1.5 * n_chroma, pitch])
    width = np.maximum(np.diff(pitch), 1)
    pitch = pitch[:-1]
    classes = np.arange(n_chroma) + 3 * (n_chroma // 12)  # C is three semitones above A
    distance = (pitch - classes[:, None] + n_chroma / 2) % n_chroma - n_chroma / 2
    filters = np.exp(-2 * (distance / width) ** 2)
    filters /= np.linalg.norm(filters, axis=0)
    filters *= np.exp(-(((pitch / n_chroma - _CENTER_OCTAVE) / _OCTAVES) ** 2) / 2)
    return filters.astype(np.float32)


def _fit(frames: mx.array, length: int) -> mx.array:
    repeats = math.ceil(length / frames.shape[1])
    return mx.tile(frames, (1, repeats, 1))[:, :length]


def _power_spectrum(wav: mx.array, n_fft: int, hop_length: int) -> mx.array:
    """`[B, T]` → `[B, frames, n_fft // 2 + 1]`, centred on every `hop_length`-th sample; normalized Hann."""
    missing = n_fft - wav.shape[1]
    if missing > 0:
        wav = mx.pad(wav, [(0, 0), (missing // 2, missing - missing // 2)])
    batch, length = wav.shape
    # Reflected at the ends, without repeating the end samples.
    half = n_fft // 2
    reflected = [wav[:, half:0:-1], wav, wav[:, -2 : -2 - half : -1]]
    wav = mx.contiguous(mx.concatenate(reflected, axis=1))
    frames = mx.as_strided(wav, (batch, 1 + length // hop_length, n_fft), (wav.shape[1], hop_length, 1))
    window = np.hanning(n_fft + 1)[:-1]
    spectrum = mx.fft.rfft(frames * mx.array((window / np.linalg.norm(window)).astype(np.float32)))
    return mx.abs(spectrum).square()
