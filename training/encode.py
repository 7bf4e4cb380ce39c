"""Codes of the training loops: `python encode.py --loops 1200` → work/codes.npz, held-out ones at its end."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from codec import Codec
from loops import loop

HELD_OUT_LOOPS = 96


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loops", type=int, default=1200)
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--out", type=Path, default=Path("work/codes.npz"))
    arguments = parser.parse_args()
    codec = Codec()
    codec.load_state_dict(torch.load(arguments.codec)["codec"])
    codec.eval()
    arrays = {}
    began = time.time()
    for name, count, held_out in (("train", arguments.loops, False), ("held_out", HELD_OUT_LOOPS, True)):
        codes, attributes = [], []
        for start in range(0, count, 8):
            made = [loop(number, held_out) for number in range(start, min(start + 8, count))]
            attributes += [what.to_json() for what, _ in made]
            codes.append(codec.codes(torch.tensor(np.stack([audio for _, audio in made]))).numpy())
        arrays[name] = np.concatenate(codes).astype(np.int16)
        arrays[f"{name}_attributes"] = np.array(json.dumps(attributes))
    np.savez(arguments.out, **arrays)
    seconds = time.time() - began
    print(
        f"{arguments.loops} loops in {seconds:.0f} s, {arguments.loops * 8 / seconds:.0f} s of audio a second"
    )
    report_repeats(arrays["train"], json.loads(str(arrays["train_attributes"])))


def report_repeats(codes: np.ndarray, attributes: list[dict]) -> None:
    """How many codes of each book are the same two bars later: what a language model can copy."""
    for tempo, period in (("medium", 240), ("fast", 160)):
        clips = codes[[a["tempo"] == tempo for a in attributes]]
        same = (clips[:, :, 20:-period] == clips[:, :, 20 + period :]).mean(axis=(0, 2))
        print(f"{tempo}: the same two bars later, by book: {np.round(same, 2)}")


if __name__ == "__main__":
    main()
