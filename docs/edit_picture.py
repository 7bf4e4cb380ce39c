"""Plots `edit.png`, a clip of the demo model of which a part was made anew: `python docs/edit_picture.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import save_plot

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=8, seed=3)
clip = np.array(model.generate(["lo-fi piano with drums"])[0])
edited = np.array(model.generate_infill(clip, model.sample_rate, [(3, 5)], ["funk with saxophone and drums"])[0])
save_plot(
    Path(__file__).with_name("edit.png"),
    edited,
    model.sample_rate,
    "lo-fi piano with drums, from 3 to 5 s made anew: funk with saxophone and drums",
)
