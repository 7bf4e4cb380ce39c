"""Train LoRA on a dozen clips of an instrument that the demo model doesn't know: `python train_adapter.py`

It writes the clips (`vibraphone.py`) to `work/adapter/data`, and an adapter in PEFT's format to
`work/adapter/vibraphone`. `evaluate_adapter.py` says what it learned and forgot.

Trained on these clips alone the model makes a vibraphone of every instrument. So clips of the other
instruments are among them, which it makes itself, from captions of its own training: that takes no other data
(the prior preservation of DreamBooth, Ruiz et al. 2023).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from captions import caption
from compose import INSTRUMENTS, draw_attributes
from vibraphone import write_clip, write_clips

from audiocraft_mlx import MusicGen
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.tuning.codes import encode_dataset
from audiocraft_mlx.tuning.dataset import describe, read_dataset
from audiocraft_mlx.tuning.loop import Evaluation, Trainer
from audiocraft_mlx.tuning.lora import TARGETS, LoRAConfig, LoRALinear, Place, add_lora, lm_places
from audiocraft_mlx.tuning.network import TrainedNetwork
from audiocraft_mlx.tuning.options import TrainingOptions

MODEL, WORK = "demo", Path("work/adapter")
ADAPTER = WORK / "vibraphone"
CROP_SECONDS = 8.0
KNOWN_CLIPS = 28
"""Of the instruments that the model knows, made by itself."""
OPTIONS = TrainingOptions(
    # The heads too: some of the new sound's codes were in none of the sounds that the model was trained on.
    lora=LoRAConfig(rank=16, alpha=16, dropout=0.0, targets=(*TARGETS, "lm_heads")),
    iters=80,
    batch_size=4,
    micro_batch=4,
    learning_rate=6e-3,
    warmup=5,
    condition_dropout=0.2,
    steps_per_eval=20,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=ADAPTER)
    arguments = parser.parse_args()
    train(arguments.work, arguments.out)


def train(work: Path, folder: Path) -> None:
    """Train on the clips in `work/data`, which are written first, and write the adapter to `folder`."""
    model = MusicGen.get_pretrained(MODEL)
    write_clips(work / "data")
    write_known_clips(work / "data" / "train", model)
    dataset = read_dataset(work / "data")
    print("\n".join(describe(dataset)), flush=True)
    encoded = encode_dataset(dataset, model, work / "cache", CROP_SECONDS)
    bundle = load(MODEL, lazy=True)
    lora = OPTIONS.lora
    assert lora is not None
    mx.random.seed(OPTIONS.seed)
    config = bundle.lm.config
    places = add_lora(bundle.lm, lm_places(config.num_layers, config.num_codebooks, True), lora)
    projection = bundle.text_conditioner.output_proj
    projection.freeze()
    network = TrainedNetwork(bundle.lm, projection)
    text_dim = bundle.text_conditioner.t5.config.dim
    trainer = Trainer(network, OPTIONS, encoded.train, encoded.validation, encoded.texts, text_dim)
    start, cpu = time.perf_counter(), time.process_time()
    losses: dict[int, list[float]] = {}
    for event in trainer.run():
        if isinstance(event, Evaluation):
            losses[event.step] = [round(loss, 3) for loss in event.losses]
            print(f"step {event.step}: held-out loss {losses[event.step]}", flush=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    write_adapter(folder, network.lm, places, lora)
    result = {"held-out loss": losses, "seconds": round(seconds), "CPU seconds": round(cpu)}
    (folder / "training.json").write_text(json.dumps(result))
    print(json.dumps(result), flush=True)


def write_known_clips(folder: Path, model: MusicGen) -> None:
    random_ = random.Random(4)
    captions = [
        caption(replace(draw_attributes(random_), instrument=INSTRUMENTS[n % len(INSTRUMENTS)]), random_)
        for n in range(KNOWN_CLIPS)
    ]
    for start in range(0, KNOWN_CLIPS, 8):
        model.set_generation_params(duration=CROP_SECONDS, cfg_coef=model.guidance.coef, seed=start)
        texts = captions[start : start + 8]
        clips = np.array(model.generate(texts))
        for number, (text, audio) in enumerate(zip(texts, clips, strict=True), start):
            write_clip(folder / f"known{number:02}.wav", audio[0], text)


def write_adapter(folder: Path, lm: object, places: Sequence[Place], lora: LoRAConfig) -> None:
    """In PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(peft_tensors(lm, places))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": MODEL,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted({name.split(".lora_")[0].split("model.", 1)[1] for name in tensors}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def peft_tensors(lm: object, places: Sequence[Place]) -> Iterator[tuple[str, mx.array]]:
    for place in places:
        layer = lm
        for part in place.path.split("."):
            layer = layer[int(part)] if isinstance(layer, list) else layer[part]
        assert isinstance(layer, LoRALinear)
        modules = [module for module, adapted in zip(place.modules, layer.adapted, strict=True) if adapted]
        for index, module in enumerate(modules):
            yield f"base_model.model.{module}.lora_A.weight", layer.lora_a[index]
            yield f"base_model.model.{module}.lora_B.weight", layer.lora_b[index]


if __name__ == "__main__":
    main()
