"""Train text encoder and language model: `python train_lm.py --minutes 40`. Goes on from its checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import caption
from codec import CODEBOOKS, CODES, autocast
from compose import Attributes
from model import make_model
from transformers import PreTrainedTokenizerFast

PEAK_RATE = 3e-3
CONDITION_DROPOUT = 0.15
BOOK_WEIGHTS = (1.6, 1.0, 0.8, 0.6)
# The words decide the first frames; what follows can be copied from there, and would drown them out.
EARLY_FRAMES, EARLY_WEIGHT = 48, 12.0


class Trainer:
    def __init__(self, codes: Path, tokenizer: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        self.model = make_model(len(self.tokenizer), dropout=0.0)
        arrays = np.load(codes)
        self.sets = {
            name: (
                torch.tensor(arrays[name]).long(),
                [Attributes(**a) for a in json.loads(str(arrays[f"{name}_attributes"]))],
            )
            for name in ("train", "held_out")
        }

    def parameters(self) -> list[torch.nn.Parameter]:
        parts = (self.model.decoder, self.model.text_encoder, self.model.enc_to_dec_proj)
        return [parameter for part in parts for parameter in part.parameters()]

    def losses(
        self, codes: torch.Tensor, captions: list[str], dropped: float, early_weight: float = 1.0
    ) -> list[torch.Tensor]:
        """Cross-entropy (nats) of each codebook for codes `[B, K, T]`, the first frames weighted."""
        batch, _, frames = codes.shape
        steps = frames + CODEBOOKS - 1
        targets = torch.full((batch, CODEBOOKS, steps), CODES)
        for k in range(CODEBOOKS):
            targets[:, k, k : k + frames] = codes[:, k]
        inputs = torch.cat([torch.full((batch, CODEBOOKS, 1), CODES), targets[:, :, :-1]], 2)
        text = self.tokenizer(captions, padding=True, return_tensors="pt")
        hidden = self.model.text_encoder(
            input_ids=text.input_ids, attention_mask=text.attention_mask
        ).last_hidden_state
        hidden = self.model.enc_to_dec_proj(hidden) * text.attention_mask[..., None]
        if dropped:
            hidden = hidden * (torch.rand(batch, 1, 1) > dropped)
        logits = self.model.decoder(
            input_ids=inputs.reshape(batch * CODEBOOKS, steps),
            encoder_hidden_states=hidden,
            encoder_attention_mask=text.attention_mask,
            use_cache=False,
        ).logits.view(batch, CODEBOOKS, steps, CODES)
        weights = torch.ones(frames)
        weights[:EARLY_FRAMES] = early_weight
        return [
            (
                F.cross_entropy(
                    logits[:, k, k : k + frames].transpose(1, 2).float(), codes[:, k], reduction="none"
                )
                * weights
            ).mean()
            / weights.mean()
            for k in range(CODEBOOKS)
        ]

    @torch.no_grad()
    def report(self) -> None:
        codes, attributes = (part[:48] for part in self.sets["held_out"])
        self.model.eval()
        rows = []
        for told in (attributes, attributes[1:] + attributes[:1]):
            random_ = random.Random(3)
            rows.append(
                [loss.item() for loss in self.losses(codes, [caption(a, random_) for a in told], 0.0)]
            )
        self.model.train()
        misled = np.mean(rows[1]) - np.mean(rows[0])
        print(
            f"  held out, nats by book: {np.round(rows[0], 3)}; with a wrong text {misled:+.3f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--codes", type=Path, default=Path("work/codes.npz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("work/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("work/lm.pt"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)

    trainer = Trainer(arguments.codes, arguments.tokenizer)
    model, parameters = trainer.model, trainer.parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
    )
    step, elapsed = 0, 0.0
    if arguments.out.exists():
        saved = torch.load(arguments.out)
        model.load_state_dict(saved["model"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        step, elapsed = saved["step"], saved["elapsed"]
        print(f"going on at step {step}")
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters")
    precision = autocast()
    random_ = random.Random(step)
    codes, attributes = trainer.sets["train"]
    sums, since, counted = np.zeros(CODEBOOKS), time.time(), 0
    model.train()
    while elapsed < 60 * arguments.minutes:
        began = time.time()
        progress = min(1, elapsed / (60 * arguments.minutes))
        rate = PEAK_RATE * min(1, (step + 1) / 150) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = [random_.randrange(len(codes)) for _ in range(arguments.batch)]
        told = [caption(attributes[row], random_) for row in rows]
        with precision:
            losses = trainer.losses(codes[rows], told, CONDITION_DROPOUT, EARLY_WEIGHT)
        optimizer.zero_grad()
        (sum(w * loss for w, loss in zip(BOOK_WEIGHTS, losses, strict=True)) / CODEBOOKS).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        counted += 1
        elapsed += time.time() - began
        sums += [loss.item() for loss in losses]
        if step % 100 == 0:
            speed = counted * arguments.batch * codes.shape[2] / (time.time() - since)
            print(
                f"{elapsed / 60:.1f} min, step {step}: nats by book {np.round(sums / counted, 3)};"
                f" {speed:.0f} frames a second",
                flush=True,
            )
            sums, since, counted = np.zeros(CODEBOOKS), time.time(), 0
        if step % 500 == 0:
            trainer.report()
            save(arguments.out, model, optimizer, step, elapsed)
    save(arguments.out, model, optimizer, step, elapsed)
    trainer.report()


def save(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, elapsed: float
) -> None:
    kept = {
        name: value for name, value in model.state_dict().items() if not name.startswith("audio_encoder.")
    }
    state = {"model": kept, "optimizer": optimizer.state_dict(), "step": step, "elapsed": elapsed}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
