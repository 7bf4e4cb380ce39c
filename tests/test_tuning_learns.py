"""A training on audio and captions: does the model know the sound afterwards, and by its name?

The demo model learns an instrument that neither its codec nor its language model was trained with. What it has
learned is measured apart from the training's own code: with the text encoder and the language model as they make
music, and a delay pattern and a loss of the tests.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.tuning.codes import encode_dataset
from audiocraft_mlx.tuning.dataset import read_dataset
from audiocraft_mlx.tuning.loop import Step, Trainer
from audiocraft_mlx.tuning.lora import TARGETS, LoRAConfig, add_lora, lm_places
from audiocraft_mlx.tuning.network import TrainedNetwork
from audiocraft_mlx.tuning.options import TrainingOptions

RATE, HOP, FRAMES, BEAT = 32000, 640, 60, 20
OPTIONS = TrainingOptions(
    lora=LoRAConfig(rank=8, alpha=8.0, dropout=0.0, targets=(*TARGETS, "lm_heads")),
    iters=16,
    batch_size=2,
    micro_batch=2,
    learning_rate=1.5e-2,
    warmup=1,
    condition_dropout=0.1,
)
TRAINED = ((300, 330, 390), (390, 330, 300))
"""The notes of the clips to train on, in Hz."""
HELD_OUT = (330, 300, 390)
NEW, KNOWN = "vibraphone", "piano"


def note(sound: str, hertz: float) -> np.ndarray:
    """A beat of `sound`, float `[samples]`, as `training/synth.py` has it."""
    time = np.arange(BEAT * HOP) / RATE
    if sound == NEW:
        wave = np.sin(2 * np.pi * hertz * time) * np.exp(-time / 0.9)
        wave += 0.25 * np.sin(8 * np.pi * hertz * time) * np.exp(-time / 0.3)
        return 0.2 * wave * (0.6 + 0.4 * np.cos(10 * np.pi * time))
    partials = (
        n**-1.3 * np.sin(2 * np.pi * n * hertz * time) * np.exp(-time * n**0.7 / 0.7) for n in range(1, 9)
    )
    return 0.18 * sum(partials)


def write_clip(path: Path, sound: str, notes: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = np.concatenate([note(sound, hertz) for hertz in notes])
    write_audio(path, audio.astype(np.float32)[None], RATE)


@dataclass(frozen=True)
class Measured:
    """Mean losses in nats of a held-out clip of the new sound, with its own name and with the other's."""

    own: float
    other: float


def measure(bundle: ModelBundle, codes: np.ndarray) -> Measured:
    return Measured(*(loss(bundle, codes, caption) for caption in (NEW, KNOWN)))


def loss(bundle: ModelBundle, codes: np.ndarray, caption: str) -> float:
    """Of the codes `[K, T]` that differ from the ones before: one that is repeated says little of the next."""
    delays = range(len(codes))
    steps = np.full((len(codes), codes.shape[1] + len(codes)), bundle.lm.special_token_id)
    for k in delays:
        steps[k, 1 + k : 1 + k + codes.shape[1]] = codes[k]
    logits = np.array(bundle.lm(mx.array(steps[None, :, :-1]), bundle.text_conditioner.encode([caption]))[0])
    losses = [
        np.logaddexp.reduce(logits[k, t + k]) - logits[k, t + k, codes[k, t]]
        for k in delays
        for t in range(1, codes.shape[1])
        if codes[k, t] != codes[k, t - 1]
    ]
    return float(np.mean(losses))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Step], Measured, Measured]]:
    """The steps of a training, and what was measured before and after it."""
    folder = tmp_path_factory.mktemp("learns")
    rows = [("file_name", "text")]
    for sound in (NEW, KNOWN):
        for split, melodies in (("train", TRAINED), ("validation", (HELD_OUT,))):
            for number, notes in enumerate(melodies):
                name = f"{split}/{sound}{number}.wav"
                write_clip(folder / "data" / name, sound, notes)
                rows.append((name, sound))
    with (folder / "data" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    model = MusicGen.get_pretrained("demo")
    data = encode_dataset(read_dataset(folder / "data"), model, folder / "cache", FRAMES * HOP / RATE)
    bundle = load("demo", lazy=True)
    config, conditioner = bundle.lm.config, bundle.text_conditioner
    assert OPTIONS.lora is not None
    mx.random.seed(0)
    add_lora(bundle.lm, lm_places(config.num_layers, config.num_codebooks, True), OPTIONS.lora)
    conditioner.output_proj.freeze()
    network = TrainedNetwork(bundle.lm, conditioner.output_proj)
    trainer = Trainer(network, OPTIONS, data.train, (), data.texts, conditioner.t5.config.dim)
    held_out = next(crop.codes for crop in data.validation if NEW in crop.source)
    before = measure(bundle, held_out)
    steps = [event for event in trainer.run() if isinstance(event, Step)]
    network.eval()
    yield steps, before, measure(bundle, held_out)


def test_the_loss_of_new_music_falls(trained: tuple[list[Step], Measured, Measured]) -> None:
    steps, before, after = trained
    assert len(steps) == OPTIONS.iters
    assert after.own < before.own - 2.5


def test_the_text_is_learned_with_it(trained: tuple[list[Step], Measured, Measured]) -> None:
    _, before, after = trained
    assert before.other - before.own < 0.5
    assert after.other - after.own > 1.0
