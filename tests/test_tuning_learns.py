"""A training on audio and captions: does the model know the sound afterwards, and by its name?

The demo model learns an instrument that neither its codec nor its language model was trained with. What it
has learned is measured apart from the training's own code: with the text encoder and the language model as
they make music, and with a delay pattern and a loss of the tests' own.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.tuning.codes import encode_dataset
from audiocraft_mlx.tuning.dataset import read_dataset
from audiocraft_mlx.tuning.loop import Evaluation, Step, Trainer
from audiocraft_mlx.tuning.options import TARGETS, LoRAConfig, TrainingOptions
from audiocraft_mlx.tuning.trainable import load_for_training, make_trainable

RATE, HOP, FRAMES, BEAT = 32000, 640, 60, 20
OPTIONS = TrainingOptions(
    lora=LoRAConfig(rank=8, alpha=8.0, dropout=0.0, targets=(*TARGETS, "lm_heads")),
    iters=16,
    batch_size=2,
    micro_batch=2,
    learning_rate=1.5e-2,
    warmup=1,
    condition_dropout=0.1,
    steps_per_eval=0,
)
TRAINED = ((60, 64, 67), (67, 64, 60))
"""The notes of the clips to train on, MIDI keys."""
HELD_OUT = (64, 60, 67)
NEW, KNOWN = "vibraphone", "piano"
PARTIALS = {
    NEW: ((1, 1.0, 0.9), (4, 0.25, 0.3)),
    KNOWN: tuple((n, n**-1.3, 0.7 / n**0.7) for n in range(1, 9)),
}
"""Multiples of a note's frequency, their amplitudes, and the seconds in which they fall to 1/e."""


def note(sound: str, key: int) -> np.ndarray:
    """Decaying partials of a beat's length, float32 `[samples]`."""
    time = np.arange(BEAT * HOP) / RATE
    hertz = 440 * 2 ** ((key - 69) / 12)
    wave = sum(
        amplitude * np.sin(2 * np.pi * multiple * hertz * time) * np.exp(-time / decay)
        for multiple, amplitude, decay in PARTIALS[sound]
    )
    return np.float32(0.2 * wave * np.minimum(1, time / 0.004))


def write_clip(path: Path, sound: str, notes: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, np.concatenate([note(sound, key) for key in notes])[None], RATE)


@dataclass(frozen=True)
class Measured:
    """The losses of a held-out clip of the new sound in nats, float `[K]`.

    Attributes:
        training: as the training reports it.
        own, other: as music is made, with the clip's own name and with the other sound's.
    """

    training: tuple[float, ...]
    own: np.ndarray
    other: np.ndarray


def measure(evaluation: Step | Evaluation, bundle: ModelBundle, codes: np.ndarray) -> Measured:
    assert isinstance(evaluation, Evaluation)
    return Measured(evaluation.losses, *(losses(bundle, codes, caption) for caption in (NEW, KNOWN)))


def losses(bundle: ModelBundle, codes: np.ndarray, caption: str) -> np.ndarray:
    """Of each codebook of `codes` `[K, T]`, the mean of its frames that the first T steps predict."""
    num_codebooks, frames = codes.shape
    steps = np.full((num_codebooks, frames), bundle.lm.special_token_id)
    for k in range(num_codebooks):
        steps[k, 1 + k :] = codes[k, : frames - 1 - k]
    logits = np.array(bundle.lm(mx.array(steps[None]), bundle.text_conditioner.encode([caption]))[0])
    return np.array(
        [
            np.mean(
                [
                    np.logaddexp.reduce(logits[k, t + k]) - logits[k, t + k, codes[k, t]]
                    for t in range(frames - k)
                ]
            )
            for k in range(num_codebooks)
        ]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, Measured]:
    """What was measured before a training and after it."""
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
    model, bundle = load_for_training("demo")
    data = encode_dataset(read_dataset(folder / "data"), model, folder / "cache", FRAMES / model.frame_rate)
    network = make_trainable(model, bundle, OPTIONS).network
    held_out = [crop for crop in data.validation if NEW in crop.source]
    trainer = Trainer(
        network, OPTIONS, data.train, held_out, data.texts, bundle.text_conditioner.t5.config.dim
    )
    events = trainer.run()
    before = measure(next(events), bundle, held_out[0].codes)
    *_, last = events
    assert trainer.step == OPTIONS.iters
    network.eval()
    return before, measure(last, bundle, held_out[0].codes)


def test_the_loss_of_new_music_falls(trained: tuple[Measured, Measured]) -> None:
    before, after = trained
    assert after.own.mean() < before.own.mean() - 1.2
    assert (after.own < before.own - 0.8).all()


def test_its_name_is_learned_with_it(trained: tuple[Measured, Measured]) -> None:
    before, after = trained
    assert before.other.mean() - before.own.mean() < 0.2
    assert after.other.mean() - after.own.mean() > 0.1


@pytest.mark.parametrize("moment", [0, 1])
def test_the_training_reports_the_loss_of_the_model_that_makes_music(
    trained: tuple[Measured, Measured], moment: int
) -> None:
    measured = trained[moment]
    np.testing.assert_allclose(measured.training, measured.own, rtol=1e-3)
