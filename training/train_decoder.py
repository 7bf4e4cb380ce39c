"""Train the codec's decoder on: `python train_decoder.py --steps 2000` → work/decoder.pt. Continues from it.

Encoder and codebooks stay as they are, so that songs that are encoded keep their codes.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import processes
import torch
from codec import Codec, SpectralLoss, autocast
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_codec import AVERAGE, BATCH, HELD_OUT, REPORT, distance, excerpt, mixed, report, resume, save

PEAK_RATE = 7e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--pool", type=Path, default=Path("work/stems.npy"), help="int16 [songs, stems, samples]"
    )
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--out", type=Path, default=Path("work/decoder.pt"))
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    arguments = parser.parse_args()
    processes.run(train, arguments.processes, arguments)


def train(arguments: argparse.Namespace) -> None:
    codec, loss = Codec(), SpectralLoss()
    codec.load_state_dict(torch.load(arguments.codec)["codec"])
    parameters = list(codec.encodec.decoder.parameters())
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    step, elapsed = 0, 0.0
    if arguments.out.exists():
        step, elapsed = resume(arguments.out, codec, average, optimizer)
    number = processes.number()
    random_ = np.random.default_rng([1, step, number])
    pool = np.load(arguments.pool, mmap_mode="r")
    held_out = torch.tensor(pool[-HELD_OUT:, :, : 4 * 32000].astype(np.float32) / 32768)
    started = time.time()
    sums, begun = np.zeros(4), started
    while step < arguments.steps:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        optimizer.param_groups[0]["lr"] = rate
        clips = BATCH // processes.count()
        stems = np.stack([excerpt(pool[:-HELD_OUT], random_) for _ in range(clips)])
        audio = mixed(stems)
        with autocast():
            with torch.no_grad():
                of_stems = codec.encode_stems(torch.tensor(stems).flatten(0, 1))
                latents = torch.cat([of_stems, codec.encode(audio).float()])
                quantized = codec.quantizer(latents)[0]
            predicted = codec.decode(quantized)
            audio = audio.repeat(2, 1)
        total, parts = distance(loss, predicted, audio)
        optimizer.zero_grad()
        total.backward()
        processes.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(codec)
        step += 1
        sums += parts
        if step % REPORT == 0 and number == 0:
            print(f"step {step}: {np.round(sums / REPORT, 3)}; {time.time() - begun:.0f} s", flush=True)
            sums, begun = np.zeros(4), time.time()
        if (step % 500 == 0 or step == arguments.steps) and number == 0:
            report(average.module, loss, held_out)
            save(arguments.out, codec, average.module, optimizer, step, elapsed + time.time() - started)


if __name__ == "__main__":
    main()
