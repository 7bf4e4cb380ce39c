"""Spectrograms of held-out songs before and after the codec: `python pictures.py` → ../docs/codec.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from render_songs import excerpt
from rendered import ThroughCodec
from spectra import SAMPLE_RATE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = ("house", "jazz trio", "string quartet", "chiptune")
SECONDS = 10
HIGHEST_HERTZ = 8000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"), help="of train_codec.py")
    parser.add_argument("--work", type=Path, default=Path("work/evaluation"))
    parser.add_argument("--out", type=Path, default=Path("../docs/codec.png"))
    arguments = parser.parse_args()
    codec = ThroughCodec(arguments.codec, arguments.work)
    figure, axes = plt.subplots(len(SHOWN), 2, figsize=(12, 11), sharex=True, sharey=True)
    for row, style in zip(axes, SHOWN, strict=True):
        _, rendered = excerpt(0, held_out=True, style=style, seconds=SECONDS)
        for axis, audio, name in zip(
            row, (rendered, codec.decoded(rendered)), ("rendered", "codec"), strict=True
        ):
            draw(axis, audio)
            axis.set_title(f"{style}, {name}", fontsize=9)
        row[0].set_ylabel("Hz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=64)
    print(arguments.out)


def draw(axis: plt.Axes, audio: np.ndarray, highest: float = HIGHEST_HERTZ) -> None:
    axis.specgram(audio + 1e-7, NFFT=2048, Fs=SAMPLE_RATE, noverlap=1536, cmap="magma", vmin=-130, vmax=-30)
    axis.set_ylim(0, highest)


if __name__ == "__main__":
    main()
