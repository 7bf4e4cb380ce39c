"""Codes of the training and held-out loops: `python encode.py --loops 1200` → work/codes.npz."""

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
    start_time = time.time()
    for name, count, held_out in (("train", arguments.loops, False), ("held_out", HELD_OUT_LOOPS, True)):
        codes, attributes = [], []
        for start in range(0, count, 8):
            loops = [loop(number, held_out) for number in range(start, min(start + 8, count))]
            attributes += [loop_attributes.to_json() for loop_attributes, _ in loops]
            codes.append(codec.codes(torch.tensor(np.stack([audio for _, audio in loops]))).numpy())
        arrays[name] = np.concatenate(codes).astype(np.int16)
        arrays[f"{name}_attributes"] = np.array(json.dumps(attributes))
    np.savez(arguments.out, **arrays)
    seconds = time.time() - start_time
    rate = arguments.loops * 8 / seconds
    print(f"{arguments.loops} loops in {seconds:.0f} s, {rate:.0f} s of audio per second")
    report_repeats(arrays["train"], json.loads(str(arrays["train_attributes"])))


def report_repeats(codes: np.ndarray, attributes: list[dict]) -> None:
    """Print the share of codes that are equal two bars later: what a language model can copy."""
    for tempo, period in (("medium", 240), ("fast", 160)):
        clips = codes[[a["tempo"] == tempo for a in attributes]]
        same = (clips[:, :, 20:-period] == clips[:, :, 20 + period :]).mean(axis=(0, 2))
        print(f"{tempo}: equal two bars later, by codebook: {np.round(same, 2)}")


if __name__ == "__main__":
    main()
