"""Plots `sections.png`, the demo model with a text that changes twice: `python docs/sections_picture.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import save_plot

SECTIONS = [(0, "slow happy piano"), (6, "marimba with a dance beat"), (12, "sad strings", 4)]

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=18, seed=3)
audio = np.array(model.generate([SECTIONS])[0])
save_plot(
    Path(__file__).with_name("sections.png"),
    audio,
    model.sample_rate,
    "0 s: slow happy piano   6 s: marimba with a dance beat   12 s, cross-fade of 4 s: sad strings",
)
