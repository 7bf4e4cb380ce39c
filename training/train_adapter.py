"""Train LoRA on a dozen clips of an instrument that the demo model doesn't know: `python train_adapter.py`

It writes the clips (`vibraphone.py`) to `work/adapter/data`, and an adapter in PEFT's format to
`work/adapter/vibraphone`. `evaluate_adapter.py` says what it learned and forgot.

Trained on these clips alone the model makes a vibraphone of every instrument. So clips of the other
instruments are among them, which it makes itself: that takes no other data (the prior preservation of
DreamBooth, Ruiz et al. 2023). Many of them, with many wordings: the model has to tell the new word from all
others.

Half of them are short. Only at the first frames it depends on the text which instrument plays; what follows
can be copied from them, so that in long clips what tells the instruments apart is a small part of the loss.
The other half are as long as what the model makes: what is trained in short clips alone drifts in what comes
after their end.
"""

from __future__ import annotations

import argparse
import random
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from draw import draw_attributes
from styles import STYLES
from vibraphone import LONG_SECONDS, SHORT_SECONDS, write_clip, write_clips
from words import caption
from write_checkpoint import DEMO

from audiocraft_mlx import MusicGen
from audiocraft_mlx.cli.train import main as musicgen_mlx_train

WORK = Path("work/adapter")
ADAPTER = WORK / "vibraphone"
SHORT_KNOWN_CLIPS, LONG_KNOWN_CLIPS = 240, 240
"""Of the instruments that the model knows, made by itself."""
TOGETHER = 24
"""Clips that are made at a time."""
# The heads too: some of the new sound's codes were in none of the sounds that the model was trained on. And
# the projection of the text, for the new word.
# Two crops pass through the network together: each pair counts as much as another, be it short or long.
OPTIONS = """--targets q_proj,k_proj,v_proj,out_proj,fc1,fc2,enc_to_dec_proj,lm_heads --dropout 0 --iters 600
  --batch-size 8 --micro-batch 2 --learning-rate 2e-3 --warmup 10 --condition-dropout 0.05
  --steps-per-eval 300 --save-every 0"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=ADAPTER)
    arguments = parser.parse_args()
    data = arguments.work / "data"
    write_clips(data)
    write_known_clips(data / "train", MusicGen.get_pretrained(str(arguments.model)))
    command = [str(data), "-m", str(arguments.model), "-o", str(arguments.out), "--crop", f"{LONG_SECONDS:g}"]
    status: int = musicgen_mlx_train([*command, *OPTIONS.split()])
    return status


def write_known_clips(folder: Path, model: MusicGen) -> None:
    random_ = random.Random(4)
    for name, count, seconds, first_seed in (
        ("known", SHORT_KNOWN_CLIPS, SHORT_SECONDS, 0),
        ("known-long", LONG_KNOWN_CLIPS, LONG_SECONDS, 10000),
    ):
        captions = known_captions(count, random_)
        for start in range(0, count, TOGETHER):
            model.set_generation_params(duration=seconds, seed=first_seed + start)
            texts = captions[start : start + TOGETHER]
            clips = np.array(model.generate(texts))
            for number, (text, audio) in enumerate(zip(texts, clips, strict=True), start):
                write_clip(folder / f"{name}{number:03}.wav", audio[0], text)


def known_captions(count: int, random_: random.Random) -> list[str]:
    """Each names the lead instrument; those of each style by turns."""
    leads = cycle([(style, lead) for style, values in STYLES.items() for lead in values.leads])
    return [known_caption(style, lead, random_) for style, lead in islice(leads, count)]


def known_caption(style: str, lead: str, random_: random.Random) -> str:
    while True:
        attributes = draw_attributes(random_, style)
        made = caption(attributes, random_)
        if attributes.lead == lead and "lead" in made.named:
            return made.text


if __name__ == "__main__":
    sys.exit(main())
