"""Plots `sections.png`, the demo model with a text that changes twice: `python docs/sections_picture.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import save_plot

SECTIONS = [(0, "slow ambient piano"), (6, "funk with saxophone and drums"), (12, "string quartet", 4)]

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=18, seed=3)
audio = np.array(model.generate([SECTIONS])[0])
save_plot(
    Path(__file__).with_name("sections.png"),
    audio,
    model.sample_rate,
    "0 s: slow ambient piano   6 s: funk with saxophone and drums   12 s, cross-fade of 4 s: string quartet",
)
