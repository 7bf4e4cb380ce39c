"""Train the codec: `python train_codec.py --steps 3000`. Continues from its checkpoint.

The latents of stems, of each its own part, and those of their mix both have to give the mix, and those of the
mix to be like those of the stems.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import processes
import torch
import torch.nn.functional as F
from codec import CODEBOOKS, CODES, HOP, Codec, SpectralLoss, autocast, si_sdr
from render import mix
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from audiocraft_mlx.files import write_file

BATCH, WINDOW = 2, 48  # clips, frames
KMEANS_AT = 400
REPORT = 100
PEAK_RATE = 1.5e-3
AVERAGE = 0.999
"""Of the weights over the steps: those of one step differ between the phases of a frame, which is a comb."""
COMB_WEIGHT = 0.03
WAVE_WEIGHT = 4.0
"""Of the waveform's error beside the spectra's: SI-SDR is harder to reach than the log-mel distance."""
LIKENESS_WEIGHT = 0.3  # of the mix's latents to the stems'
HELD_OUT = 16  # songs at the end of the pool


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--pool", type=Path, default=Path("work/stems.npy"), help="int16 [songs, stems, samples]"
    )
    parser.add_argument("--begin", type=Path, help="a checkpoint whose networks are the first ones")
    parser.add_argument("--out", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    processes.run(train, arguments.processes, arguments)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    codec, loss = Codec(), SpectralLoss()
    if arguments.begin:
        begun = torch.load(arguments.begin)["codec"]
        codec.load_state_dict({k: v for k, v in begun.items() if k.startswith("encodec.")}, strict=False)
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(
        codec.network_parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    step, elapsed = 0, 0.0
    if arguments.out.exists():
        step, elapsed = resume(arguments.out, codec, average, optimizer)
    leads = processes.number() == 0
    print(f"process {processes.number()} begins at step {step}", flush=True)
    precision = autocast()
    random_ = np.random.default_rng([step, processes.number()])
    pool = np.load(arguments.pool, mmap_mode="r")
    held_out = torch.tensor(pool[-HELD_OUT:, :, : 4 * 32000].astype(np.float32) / 32768)
    latents: list[torch.Tensor] = []
    sums, since = np.zeros(6), time.time()

    while step < arguments.steps:
        step_start = time.time()
        rate = PEAK_RATE * min(1, (step + 1) / 150)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        stems = np.stack([excerpt(pool[:-HELD_OUT], random_) for _ in range(BATCH // processes.count())])
        audio = mixed(stems)
        with precision:
            of_stems = codec.encode_stems(torch.tensor(stems).flatten(0, 1))
            of_mix = codec.encode(audio).float()
            likeness = (of_mix - of_stems.detach()).pow(2).mean() / of_stems.detach().pow(2).mean()
            z = torch.cat([of_stems, of_mix])
            if step >= KMEANS_AT:
                quantized, commitment, _ = codec.quantizer(z, update=True)
            else:  # at first without quantization
                quantized, commitment = z, 0.001 * z.pow(2).mean()
                if step >= KMEANS_AT - 100:
                    latents.append(z.detach().permute(0, 2, 1).reshape(-1, z.shape[1]))
            predicted = codec.decode(quantized)
        total, parts = distance(loss, predicted, audio.repeat(2, 1))
        total = total + LIKENESS_WEIGHT * likeness
        optimizer.zero_grad()
        (total + 0.25 * commitment).backward()
        processes.average_gradients(codec.network_parameters())
        torch.nn.utils.clip_grad_norm_(codec.network_parameters(), 1.0)
        optimizer.step()
        average.update_parameters(codec)
        step += 1
        if step == KMEANS_AT:
            codec.quantizer.init_kmeans(torch.cat(latents))
        processes.share(list(codec.quantizer.buffers()))
        sums += [*parts, commitment.item(), likeness.item()]
        if step > 3:
            elapsed += time.time() - step_start
        if step % REPORT == 0 and leads:
            speed = REPORT * BATCH * WINDOW / 50 / (time.time() - since)
            names = ("mel", "sc", "wave", "comb", "com", "likeness")
            values = " ".join(f"{name} {v / REPORT:.3f}" for name, v in zip(names, sums, strict=True))
            print(
                f"{elapsed / 60:.1f} min, step {step}: {values}; {speed:.1f} s of audio per second",
                flush=True,
            )
            sums, since = np.zeros(6), time.time()
        if step % 500 == 0 and leads:
            report(average.module, loss, held_out)
            save(arguments.out, codec, average.module, optimizer, step, elapsed)
            since = time.time()
    if leads:
        save(arguments.out, codec, average.module, optimizer, step, elapsed)
        report(average.module, loss, held_out)


def excerpt(pool: np.ndarray, random_: np.random.Generator) -> np.ndarray:
    """Float32 `[STEMS, WINDOW * HOP]` of a song, not silent."""
    while True:
        start = random_.integers(0, pool.shape[2] - WINDOW * HOP + 1)
        stems = pool[random_.integers(0, len(pool)), :, start : start + WINDOW * HOP]
        if np.abs(stems).max() > 300:
            return stems.astype(np.float32) / 32768


def mixed(stems: np.ndarray) -> torch.Tensor:
    """Float32 `[B, samples]` of stems `[B, STEMS, samples]`."""
    return torch.tensor(np.stack([mix(each) for each in stems]))


def distance(
    loss: SpectralLoss, predicted: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """What is minimized, of audio `[B, samples]`; and its parts: log-mel, spectral, waveform and comb."""
    parts = (*loss(predicted, target), comb_loss(predicted, target))
    mel, spectral, wave, comb = parts
    total = mel + spectral + WAVE_WEIGHT * wave + COMB_WEIGHT * comb
    return total, [part.item() for part in parts]


def comb_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far the error's lines at multiples of 50 Hz stand out of the target's spectrum; `[B, samples]`.

    The logarithm of 1 + it, which is log 2 for noise like the target: at first it is in the thousands, and
    its gradient would be all that counts.
    """
    error, frames = (x.unflatten(1, (-1, HOP)) for x in (predicted - target, target))
    lines = torch.fft.rfft(error.mean(1)).abs().pow(2) * frames.shape[1]
    window = torch.hann_window(HOP)
    level = torch.fft.rfft(frames * window).abs().pow(2).mean(1) / window.pow(2).mean()
    level = F.avg_pool1d(level, 9, 1, 4, count_include_pad=False)
    return torch.log1p((lines / (level + (HOP / 2 * SpectralLoss.FLOOR) ** 2)).mean())


@torch.no_grad()
def report(codec: Codec, loss: SpectralLoss, stems: torch.Tensor) -> None:
    """Of stems `[B, STEMS, samples]`."""
    audio = mixed(stems.numpy())
    codes = []
    for name, latents in (
        ("stems", codec.encode_stems(stems.flatten(0, 1))),
        ("mix", codec.encode(audio).float()),
    ):
        quantized, _, chosen = codec.quantizer(latents)
        predicted = codec.decode(quantized)
        mel, _, _ = loss(predicted, audio)
        used = [len(torch.unique(chosen[:, k])) for k in range(CODEBOOKS)]
        print(
            f"  held out, {name}: SI-SDR {si_sdr(predicted, audio).median():.2f} dB, log-mel {mel:.3f} nats,"
            f" codes used {used} of {CODES}",
            flush=True,
        )
        codes.append(chosen)
    same = (codes[0] == codes[1]).float().mean((0, 2))
    print(f"  share of the mix's codes that are the stems': {np.round(same.numpy(), 2)}", flush=True)


def resume(
    path: Path, codec: Codec, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Take up what `save` wrote: its step, and the seconds until then."""
    saved = torch.load(path)
    codec.load_state_dict(saved["last"])
    average.module.load_state_dict(saved["codec"])
    average.n_averaged.fill_(saved["step"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["elapsed"]


def save(
    path: Path, codec: Codec, average: Codec, optimizer: torch.optim.Optimizer, step: int, elapsed: float
) -> None:
    state = {
        "codec": average.state_dict(),
        "last": codec.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed": elapsed,
    }
    write_file(path, lambda file: torch.save(state, file))


if __name__ == "__main__":
    main()
