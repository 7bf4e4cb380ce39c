"""Plots `melody.png`, a scale and its chromagram as a melody condition: `python docs/melody_picture.py`

It needs no weights: a scale without drums and bass needs no source separation.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.plot import Chromagram, save_plot
from audiocraft_mlx.conditioning.chroma import ChromaConfig, chroma

RATE = 32000
SCALE = (60, 62, 64, 65, 67, 69, 71, 72, 71, 69, 67, 65, 64, 62, 60)
"""MIDI notes of 0.5 s each: C major, up and down."""


def tone(note: int, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 440 * 2 ** ((note - 69) / 12)
    partials = sum(np.sin(2 * np.pi * pitch * n * time) / n**1.5 for n in range(1, 9))
    return 0.3 * partials * np.exp(-2 * time) * np.minimum(1, time / 0.01)


audio = np.concatenate([tone(note) for note in SCALE]).astype(np.float32)[None]
config = ChromaConfig()
frames = np.array(chroma(mx.array(audio), config)[0])
save_plot(
    Path(__file__).with_name("melody.png"),
    audio,
    RATE,
    "A scale in C major, and the chromagram that conditions a melody model",
    Chromagram(frames, config.hop_length / RATE),
)
