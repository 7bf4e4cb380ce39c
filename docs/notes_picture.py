"""Plots `notes.png`, chords and the chroma that conditions a melody model: `python docs/notes_picture.py`

It needs no weights: the chords sound as tones, and their chroma is made of their names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import chord_notes
from audiocraft_mlx.audio.plot import Chromagram, save_plot
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.note_chroma import chroma_of_notes

RATE = 32000
CHORDS = "C G/B | Am | Fmaj7 | Gsus4 G |"

notes = chord_notes(CHORDS, bpm=100)
time = np.arange(int(notes.duration * RATE)) / RATE
audio = np.zeros_like(time)
for sound in notes.sounds:
    heard = (sound.start <= time) & (time < sound.end)
    since = time[heard] - sound.start
    for pitch in sound.pitches:
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        partials = sum(np.sin(2 * np.pi * frequency * n * since) / n**1.5 for n in range(1, 9))
        audio[heard] += 0.08 * partials * np.exp(-since) * np.minimum(1, since / 0.01)
config = ChromaConfig()
hop = config.hop_length / config.sample_rate
frames = chroma_of_notes(notes, config, frames=int(notes.duration / hop) + 1)
save_plot(
    Path(__file__).with_name("notes.png"),
    audio[None].astype(np.float32),
    RATE,
    f"{CHORDS} as tones, and the chroma that conditions a melody model",
    Chromagram(frames, hop),
)
