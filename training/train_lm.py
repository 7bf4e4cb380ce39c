"""Train text encoder and language model: `python train_lm.py`. Continues from its checkpoint.

The loops repeat, and a model that copies the codes of two bars earlier has a low loss without using the text.
Three things make it use the text: the input codes are partly corrupted (so that text and position predict
better than copying, and the model's own mistakes matter less in generation), frames that only the text
determines have a larger weight, and most batches end before the loop's first repeat.
"""

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
from compose import DRUMS, FRAMES_PER_BEAT, INSTRUMENTS, SCALES, Attributes, draw_attributes
from model import make_model
from transformers import PreTrainedTokenizerFast

PEAK_RATE = 3e-3
CONDITION_DROPOUT = 0.15
CODEBOOK_WEIGHTS = (1.6, 1.0, 0.8, 0.6)
# Frames that can be copied from two bars earlier have a small weight. The codes of a held note repeat every
# PERIOD frames; at the boundaries, where the next beat may begin, the weight is large, and at the very first
# frame largest.
FIRST_WEIGHT, BOUNDARY_WEIGHT, PERIOD, REPEAT_WEIGHT = 40.0, 4.0, 10, 0.3
LOOKAHEAD = 3  # frames before a boundary whose codes already depend on what follows: the codec isn't causal
# (clips, frames) of a batch, and its probability.
BATCHES = (((10, 176), 0.6), ((5, 400), 0.4))


# Classes of the attributes in a caption, predicted from the text alone: the text encoder learns them early.
ATTRIBUTES = {
    "instrument": INSTRUMENTS,
    "tempo": tuple(FRAMES_PER_BEAT),
    "mode": tuple(SCALES),
    "drums": DRUMS,
    "bass": (False, True),
}
PRETRAINING_STEPS, ATTRIBUTE_WEIGHT = 1500, 0.2


class Trainer:
    def __init__(self, codes: Path, tokenizer: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        self.model = make_model(len(self.tokenizer), dropout=0.0)
        width = self.model.decoder.config.hidden_size
        # Not a part of the model: they only train its text encoder.
        self.attribute_heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, len(classes)) for name, classes in ATTRIBUTES.items()}
        )
        arrays = np.load(codes)
        self.sets = {
            name: (
                torch.tensor(arrays[name]).long(),
                [Attributes(**a) for a in json.loads(str(arrays[f"{name}_attributes"]))],
            )
            for name in ("train", "held_out")
        }

    def parameters(self) -> list[torch.nn.Parameter]:
        modules = (
            self.model.decoder,
            self.model.text_encoder,
            self.model.enc_to_dec_proj,
            self.attribute_heads,
        )
        return [parameter for module in modules for parameter in module.parameters()]

    def encode_captions(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states for cross-attention, `[B, L, width]`, and their mask `[B, L]`."""
        text = self.tokenizer(captions, padding=True, return_tensors="pt")
        hidden = self.model.text_encoder(
            input_ids=text.input_ids, attention_mask=text.attention_mask
        ).last_hidden_state
        return self.model.enc_to_dec_proj(hidden) * text.attention_mask[..., None], text.attention_mask

    def attribute_loss(
        self, hidden: torch.Tensor, mask: torch.Tensor, attributes: list[Attributes]
    ) -> torch.Tensor:
        """Cross-entropy of the attributes, predicted from the mean of the hidden states."""
        mean = hidden.sum(1) / mask.sum(1, keepdim=True)
        losses = [
            F.cross_entropy(
                self.attribute_heads[name](mean),
                torch.tensor([classes.index(getattr(a, name)) for a in attributes]),
            )
            for name, classes in ATTRIBUTES.items()
        ]
        return torch.stack(losses).sum()

    def losses(
        self,
        codes: torch.Tensor,
        input_codes: torch.Tensor,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Cross-entropy (nats) `[B, K, T]` of codes `[B, K, T]`, given `input_codes` as the past.

        `dropout` is the probability of a clip without condition.
        """
        batch, _, frames = codes.shape
        steps = frames + CODEBOOKS - 1
        inputs = torch.full((batch, CODEBOOKS, steps), CODES)
        for k in range(CODEBOOKS):
            inputs[:, k, k + 1 : k + 1 + frames] = input_codes[:, k, : steps - k - 1]
        if dropout:
            hidden = hidden * (torch.rand(batch, 1, 1) > dropout)
        logits = self.model.decoder(
            input_ids=inputs.reshape(batch * CODEBOOKS, steps),
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            use_cache=False,
        ).logits.view(batch, CODEBOOKS, steps, CODES)
        logits = torch.stack([logits[:, k, k : k + frames] for k in range(CODEBOOKS)], 1)
        return F.cross_entropy(logits.permute(0, 3, 1, 2).float(), codes, reduction="none")

    @torch.no_grad()
    def report(self) -> None:
        codes, correct = (part[:48] for part in self.sets["held_out"])
        self.model.eval()
        means, first = [], []
        for attributes in (correct, correct[1:] + correct[:1]):
            random_ = random.Random(3)
            captions = [caption(a, random_) for a in attributes]
            losses = self.losses(codes, codes, *self.encode_captions(captions))
            means.append(losses.mean((0, 2)).numpy())
            first.append(losses[:, :, 0].mean(0).numpy())
        self.model.train()
        difference = np.mean(means[1]) - np.mean(means[0])
        print(
            f"  held out, nats by codebook: {np.round(means[0], 3)}, first frame {np.round(first[0], 2)};"
            f" with another loop's caption {difference:+.3f}, first frame {np.round(first[1], 2)}",
            flush=True,
        )


def corrupt_codes(codes: torch.Tensor, random_: np.random.Generator) -> torch.Tensor:
    """Codes `[B, K, T]` with random codes (in none, some or all frames of a clip) and parts of another clip.

    A clip of random codes only is predicted from text and position alone, which is how the model learns them.
    """
    batch, _, frames = codes.shape
    kind = random_.choice(3, batch, p=(0.25, 0.5, 0.25))
    share = np.select([kind == 0, kind == 1], [0.0, random_.uniform(0, 0.5, batch)], 1.0)
    replaced = torch.tensor(random_.random(codes.shape) < share[:, None, None])
    corrupted = torch.where(replaced, torch.tensor(random_.integers(0, CODES, codes.shape)), codes)
    others = codes.roll(1, 0)
    for row in np.flatnonzero(random_.random(batch) < 0.4):
        start = random_.integers(0, frames)
        span = slice(start, start + random_.integers(4, 80))
        corrupted[row, :, span] = others[row, :, span]
    return corrupted


def frame_weights(attributes: list[Attributes], frames: int) -> torch.Tensor:
    """Weights of the frames in the loss, `[B, 1, frames]`, with mean 1 for each clip."""
    result = torch.ones(len(attributes), 1, frames)
    frame = torch.arange(frames) % PERIOD
    result[:, :, (frame == 0) | (frame >= PERIOD - LOOKAHEAD)] = BOUNDARY_WEIGHT
    result[:, :, 0] = FIRST_WEIGHT
    for row, clip in enumerate(attributes):
        result[row, :, 8 * FRAMES_PER_BEAT[clip.tempo] :] *= REPEAT_WEIGHT
    return result / result.mean(2, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--codes", type=Path, default=Path("work/codes.npz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("work/tokenizer"))
    parser.add_argument("--begin", type=Path, help="checkpoint to initialize the decoder from")
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
    first = 0
    if arguments.out.exists():
        saved = torch.load(arguments.out)
        model.load_state_dict(saved["model"], strict=False)
        trainer.attribute_heads.load_state_dict(saved["attribute_heads"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        print(f"continuing at step {first}")
    else:
        if arguments.begin is not None:
            saved = torch.load(arguments.begin)["model"]
            model.load_state_dict({n: v for n, v in saved.items() if n.startswith("decoder.")}, strict=False)
        pretrain_text_encoder(trainer)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters")
    precision = autocast()
    all_codes, all_attributes = trainer.sets["train"]
    codebook_weights = torch.tensor(CODEBOOK_WEIGHTS)[:, None] / CODEBOOKS
    sums, report_time = np.zeros(CODEBOOKS), time.time()
    model.train()
    for step in range(first, arguments.steps):
        rate = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate * min(1, (step + 1) / 150)
        random_ = np.random.default_rng(step)
        (batch, frames), _ = BATCHES[
            random_.choice(len(BATCHES), p=[probability for _, probability in BATCHES])
        ]
        rows = random_.integers(0, len(all_codes), batch)
        attributes = [all_attributes[row] for row in rows]
        codes = all_codes[rows, :, :frames]
        wordings = random.Random(step)
        with precision:
            hidden, mask = trainer.encode_captions([caption(a, wordings) for a in attributes])
            input_codes = corrupt_codes(codes, random_)
            losses = trainer.losses(codes, input_codes, hidden, mask, CONDITION_DROPOUT)
            attribute_loss = trainer.attribute_loss(hidden, mask, attributes)
        optimizer.zero_grad()
        weighted = losses * frame_weights(attributes, frames) * codebook_weights
        loss = weighted.sum(1).mean() + ATTRIBUTE_WEIGHT * attribute_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums += losses.detach().mean((0, 2)).numpy()
        if (step + 1) % 100 == 0:
            seconds, report_time = time.time() - report_time, time.time()
            print(f"step {step + 1}: nats by codebook {np.round(sums / 100, 3)}; {seconds:.0f} s", flush=True)
            sums[:] = 0
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            trainer.report()
            save(arguments.out, trainer, optimizer, step + 1)


def pretrain_text_encoder(trainer: Trainer) -> None:
    """Train the text encoder alone on the attributes: a minute that saves hours of joint training."""
    modules = (trainer.model.text_encoder, trainer.model.enc_to_dec_proj, trainer.attribute_heads)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    random_ = random.Random(1)
    trainer.model.train()
    for step in range(PRETRAINING_STEPS):
        attributes = [draw_attributes(random_) for _ in range(48)]
        captions = [caption(a, random_) for a in attributes]
        loss = trainer.attribute_loss(*trainer.encode_captions(captions), attributes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"text encoder, step {step + 1}: {loss.item():.2f} nats, all attributes", flush=True)


def save(path: Path, trainer: Trainer, optimizer: torch.optim.Optimizer, step: int) -> None:
    weights = trainer.model.state_dict().items()
    state = {
        "model": {name: value for name, value in weights if not name.startswith("audio_encoder.")},
        "attribute_heads": trainer.attribute_heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
