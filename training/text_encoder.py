"""Pretrain the text encoder: `python text_encoder.py` → work/text.pt. Continues from it.

It learns to answer what captions say of a song, each attribute where the caption names it. In half of the
songs the attributes don't depend on each other: else a word could be read as what mostly goes with it (a
trumpet as funk).
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from any_attributes import LEADS, any_attributes
from attributes import FAMILIES, INSTRUMENTS, METERS, MODES, STYLES, Attributes
from draw import draw_attributes
from text_tokenizer import TOKENIZER
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
from words import Caption, caption, speed, third, unseen_caption

from audiocraft_mlx.files import write_file

STEPS, BATCH, PEAK_RATE = 4000, 32, 2e-3
EMBEDDING_RATE = 5.0
"""Times the others' rate: most words, each tempo and each key are rare."""
GROUP = 8
"""Batches that are drawn together, and are each of captions of similar length."""
BPMS = tuple(60 * 1.04**number for number in range(28))
"""Classes of the tempo, 4 % apart; 60 to 170."""
CLASSES = {
    "style": STYLES,
    "bpm": BPMS,
    "speed": ("slow", "medium", "fast"),
    "tonic": tuple(range(12)),
    "mode": tuple(MODES),
    "third": ("minor", "major"),
    "meter": METERS,
    "drums": (False, True),
    "family": FAMILIES,
    "lead": LEADS,
}
"""Of the attributes that a caption may name."""
SAID = ("crackle", *INSTRUMENTS)
"""What a caption says or doesn't."""


def text_config(vocabulary: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary,
        d_model=192,
        d_kv=32,
        d_ff=512,
        num_layers=3,
        num_heads=6,
        dropout_rate=0.05,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )


def class_of(name: str, attributes: Attributes) -> int:
    if name == "bpm":
        return round(math.log(attributes.bpm / 60) / math.log(1.04))
    derived = {"speed": speed(attributes.bpm), "third": third(attributes.mode)}
    value = derived[name] if name in derived else getattr(attributes, name)
    return CLASSES[name].index(value)


class Questions(torch.nn.Module):
    """Answers from a text's hidden states: a class of each attribute, and which of `SAID` it speaks of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, len(values)) for name, values in CLASSES.items()}
        )
        self.said = torch.nn.Linear(width, len(SAID))

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Logits `[B, classes]` of each attribute and `[B, len(SAID)]`, from `hidden` `[B, L, width]`."""
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {name: head(mean) for name, head in self.classes.items()}, self.said(mean)

    def loss(
        self, hidden: torch.Tensor, mask: torch.Tensor, attributes: list[Attributes], captions: list[Caption]
    ) -> torch.Tensor:
        """The sum of the cross-entropies: of each attribute over the captions that name it."""
        classes, said = self(hidden, mask)
        total = F.binary_cross_entropy_with_logits(said, said_by(captions)) * len(SAID)
        for name, logits in classes.items():
            rows = [row for row, one in enumerate(captions) if name in one.named]
            if rows:
                targets = torch.tensor([class_of(name, attributes[row]) for row in rows])
                total = total + F.cross_entropy(logits[rows], targets)
        return total


def said_by(captions: list[Caption]) -> torch.Tensor:
    """Ones where a caption speaks of it, `[B, len(SAID)]`."""
    said = [{*one.instruments, *one.named} for one in captions]
    return torch.tensor([[float(name in words) for name in SAID] for words in said])


class TextTrainer:
    def __init__(self) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        self.encoder = T5EncoderModel(text_config(len(self.tokenizer)))
        # Smaller than T5's, for larger changes relative to them.
        self.encoder.shared.weight.data *= 0.3
        self.questions = Questions(self.encoder.config.d_model)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.encoder.parameters(), *self.questions.parameters()]

    def encode(self, captions: list[Caption]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `[B, L, width]` and their mask `[B, L]`."""
        text = self.tokenizer([one.text for one in captions], padding=True, return_tensors="pt")
        return self.encoder(**text).last_hidden_state, text.attention_mask

    @torch.no_grad()
    def accuracy(self, attributes: list[Attributes], captions: list[Caption]) -> dict[str, float]:
        """The share of right answers where they are named (of the tempo: within 4 %).

        "said": of the captions, whether instruments and crackle are found where they are named only.
        """
        self.encoder.eval()
        right: dict[str, list[bool]] = {name: [] for name in (*CLASSES, "said")}
        for start in range(0, len(captions), 200):
            part = captions[start : start + 200]
            classes, said = self.questions(*self.encode(part))
            right["said"] += ((said > 0) == (said_by(part) > 0)).all(1).tolist()
            for name, logits in classes.items():
                for row, best in enumerate(logits.argmax(1).tolist()):
                    song = attributes[start + row]
                    if name not in part[row].named:
                        continue
                    if name == "bpm":
                        right[name].append(abs(BPMS[best] / song.bpm - 1) <= 0.04)
                    else:
                        right[name].append(best == class_of(name, song))
        self.encoder.train()
        return {name: round(float(np.mean(values)), 3) for name, values in right.items()}


def batches(first: int) -> Iterator[tuple[list[Attributes], list[Caption]]]:
    """Songs and a caption of each, from batch `first` on."""
    for group in itertools.count(first // GROUP):
        random_ = random.Random(group)
        songs = [(draw_attributes, any_attributes)[row % 2](random_) for row in range(GROUP * BATCH)]
        pairs = [(song, caption(song, random_)) for song in songs]
        pairs.sort(key=lambda pair: len(pair[1].text))
        order = random_.sample(range(GROUP), GROUP)
        for number in order[first % GROUP if group == first // GROUP else 0 :]:
            attributes, captions = zip(*pairs[number * BATCH : (number + 1) * BATCH], strict=True)
            yield list(attributes), list(captions)


def held_out(
    make: Callable[[Attributes, random.Random], Caption],
    draw: Callable[[random.Random], Attributes] = draw_attributes,
    count: int = 2000,
) -> tuple[list[Attributes], list[Caption]]:
    random_ = random.Random(-1)
    songs = [draw(random_) for _ in range(count)]
    return songs, [make(song, random_) for song in songs]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("work/text.pt"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trainer = TextTrainer()
    embeddings = trainer.encoder.shared.weight
    others = [parameter for parameter in trainer.parameters() if parameter is not embeddings]
    optimizer = torch.optim.AdamW(
        [{"params": others, "rate": 1.0}, {"params": [embeddings], "rate": EMBEDDING_RATE}],
        lr=PEAK_RATE,
        weight_decay=0.01,
    )
    first = 0
    if arguments.out.exists():
        saved = torch.load(arguments.out)
        trainer.encoder.load_state_dict(saved["text_encoder"])
        trainer.questions.load_state_dict(saved["questions"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        print(f"continuing at step {first}", flush=True)
    print(f"{sum(p.numel() for p in trainer.encoder.parameters()) / 1e6:.2f} M parameters", flush=True)
    examples = batches(first)
    losses, start_time = [], time.time()
    for step in range(first, arguments.steps):
        rate = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * PEAK_RATE * rate * min(1, (step + 1) / 100)
        attributes, captions = next(examples)
        loss = trainer.questions.loss(*trainer.encode(captions), attributes, captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.time() - start_time
            print(f"step {step + 1}: {np.mean(losses):.3f} nats; {seconds:.0f} s", flush=True)
            losses = []
        if (step + 1) % 250 == 0 or step + 1 == arguments.steps:
            state = {
                "text_encoder": trainer.encoder.state_dict(),
                "questions": trainer.questions.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            write_file(arguments.out, partial(torch.save, state))
            print("  unseen sentences:", trainer.accuracy(*held_out(unseen_caption, count=400)), flush=True)
    print("training captions:", trainer.accuracy(*held_out(caption)))
    print("unseen sentences:", trainer.accuracy(*held_out(unseen_caption)))
    print("unseen sentences of any songs:", trainer.accuracy(*held_out(unseen_caption, any_attributes)))


if __name__ == "__main__":
    main()
