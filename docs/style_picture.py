"""Draws `style.png`: what a style model hears of some music. `python docs/style_picture.py`

No released weights are needed: the music is the demo model's, and what is drawn is what is heard, not what is
made of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import StyleExcerpt, save_plot

PROMPT = "slow happy piano with a dance beat"
START, SECONDS = 4.2, 3.0

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=10, seed=1)
audio = np.array(model.generate([PROMPT])[0])
rate = model.sample_rate
heard = audio[0, int(START * rate) : int((START + SECONDS) * rate)]
save_plot(
    Path(__file__).with_name("style.png"),
    audio,
    rate,
    "Ten seconds of music, and below what a style model hears of it",
    StyleExcerpt(heard, rate, START),
)
