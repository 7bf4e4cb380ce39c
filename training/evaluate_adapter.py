"""What the adapter of `train_adapter.py` learned and what it forgot: `python evaluate_adapter.py`

The classifiers of `evaluate.py`, with the vibraphone as one more instrument, rate clips with the adapter and
without: of prompts for a vibraphone, and of the evaluation's own prompts for what the model knew before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from compose import INSTRUMENTS, Attributes
from evaluate import generate_clips, prompt_attributes, rate, shares
from loops import loop
from metrics import CLASSES, SAMPLE_RATE, AttributeClassifier, beat_peak, onset_strength, spectrogram
from pictures import describe, draw
from train_adapter import ADAPTER, WORK
from transformers import EncodecModel, MusicgenForConditionalGeneration
from vibraphone import NAME, clips
from vibraphone import prompt_attributes as vibraphone_attributes
from write_checkpoint import DEMO

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.loudness import integrated_loudness
from audiocraft_mlx.tuning.checkpoint import STATE_FILE
from audiocraft_mlx.tuning.history import History

# Of each instrument, for the classifiers: to learn from, and held out.
CLASSIFIER_CLIPS, REFERENCE_CLIPS = 20, 8
VIBRAPHONE_PROMPTS = 36
HIGHEST_HERTZ, LOWEST_DB, COLOURS = 3500, -100, 48


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--clips", type=int, default=63, help="of what the model knew before")
    parser.add_argument("--out", type=Path, default=WORK / "evaluation.json")
    parser.add_argument("--plot", type=Path, default=Path("../docs/tuning.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    codec = MusicgenForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).audio_encoder.eval()
    classifier, clear_beat, real = train_classifier(codec)
    result: dict[str, object] = {"real loops": real, "held-out loss": held_out_losses(arguments.adapter)}
    known, new = prompt_attributes(arguments.clips), vibraphone_attributes(VIBRAPHONE_PROMPTS)
    made: dict[str, list[np.ndarray]] = {}
    for name, lora in (("without the adapter", None), ("with the adapter", str(arguments.adapter))):
        model = MusicGen.get_pretrained(str(DEMO), lora=lora)
        made[name] = generate_clips(model, new, model.guidance.coef, {})
        others = generate_clips(model, known, model.guidance.coef, {})
        result[name] = {
            NAME: rate(made[name], new, classifier, clear_beat) | sound(made[name]),
            "known": rate(others, known, classifier, clear_beat) | sound(others),
        }
        print(f"{name}: {json.dumps(result[name], ensure_ascii=False)}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    plot(arguments.plot, codec, new, made)


def held_out_losses(adapter: Path) -> dict[str, list[float]]:
    """Before the training and after it, of each codebook in nats; empty for an adapter of another trainer."""
    path = adapter / STATE_FILE
    if not path.exists():
        return {}
    evaluations = History.from_json(json.loads(path.read_text(encoding="utf-8"))["history"]).evaluations
    return {
        f"step {e.step}": [round(loss, 3) for loss in e.losses] for e in (evaluations[0], evaluations[-1])
    }


def train_classifier(codec: EncodecModel) -> tuple[AttributeClassifier, float, dict[str, object]]:
    """Classifiers, when a beat is clear (`evaluate.py`), and the classifiers' accuracy on held-out loops."""
    classes = {**CLASSES, "instrument": (*INSTRUMENTS, NAME)}
    sets = []
    for count, held_out in ((CLASSIFIER_CLIPS, False), (REFERENCE_CLIPS, True)):
        known = [loop(number, held_out) for number in range(count * len(INSTRUMENTS))]
        # Of the vibraphone other clips than those that the adapter is trained on.
        both = clips(CLASSIFIER_CLIPS + REFERENCE_CLIPS, held_out=True)
        loops = known + (both[-count:] if held_out else both[:count])
        audio = through_codec(codec, np.stack([audio for _, audio in loops]))
        sets.append((list(audio), [attributes for attributes, _ in loops]))
    (examples, labels), (reference, attributes) = sets
    classifier = AttributeClassifier(examples, [a.to_json() for a in labels], classes=classes)
    correct = classifier.is_correct(reference, [a.to_json() for a in attributes])
    beats = [
        beat_peak(clip, a.tempo)
        for clip, a in zip(reference, attributes, strict=True)
        if a.drums != "none" and a.instrument != NAME
    ]
    new = [a.instrument == NAME for a in attributes]
    result = {
        "all": shares(correct),
        NAME: shares({task: values[new] for task, values in correct.items()}),
        f"{NAME}, sound": sound([clip for clip, is_new in zip(reference, new, strict=True) if is_new]),
    }
    print(f"real loops: {json.dumps(result, ensure_ascii=False)}", flush=True)
    return classifier, float(np.percentile(beats, 10)), result


@torch.no_grad()
def through_codec(codec: EncodecModel, audio: np.ndarray) -> np.ndarray:
    """Rendered loops as the codec represents them, float32 `[n, samples]` both."""
    parts = []
    for start in range(0, len(audio), 8):
        codes = codec.encode(torch.tensor(audio[start : start + 8, None])).audio_codes
        parts.append(codec.decode(codes, [None]).audio_values[:, 0])
    return torch.cat(parts).numpy()


def sound(audio: Sequence[np.ndarray]) -> dict[str, object]:
    """What is heard, in numbers: medians of the clips, and faults."""
    whole = np.stack(audio)
    median = {
        "loudness LUFS": [integrated_loudness(clip[None], SAMPLE_RATE) for clip in whole],
        "spectral centroid Hz": [centroid(clip) for clip in whole],
        "onsets per second": [onset_rate(clip) for clip in whole],
        "tremolo at 5 Hz": [tremolo(clip) for clip in whole],
    }
    return {
        **{name: round(float(np.median(values)), 2) for name, values in median.items()},
        "peak": round(float(np.abs(whole).max()), 3),
        "clips with NaN": int((~np.isfinite(whole)).any(axis=1).sum()),
    }


def centroid(audio: np.ndarray) -> float:
    magnitudes = spectrogram(audio, 2048, 1024).mean(axis=1)
    hertz = np.fft.rfftfreq(2048, 1 / SAMPLE_RATE)
    return float((hertz * magnitudes).sum() / magnitudes.sum())


def onset_rate(audio: np.ndarray) -> float:
    """Local maxima of the onset strength above its mean plus a standard deviation, per second."""
    strength = onset_strength(audio)
    middle = strength[1:-1]
    peaks = (middle > strength[:-2]) & (middle >= strength[2:]) & (middle > strength.mean() + strength.std())
    return float(peaks.sum() / (len(audio) / SAMPLE_RATE))


def tremolo(audio: np.ndarray) -> float:
    """The share of the level's modulation from 1 to 15 Hz that is within 0.5 Hz of 5 Hz."""
    level = spectrogram(audio, 1024, 640).sum(axis=0)
    power = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)))) ** 2
    hertz = np.fft.rfftfreq(len(level), 640 / SAMPLE_RATE)
    return float(power[np.abs(hertz - 5) <= 0.5].sum() / power[(hertz >= 1) & (hertz <= 15)].sum())


def plot(
    path: Path, codec: EncodecModel, attributes: list[Attributes], made: dict[str, list[np.ndarray]]
) -> None:
    """A slow clip of the vibraphone alone: one to validate with, and those of the model."""
    import matplotlib.pyplot as plt
    from PIL import Image

    number = next(
        n for n, a in enumerate(attributes) if (a.tempo, a.drums) == ("slow", "none") and not a.bass
    )
    shown = attributes[number]
    similar = next(
        audio
        for a, audio in clips(REFERENCE_CLIPS * 4, held_out=True)
        if (a.tempo, a.mode, a.drums, a.bass) == (shown.tempo, shown.mode, shown.drums, shown.bass)
    )
    panels = {
        "rendered, through the codec": through_codec(codec, similar[None])[0],
        **{f"generated {name}": audio[number] for name, audio in made.items()},
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 8), sharex=True, sharey=True)
    for axis, (name, audio) in zip(axes, panels.items(), strict=True):
        draw(axis, audio, HIGHEST_HERTZ, LOWEST_DB)
        axis.set_title(f"{describe(shown)}: {name}", fontsize=9)
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
