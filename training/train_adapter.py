"""Train LoRA on a dozen clips of an instrument that the demo model doesn't know: `python train_adapter.py`

It writes the clips (`vibraphone.py`) to `work/adapter/data`, and an adapter in PEFT's format to
`work/adapter/vibraphone`. `evaluate_adapter.py` says what it learned and forgot.

Trained on these clips alone the model makes a vibraphone of every instrument. So clips of the other
instruments are among them, which it makes itself, from captions of its own training: that takes no other data
(the prior preservation of DreamBooth, Ruiz et al. 2023).
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from captions import caption
from compose import INSTRUMENTS, draw_attributes
from vibraphone import write_clip, write_clips

from audiocraft_mlx import MusicGen
from audiocraft_mlx.cli.train import main as musicgen_mlx_train

MODEL, WORK = "demo", Path("work/adapter")
ADAPTER = WORK / "vibraphone"
CROP_SECONDS = 8.0
KNOWN_CLIPS = 28
"""Of the instruments that the model knows, made by itself."""
# The heads too: some of the new sound's codes were in none of the sounds that the model was trained on.
OPTIONS = """--targets q_proj,k_proj,v_proj,out_proj,fc1,fc2,lm_heads --dropout 0 --iters 80 --micro-batch 4
  --learning-rate 6e-3 --warmup 5 --steps-per-eval 20 --save-every 0"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=ADAPTER)
    arguments = parser.parse_args()
    data = arguments.work / "data"
    write_clips(data)
    write_known_clips(data / "train", MusicGen.get_pretrained(MODEL))
    command = [str(data), "-m", MODEL, "-o", str(arguments.out), "--crop", f"{CROP_SECONDS:g}"]
    status: int = musicgen_mlx_train([*command, *OPTIONS.split()])
    return status


def write_known_clips(folder: Path, model: MusicGen) -> None:
    random_ = random.Random(4)
    captions = [
        caption(replace(draw_attributes(random_), instrument=INSTRUMENTS[n % len(INSTRUMENTS)]), random_)
        for n in range(KNOWN_CLIPS)
    ]
    for start in range(0, KNOWN_CLIPS, 8):
        model.set_generation_params(duration=CROP_SECONDS, cfg_coef=model.guidance.coef, seed=start)
        texts = captions[start : start + 8]
        clips = np.array(model.generate(texts))
        for number, (text, audio) in enumerate(zip(texts, clips, strict=True), start):
            write_clip(folder / f"known{number:02}.wav", audio[0], text)


if __name__ == "__main__":
    sys.exit(main())
