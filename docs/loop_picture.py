"""Plots `loop.png`, a loop of the demo model with its join: `python docs/loop_picture.py`"""

from __future__ import annotations

from pathlib import Path

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import save_plot

model = MusicGen.get_pretrained("demo")
model.set_generation_params(seed=2)
(loop,) = model.generate_loop(["lo-fi piano with drums"], bars=2, bpm=75)
save_plot(
    Path(__file__).with_name("loop.png"),
    loop.audio,
    model.sample_rate,
    "lo-fi piano with drums, 2 bars at 75 bpm",
    join=loop.join,
)
