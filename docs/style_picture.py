"""Plots `style.png`, music and its excerpt as a style condition: `python docs/style_picture.py`

It needs no released weights: the music is the demo model's, and the plot shows only the condition.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import StyleExcerpt, save_plot

PROMPT = "a chill lo-fi beat with vinyl crackle and soft piano"
START, SECONDS = 4.2, 3.0

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=10, seed=1)
audio = np.array(model.generate([PROMPT])[0])
rate = model.sample_rate
excerpt = audio[0, int(START * rate) : int((START + SECONDS) * rate)]
save_plot(
    Path(__file__).with_name("style.png"),
    audio,
    rate,
    "Ten seconds of music, and the excerpt that conditions a style model",
    StyleExcerpt(excerpt, rate, START),
)
