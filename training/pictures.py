"""Spectrograms of held-out loops before and after the codec: `python pictures.py` → ../docs/codec.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from codec import SAMPLE_RATE
from compose import Attributes
from evaluate import Renders
from loops import loop
from write_checkpoint import DEMO

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = ("strings", "flute", "organ", "piano")  # the first three sustain their notes
HIGHEST_HERTZ = 8000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--codes", type=Path, default=Path("work/codes.npz"))
    parser.add_argument("--out", type=Path, default=Path("../docs/codec.png"))
    arguments = parser.parse_args()
    decoded, attributes = Renders(arguments.model, arguments.codes).decoded("held_out", 32)
    figure, axes = plt.subplots(len(SHOWN), 2, figsize=(12, 11), sharex=True, sharey=True)
    for row, instrument in zip(axes, SHOWN, strict=True):
        number = next(n for n, a in enumerate(attributes) if a["instrument"] == instrument)
        loop_attributes, rendered = loop(number, held_out=True)
        for axis, audio, name in zip(row, (rendered, decoded[number]), ("rendered", "codec"), strict=True):
            draw(axis, audio)
            axis.set_title(f"{describe(loop_attributes)}: {name}", fontsize=9)
        row[0].set_ylabel("Hz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=64)
    print(arguments.out)


def draw(axis: plt.Axes, audio: np.ndarray, highest: float = HIGHEST_HERTZ, lowest_db: float = -140) -> None:
    limits = {"vmin": lowest_db, "vmax": -30}
    axis.specgram(audio + 1e-7, NFFT=2048, Fs=SAMPLE_RATE, noverlap=1536, cmap="magma", **limits)
    axis.set_ylim(0, highest)


def describe(attributes: Attributes) -> str:
    drums = "no drums" if attributes.drums == "none" else f"{attributes.drums} drums"
    bass = ", bass" if attributes.bass else ""
    return f"{attributes.tempo} {attributes.instrument} in {attributes.mode}, {drums}{bass}"


if __name__ == "__main__":
    main()
