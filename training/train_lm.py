"""Train text encoder and language model: `python train_lm.py`. Goes on from its checkpoint.

The loops repeat, and a model that copies what stands two bars earlier has a low loss without having listened
to a word. Three things make it listen: what it reads is partly wrong (so that the words and the position are
the better witness, and its own slips don't lead it astray later), what only the words decide weighs more, and
most batches are of the bars before the first repeat alone.
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
BOOK_WEIGHTS = (1.6, 1.0, 0.8, 0.6)
# What can be copied from two bars earlier weighs little; the frames where a held note's codes have come
# round, and either go on or give way to the next beat, weigh much, and the very first frame most.
FIRST_WEIGHT, TURN_WEIGHT, TURN, REPEAT_WEIGHT = 40.0, 4.0, 10, 0.3
BEFORE_TURN = 3  # frames by which the codec, which looks ahead, already shows what comes
# (clips, frames) of a batch, and how often it is drawn.
BATCHES = (((10, 176), 0.6), ((5, 400), 0.4))


# Of the attributes in a caption: answered from the text alone, so that it is understood from the beginning.
ATTRIBUTES = {
    "instrument": INSTRUMENTS,
    "tempo": tuple(FRAMES_PER_BEAT),
    "mode": tuple(SCALES),
    "drums": DRUMS,
    "bass": (False, True),
}
READING_STEPS, READING_WEIGHT = 1500, 0.2


class Trainer:
    def __init__(self, codes: Path, tokenizer: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        self.model = make_model(len(self.tokenizer), dropout=0.0)
        width = self.model.decoder.config.hidden_size
        # Not a part of the model: these only train its text encoder.
        self.questions = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, len(answers)) for name, answers in ATTRIBUTES.items()}
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
        parts = (self.model.decoder, self.model.text_encoder, self.model.enc_to_dec_proj, self.questions)
        return [parameter for part in parts for parameter in part.parameters()]

    def read(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What cross-attention looks at, `[B, L, width]`, and its mask `[B, L]`."""
        text = self.tokenizer(captions, padding=True, return_tensors="pt")
        hidden = self.model.text_encoder(
            input_ids=text.input_ids, attention_mask=text.attention_mask
        ).last_hidden_state
        return self.model.enc_to_dec_proj(hidden) * text.attention_mask[..., None], text.attention_mask

    def misread(self, hidden: torch.Tensor, mask: torch.Tensor, told: list[Attributes]) -> torch.Tensor:
        """Cross-entropy of the attributes, answered from the mean of what was read."""
        mean = hidden.sum(1) / mask.sum(1, keepdim=True)
        losses = [
            F.cross_entropy(
                self.questions[name](mean), torch.tensor([answers.index(getattr(a, name)) for a in told])
            )
            for name, answers in ATTRIBUTES.items()
        ]
        return torch.stack(losses).sum()

    def losses(
        self,
        codes: torch.Tensor,
        heard: torch.Tensor,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        dropped: float = 0.0,
    ) -> torch.Tensor:
        """Cross-entropy (nats) `[B, K, T]` of codes `[B, K, T]` for a model that reads `heard` instead."""
        batch, _, frames = codes.shape
        steps = frames + CODEBOOKS - 1
        inputs = torch.full((batch, CODEBOOKS, steps), CODES)
        for k in range(CODEBOOKS):
            inputs[:, k, k + 1 : k + 1 + frames] = heard[:, k, : steps - k - 1]
        if dropped:
            hidden = hidden * (torch.rand(batch, 1, 1) > dropped)
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
        codes, attributes = (part[:48] for part in self.sets["held_out"])
        self.model.eval()
        rows, first = [], []
        for told in (attributes, attributes[1:] + attributes[:1]):
            random_ = random.Random(3)
            losses = self.losses(codes, codes, *self.read([caption(a, random_) for a in told]))
            rows.append(losses.mean((0, 2)).numpy())
            first.append(losses[:, :, 0].mean(0).numpy())
        self.model.train()
        misled = np.mean(rows[1]) - np.mean(rows[0])
        print(
            f"  held out, nats by book: {np.round(rows[0], 3)}, of the first frame {np.round(first[0], 2)};"
            f" with a wrong text {misled:+.3f}, of the first frame {np.round(first[1], 2)}",
            flush=True,
        )


def misheard(codes: torch.Tensor, random_: np.random.Generator) -> torch.Tensor:
    """Codes `[B, K, T]` with mistakes: single ones, stretches out of another clip, or nothing that is right.

    A clip without anything right can be told from its words and the time alone: that is how they are learned.
    """
    batch, _, frames = codes.shape
    kind = random_.choice(3, batch, p=(0.25, 0.5, 0.25))
    share = np.select([kind == 0, kind == 1], [0.0, random_.uniform(0, 0.5, batch)], 1.0)
    wrong = torch.tensor(random_.random(codes.shape) < share[:, None, None])
    heard = torch.where(wrong, torch.tensor(random_.integers(0, CODES, codes.shape)), codes)
    others = codes.roll(1, 0)
    for row in np.flatnonzero(random_.random(batch) < 0.4):
        start = random_.integers(0, frames)
        stretch = slice(start, start + random_.integers(4, 80))
        heard[row, :, stretch] = others[row, :, stretch]
    return heard


def weights(attributes: list[Attributes], frames: int) -> torch.Tensor:
    """How much each frame counts, `[B, 1, frames]`, of mean 1 for each clip."""
    result = torch.ones(len(attributes), 1, frames)
    frame = torch.arange(frames) % TURN
    result[:, :, (frame == 0) | (frame >= TURN - BEFORE_TURN)] = TURN_WEIGHT
    result[:, :, 0] = FIRST_WEIGHT
    for row, what in enumerate(attributes):
        result[row, :, 8 * FRAMES_PER_BEAT[what.tempo] :] *= REPEAT_WEIGHT
    return result / result.mean(2, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--codes", type=Path, default=Path("work/codes.npz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("work/tokenizer"))
    parser.add_argument("--begin", type=Path, help="a checkpoint whose decoder to begin with")
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
        trainer.questions.load_state_dict(saved["questions"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        print(f"going on at step {first}")
    else:
        if arguments.begin is not None:
            saved = torch.load(arguments.begin)["model"]
            model.load_state_dict({n: v for n, v in saved.items() if n.startswith("decoder.")}, strict=False)
        learn_to_read(trainer)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters")
    precision = autocast()
    codes, attributes = trainer.sets["train"]
    book_weights = torch.tensor(BOOK_WEIGHTS)[:, None] / CODEBOOKS
    sums, began = np.zeros(CODEBOOKS), time.time()
    model.train()
    for step in range(first, arguments.steps):
        rate = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate * min(1, (step + 1) / 150)
        random_ = np.random.default_rng(step)
        (batch, frames), _ = BATCHES[random_.choice(len(BATCHES), p=[share for _, share in BATCHES])]
        rows = random_.integers(0, len(codes), batch)
        told = [attributes[row] for row in rows]
        wanted = codes[rows, :, :frames]
        wordings = random.Random(step)
        with precision:
            hidden, mask = trainer.read([caption(what, wordings) for what in told])
            losses = trainer.losses(wanted, misheard(wanted, random_), hidden, mask, CONDITION_DROPOUT)
            misread = trainer.misread(hidden, mask, told)
        optimizer.zero_grad()
        loss = (losses * weights(told, frames) * book_weights).sum(1).mean() + READING_WEIGHT * misread
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums += losses.detach().mean((0, 2)).numpy()
        if (step + 1) % 100 == 0:
            seconds, began = time.time() - began, time.time()
            print(f"step {step + 1}: nats by book {np.round(sums / 100, 3)}; {seconds:.0f} s", flush=True)
            sums[:] = 0
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            trainer.report()
            save(arguments.out, trainer, optimizer, step + 1)


def learn_to_read(trainer: Trainer) -> None:
    """Train the text encoder alone, which takes a minute; with the rest it would take hours to begin."""
    parts = (trainer.model.text_encoder, trainer.model.enc_to_dec_proj, trainer.questions)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    random_ = random.Random(1)
    trainer.model.train()
    for step in range(READING_STEPS):
        told = [draw_attributes(random_) for _ in range(48)]
        loss = trainer.misread(*trainer.read([caption(what, random_) for what in told]), told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"reading, step {step + 1}: {loss.item():.2f} nats for all attributes", flush=True)


def save(path: Path, trainer: Trainer, optimizer: torch.optim.Optimizer, step: int) -> None:
    weights = trainer.model.state_dict().items()
    state = {
        "model": {name: value for name, value in weights if not name.startswith("audio_encoder.")},
        "questions": trainer.questions.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
