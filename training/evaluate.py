"""Does the demo model follow its prompts, and how good is its codec? `python evaluate.py`

Classifiers are trained on rendered loops through the codec. Their accuracy on held-out loops is the reference
for the share of generated clips that they classify as prompted; the prompts have wordings that don't occur in
training.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from captions import unseen_caption
from codec import SpectralLoss, si_sdr
from compose import FRAMES_PER_BEAT, INSTRUMENTS, SCALES, Attributes
from loops import loop
from metrics import AttributeClassifier, beat_peak
from transformers import MusicgenForConditionalGeneration
from write_checkpoint import DEMO

from audiocraft_mlx import MusicGen

HELD_OUT_CLIPS = 96
CLASSIFIER_CLIPS = 420


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--codes", type=Path, default=Path("work/codes.npz"))
    parser.add_argument("--clips", type=int, default=63)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 3.0, 5.0])
    parser.add_argument("--out", type=Path, default=Path("work/evaluation.json"))
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--temperature", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model = MusicGen.get_pretrained(str(arguments.model))
    renders = Renders(arguments.model, arguments.codes)
    decoded, attributes = renders.decoded("held_out", HELD_OUT_CLIPS)
    rendered = np.stack([loop(number, held_out=True)[1] for number in range(HELD_OUT_CLIPS)])
    codec = {
        "SI-SDR median dB": round(si_sdr(torch.tensor(decoded), torch.tensor(rendered)).median().item(), 2),
        "log-mel nats": round(SpectralLoss()(torch.tensor(decoded), torch.tensor(rendered))[0].item(), 3),
    }
    print(json.dumps(codec), flush=True)
    examples, labels = renders.decoded("train", CLASSIFIER_CLIPS)
    classifier = AttributeClassifier(list(examples), labels)
    reference = shares(classifier.is_correct(list(decoded), attributes))
    peaks = [
        beat_peak(clip, str(a["tempo"]))
        for clip, a in zip(decoded, attributes, strict=True)
        if a["drums"] != "none"
    ]
    clear_beat = float(np.percentile(peaks, 10))
    print("held-out loops:", reference, flush=True)
    result: dict[str, object] = {"codec": codec, "held out": reference}

    for guidance in [model.guidance.coef, *arguments.guidance]:
        name = f"guidance {guidance:g}"
        result[name] = evaluate(model, classifier, clear_beat, guidance, arguments)
        print(f"{name}: {json.dumps(result[name], ensure_ascii=False)}", flush=True)
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))


class Renders:
    """Rendered loops after the model's codec: decoded from the codes that `encode.py` wrote."""

    def __init__(self, folder: Path, codes: Path) -> None:
        model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.codec = model.audio_encoder.eval()
        self.codes = np.load(codes)

    @torch.no_grad()
    def decoded(self, name: str, count: int) -> tuple[np.ndarray, list[dict[str, object]]]:
        """The first `count` loops of the set `name`, float32 `[count, samples]`, and their attributes."""
        codes = torch.tensor(self.codes[name][:count]).long()
        parts = [
            self.codec.decode(codes[None, start : start + 8], [None]).audio_values[:, 0]
            for start in range(0, count, 8)
        ]
        return torch.cat(parts).numpy(), json.loads(str(self.codes[f"{name}_attributes"]))[:count]


def prompt_attributes(count: int) -> list[Attributes]:
    """Every combination of instrument, tempo and mode in turn, drums in half of them."""
    random_ = random.Random(11)
    grid = [(i, t, m) for m in SCALES for t in FRAMES_PER_BEAT for i in INSTRUMENTS]
    random_.shuffle(grid)
    return [
        Attributes(i, t, m, random_.choice(("none", "none", "rock", "dance")), random_.random() < 0.5)
        for i, t, m in (grid * (count // len(grid) + 1))[:count]
    ]


def evaluate(
    model: MusicGen,
    classifier: AttributeClassifier,
    clear_beat: float,
    guidance: float,
    arguments: argparse.Namespace,
) -> dict:
    attributes = prompt_attributes(arguments.clips)
    sampling = {"top_k": arguments.top_k, "temperature": arguments.temperature}
    start_time = time.time()
    clips = generate_clips(model, attributes, guidance, sampling)
    seconds = (time.time() - start_time) / len(attributes)
    return {**rate(clips, attributes, classifier, clear_beat), "seconds per clip": round(seconds, 2)}


def generate_clips(
    model: MusicGen,
    attributes: list[Attributes],
    guidance: float,
    sampling: dict[str, float | None],
) -> list[np.ndarray]:
    """A clip of 8 s, float32 `[samples]`, for each of `attributes`, with captions not in training."""
    random_ = random.Random(12)
    prompts = [unseen_caption(a, random_) for a in attributes]
    clips: list[np.ndarray] = []
    for start in range(0, len(prompts), 8):
        model.set_generation_params(duration=8.0, cfg_coef=guidance, seed=start, **sampling)
        clips += list(np.array(model.generate(prompts[start : start + 8]))[:, 0])
    return clips


def rate(
    clips: list[np.ndarray],
    attributes: list[Attributes],
    classifier: AttributeClassifier,
    clear_beat: float,
) -> dict[str, object]:
    correct = shares(classifier.is_correct(clips, [a.to_json() for a in attributes]))
    beats = [
        beat_peak(clip, a.tempo) > clear_beat
        for clip, a in zip(clips, attributes, strict=True)
        if a.drums != "none"
    ]
    peaks = np.array([np.abs(clip).max() for clip in clips])
    level = np.array([np.sqrt((clip**2).mean()) for clip in clips])
    return {
        **correct,
        "clear beat": share(np.array(beats)),
        "silent": int((level < 1e-3).sum()),
        "clipped": int((peaks > 1.0).sum()),
        "constant": int(sum(np.ptp(clip) < 1e-3 for clip in clips)),
    }


def shares(correct: dict[str, np.ndarray]) -> dict[str, str]:
    return {task: share(values) for task, values in correct.items()}


def share(correct: np.ndarray) -> str:
    """The share of True in `correct` with its standard error."""
    p = correct.mean()
    return f"{p:.2f} ± {np.sqrt(p * (1 - p) / len(correct)):.2f}"


if __name__ == "__main__":
    main()
