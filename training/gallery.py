"""Twelve clips of the finished model, one a style: `python gallery.py` → ../docs/gallery, ../docs/GALLERY.md.

Nobody chose: seed 1 draws what each caption says, in the evaluation's wordings, and generates each clip.
"""

from __future__ import annotations

import argparse
import random
import shlex
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
from attributes import STYLES
from draw import draw_attributes
from words import unseen_caption
from write_checkpoint import DEMO

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.plot import MelSpectrogram

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent.parent / "docs"
SEED, SECONDS = 1, 10
QUALITY = 0.87  # 0 is 320 kbit/s, 1 is 32
COLUMNS = 4
BEGINNING = """\
# Gallery

Twelve clips of ten seconds by the [demo model](../audiocraft_mlx/demo/README.md), which comes with the
package: one of each of its styles. Nobody chose them: seed 1 draws what each prompt says and how, in
wordings that the model wasn't trained on, and generates each clip (`make gallery`). Clips, weights and
training data are CC0.

![Mel spectrograms of the twelve clips](gallery/gallery.png)
"""
END = """
The first of them again, with the same samples on the same kind of machine:

```sh
{}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    folder = arguments.out / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    captions = draw_captions()
    model = MusicGen.get_pretrained(str(arguments.model))
    model.set_generation_params(duration=SECONDS, seed=SEED)
    clips = {}
    for style, text in captions.items():
        clips[style] = np.array(model.generate([text])[0, 0])
        path = folder / file_name(style)
        soundfile.write(
            path,
            np.clip(clips[style], -1, 1),
            model.sample_rate,
            format="MP3",
            bitrate_mode="CONSTANT",
            compression_level=QUALITY,
        )
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {text!r}", flush=True)
    plot(folder / "gallery.png", clips, model.sample_rate)
    (arguments.out / "GALLERY.md").write_text(page(captions))


def draw_captions() -> dict[str, str]:
    """One for each style, which it names."""
    random_ = random.Random(SEED)
    captions = {}
    for style in STYLES:
        attributes = draw_attributes(random_, style)
        named = (unseen_caption(attributes, random_) for _ in iter(int, 1))
        captions[style] = next(each.text for each in named if "style" in each.named)
    return captions


def page(captions: dict[str, str]) -> str:
    lines = [
        textwrap.fill(
            f"- [{style}](gallery/{file_name(style)}): *{text}*",
            120,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        for style, text in captions.items()
    ]
    command = f"musicgen-mlx {shlex.quote(next(iter(captions.values())))} -m demo -d {SECONDS} --seed {SEED}"
    return "\n".join([BEGINNING, *lines, END.format(command)])


def file_name(style: str) -> str:
    return f"{style.replace(' ', '-')}.mp3"


def plot(path: Path, clips: dict[str, np.ndarray], sample_rate: int) -> None:
    figure, axes = plt.subplots(
        len(clips) // COLUMNS, COLUMNS, figsize=(12, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (style, clip) in zip(axes.flat, clips.items(), strict=True):
        mel = MelSpectrogram(len(clip), sample_rate)
        mel.add(clip)
        levels = mel.levels()
        axis.imshow(levels, origin="lower", aspect="auto", cmap="magma", extent=(0, SECONDS, 0, len(levels)))
        axis.set_title(style, fontsize=10)
        axis.set_yticks([])
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.savefig(path, dpi=64)
    plt.close(figure)


if __name__ == "__main__":
    main()
