"""What the adapter of `train_adapter.py` learned and what it forgot: `python evaluate_adapter.py`

A support vector machine, which learned the families of leads from renders, and the vibraphone as one more,
rates clips with the adapter and without: of prompts for a vibraphone, and of the evaluation's own prompts.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from estimators import classifier, features
from evaluate_songs import BATCH, SECONDS, Value, first_part, share
from pictures import draw
from rendered import ThroughCodec, held_out_songs, training_songs
from sklearn.pipeline import Pipeline
from spectra import FULL_SCALE, SAMPLE_RATE, Spectra, cached_spectra, spectra
from train_adapter import ADAPTER, WORK
from vibraphone import NAME, TRAIN_CLIPS, caption_of, clips, songs
from words import unseen_caption
from write_checkpoint import DEMO

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.loudness import integrated_loudness
from audiocraft_mlx.tuning.checkpoint import STATE_FILE
from audiocraft_mlx.tuning.history import History

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of the vibraphone, for the classifier: to learn from, and held out.
CLASSIFIER_CLIPS, REFERENCE_CLIPS = 40, 20
VIBRAPHONE_PROMPTS, KNOWN_PROMPTS = 36, 64
HIGHEST_HERTZ, COLOURS = 4000, 48


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--training", type=int, default=400, help="training renders to learn families from")
    parser.add_argument("--renders", type=Path, default=Path("work/renders.npy"), help="of render_songs.py")
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"), help="of train_codec.py")
    parser.add_argument("--work", type=Path, default=Path("work/evaluation"), help="of evaluate_songs.py")
    parser.add_argument("--out", type=Path, default=WORK / "evaluation.json")
    parser.add_argument("--plot", type=Path, default=Path("../docs/tuning.png"))
    arguments = parser.parse_args()
    codec = ThroughCodec(arguments.codec, arguments.work)
    machine, real = train_classifier(codec, arguments)
    result: dict[str, object] = {"renders": str(real), "held-out loss": held_out_losses(arguments.adapter)}
    print(json.dumps(result, ensure_ascii=False), flush=True)
    random_ = random.Random(12)
    new = [
        caption_of(each.attributes, random_, unseen_caption)
        for each in islice(songs(held_out=True), VIBRAPHONE_PROMPTS)
    ]
    known, families = known_prompts(random_)
    made: dict[str, list[np.ndarray]] = {}
    for name, lora in (("without the adapter", None), ("with the adapter", str(arguments.adapter))):
        model = MusicGen.get_pretrained(str(arguments.model), lora=lora)
        made[name] = generate(model, new)
        others = generate(model, known)
        result[name] = {
            NAME: rate(machine, made[name], [NAME] * len(new)),
            "known": rate(machine, others, families),
        }
        print(f"{name}: {json.dumps(result[name], ensure_ascii=False)}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    rendered = codec.decoded(clips(1, held_out=True)[0][1])
    plot(
        arguments.plot,
        {"rendered, through the codec": rendered, **{k: v[0] for k, v in made.items()}},
        new[0],
    )


def train_classifier(codec: ThroughCodec, arguments: argparse.Namespace) -> tuple[Pipeline, Value]:
    """The lead's family, or the vibraphone; and the share of held-out vibraphones that it finds."""
    renders = np.load(arguments.renders, mmap_mode="r")[: arguments.training]
    decoded = codec("training", first_part(renders))
    sounds = cached_spectra(codec.folder / f"training-{len(decoded)}.npz", decoded)
    labels = [each.attributes.family for each in training_songs(len(decoded))]
    # Of the vibraphone other clips than those that the adapter is trained on.
    new = [
        spectra(codec.decoded(audio[: SECONDS * SAMPLE_RATE]))
        for _, audio in clips(CLASSIFIER_CLIPS + REFERENCE_CLIPS, first=TRAIN_CLIPS)
    ]
    heard = new[:CLASSIFIER_CLIPS]
    machine = classifier(rows(sounds + heard), labels + [NAME] * len(heard))
    return machine, share([name == NAME for name in machine.predict(rows(new[CLASSIFIER_CLIPS:]))])


def rows(sounds: Sequence[Spectra]) -> np.ndarray:
    return np.stack([features(sound) for sound in sounds])


def held_out_losses(adapter: Path) -> dict[str, list[float]]:
    """Before the training and after it, of each codebook in nats; empty for an adapter of another trainer."""
    path = adapter / STATE_FILE
    if not path.exists():
        return {}
    evaluations = History.from_json(json.loads(path.read_text(encoding="utf-8"))["history"]).evaluations
    return {
        f"step {e.step}": [round(loss, 3) for loss in e.losses] for e in (evaluations[0], evaluations[-1])
    }


def known_prompts(random_: random.Random) -> tuple[list[str], list[str]]:
    """Captions of held-out songs that name the lead's family, and these families."""
    prompts, families = [], []
    for each in held_out_songs(4 * KNOWN_PROMPTS):
        made = unseen_caption(each.attributes, random_)
        if "family" in made.named and len(prompts) < KNOWN_PROMPTS:
            prompts.append(made.text)
            families.append(each.attributes.family)
    return prompts, families


def generate(model: MusicGen, prompts: Sequence[str]) -> list[np.ndarray]:
    """A clip of 10 s, float32 `[samples]`, of each."""
    made: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        model.set_generation_params(duration=SECONDS, seed=start)
        made += list(np.array(model.generate(list(prompts[start : start + BATCH])))[:, 0])
    return made


def rate(machine: Pipeline, audio: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, object]:
    """How many are what they should be, and what is heard, in numbers."""
    # With the precision of files, as what the classifier learned from.
    heard = [np.round(np.clip(clip, -1, 1) * FULL_SCALE) / FULL_SCALE for clip in audio]
    predicted = machine.predict(rows([spectra(clip.astype(np.float32)) for clip in heard]))
    loudness = [integrated_loudness(clip[None], SAMPLE_RATE) for clip in audio]
    return {
        "right": str(share([one == other for one, other in zip(predicted, names, strict=True)])),
        "loudness LUFS": round(float(np.median(loudness)), 1),
        "peak": round(float(max(np.abs(clip).max() for clip in audio)), 3),
        "clips with NaN": sum(not np.isfinite(clip).all() for clip in audio),
    }


def plot(path: Path, panels: dict[str, np.ndarray], prompt: str) -> None:
    from PIL import Image

    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 8), sharex=True, sharey=True)
    for axis, (name, audio) in zip(axes, panels.items(), strict=True):
        draw(axis, audio[: SECONDS * SAMPLE_RATE], HIGHEST_HERTZ)
        axis.set_title(f"{name}: {prompt}" if name.startswith("with") else name, fontsize=9)
        axis.set_ylabel("Hz")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=64)
    with Image.open(path) as picture:  # a quarter of the size
        few_colours = picture.convert("RGB").quantize(COLOURS)
    few_colours.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
