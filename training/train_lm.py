"""Train the language model: `python train_lm.py --steps 7500`. Continues from its checkpoint.

Its text encoder begins as that of `text_encoder.py`, and learns on slowly. Clips begin where bars do, as what
is generated shall; some begin anywhere, as the windows of long music do, and of these only what follows
counts. The input codes are partly corrupted, so that the model's own mistakes matter less in generation, and
the text predicts better than copying. Beside the codes it learns what sounds (`targets.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import processes
import torch
import torch.nn.functional as F
from attributes import Attributes
from codec import CODEBOOKS, CODES, autocast, has_bfloat16
from heads import TargetHeads
from model import EMBEDDING_STD, make_model
from muon import Muon
from song import beat_frames
from targets import NAMES, RETURN, Targets
from text_tokenizer import TOKENIZER
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerFast
from words import caption

from audiocraft_mlx.files import write_file

# At first; they fall all the time.
RATE, TABLES_RATE, WARM_UP = 2e-3, 1.6e-2, 100
TEXT_RATE = 3e-4  # it has learned before
AVERAGE = 0.998  # of the weights over the steps
WEIGHT_DECAY = 0.05
HEAD_LEVEL = 0.5
"""The length of what the heads know of codes at first."""
CONDITION_DROPOUT = 0.12
# The share of captions that say tempo and key, if one of so many does: else a fifth say one of them.
TELLING, TRIES = 0.7, 16
# Each stem's first codebook says more of what it plays than its second one.
CODEBOOK_WEIGHTS = (1.3, 1.3, 1.3, 1.3, 0.7, 0.7, 0.7, 0.7)
# Their gradient is large: with 0.15 it was four times that of the codes, which got worse in 8,000 steps.
TARGETS_WEIGHT = 0.03
# The first frames follow from the text alone, and all others from them.
FIRST, FIRST_WEIGHT = 25, 3.0
ANYWHERE, HEARD = 0.25, 150  # the share of clips that begin anywhere; frames of these that don't count
FRAMES = 1000  # 20 s, a whole song
RARE_BEAT, RARE = 30, 2.0
"""Songs with a beat of so many frames are heard so many times as often: there are few of each tempo."""
OWN = 0.45  # the share of clips in whose past some codes are the model's own, as in generation
OF_MIX = 0.1
"""The share of clips whose past begins with the codes of the mix, as audio that is continued: they are others
than those of the stems."""
REPEATED = 0.2
EARLY = 1200
"""Steps, with short clips and without own codes: first what the text says, and what sounds."""


class Batch(NamedTuple):
    clips: int
    frames: int
    anywhere: float
    """The share of clips that begin anywhere, and not with a bar."""
    weight: float
    repeated: float = 0.0
    """The share of clips that are their first four bars again and again, of those that begin with a bar."""


EARLY_BATCHES = {
    Batch(12, FRAMES // 8, anywhere=0.0, weight=1.0): 0.6,
    Batch(6, FRAMES // 4, anywhere=ANYWHERE, weight=1.0): 0.4,
}
BATCHES = {
    Batch(16, FRAMES // 8, anywhere=0.0, weight=1.0): 0.15,
    Batch(8, FRAMES // 4, anywhere=ANYWHERE, weight=1.0): 0.1,
    Batch(4, FRAMES // 2, anywhere=ANYWHERE, weight=1.0, repeated=REPEATED): 0.25,
    Batch(2, FRAMES, anywhere=0.0, weight=1.0, repeated=REPEATED): 0.5,
}
"""With their probabilities: one in each step.

Tempo and key follow from the text in the first two seconds, and then from what was heard. Four bars return,
which take 6 to 16 s.
"""
STARTS = Batch(8, 12, anywhere=0.0, weight=0.5)
"""In each step, too: beginnings depend on the text alone, and each key and tempo is rare."""
COUNTED_TARGETS = ("beat", "place in the beat", "bar of four")
COUNTED = Batch(2, FRAMES, anywhere=0.0, weight=3.0)
"""In every fourth step, too: where in its bar and beat each frame is, known from tempo and position alone."""
REPORTED = Batch(48, FRAMES // 2, anywhere=ANYWHERE, weight=1.0)


class Clips(NamedTuple):
    codes: torch.Tensor
    """`[B, K, frames]`"""
    of_mix: torch.Tensor
    """As `codes`."""
    classes: torch.Tensor
    bits: torch.Tensor
    on_bar: tuple[bool, ...]
    """Whether each begins with a bar."""


class Songs:
    """The songs that `encode.py` wrote."""

    def __init__(self, folder: Path, name: str) -> None:
        codes, of_mix, targets, self.attributes, self.bars = [], [], [], [], []
        for path in sorted(folder.glob(f"{name}-*.npz")):
            arrays = np.load(path)
            codes.append(arrays["codes"])
            of_mix.append(arrays["codes of mix"])
            self.attributes += [
                Attributes.from_json(values) for values in json.loads(str(arrays["attributes"]))
            ]
            self.bars += json.loads(str(arrays["bars"]))
            first = int(path.stem.rpartition("-")[2])
            numbers = range(first, first + len(codes[-1]))
            targets.append(
                Targets.of(folder.with_name("targets") / path.name, numbers, held_out=name == "held_out")
            )
        often = [RARE if beat_frames(each.bpm) >= RARE_BEAT else 1.0 for each in self.attributes]
        self.often = list(accumulate(often))
        self.codes, self.of_mix = (torch.tensor(np.concatenate(each)) for each in (codes, of_mix))
        self.targets = Targets.joined(targets)

    def clips(self, rows: Sequence[int], batch: Batch, random_: random.Random) -> Clips:
        """One of each song."""
        codes, of_mix, classes, bits, on_bar = zip(
            *(self._clip(row, batch, random_) for row in rows), strict=True
        )
        return Clips(*map(torch.stack, (codes, of_mix, classes, bits)), on_bar)

    def _clip(
        self, row: int, batch: Batch, random_: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        last = self.codes.shape[2] - batch.frames
        on_bar = random_.random() >= batch.anywhere
        # As the bars are counted from where a clip begins, so is what returns.
        start = (
            random_.choice([bar for bar in self.bars[row][::RETURN] if bar <= last])
            if on_bar
            else random_.randint(0, last)
        )
        index = torch.arange(batch.frames)
        if on_bar and random_.random() < batch.repeated:
            index %= self.bars[row][RETURN]
        codes, of_mix = (each[row, :, start + index].long() for each in (self.codes, self.of_mix))
        classes, bits = (
            torch.from_numpy(each)[index] for each in self.targets.clip(row, start, batch.frames)
        )
        return codes, of_mix, classes, bits, on_bar


class Trainer:
    def __init__(self, codec: Path, text: Path, tokenizer: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        self.model = make_model(len(self.tokenizer))
        set_tables(self.model.decoder, torch.load(codec)["codec"]["quantizer.codebooks"])
        self.model.text_encoder.load_state_dict(torch.load(text)["text_encoder"])
        self.model.text_encoder.eval()  # without dropout
        # On a CPU in bfloat16 torch's fused attention takes two and a half times as long, in float32 half.
        self.model.decoder.set_attn_implementation("eager" if has_bfloat16() else "sdpa")
        self.trained = torch.nn.ModuleDict(
            {name: getattr(self.model, name) for name in ("text_encoder", "decoder", "enc_to_dec_proj")}
        )
        self.heads = TargetHeads(self.model.config.decoder.hidden_size)
        self.average = AveragedModel(self.trained, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the decoder's matrices, which needs a third of AdamW's steps here; AdamW for the rest."""
        named = list(self.trained["decoder"].named_parameters())
        matrices = [value for name, value in named if ".layers." in name and value.ndim == 2]
        tables = [value for name, value in named if ".layers." not in name and value.ndim == 2]
        norms = [value for _, value in named if value.ndim == 1]
        return [
            Muon(matrices, lr=RATE, weight_decay=WEIGHT_DECAY),
            torch.optim.AdamW(
                [
                    {"params": tables, "lr": TABLES_RATE},
                    {"params": self.trained["enc_to_dec_proj"].parameters()},
                    {"params": norms, "weight_decay": 0.0},
                ],
                lr=RATE,
                betas=(0.9, 0.95),
                weight_decay=WEIGHT_DECAY,
            ),
            torch.optim.AdamW(self.heads.parameters(), lr=RATE, betas=(0.9, 0.95)),
            torch.optim.AdamW(self.trained["text_encoder"].parameters(), lr=TEXT_RATE, betas=(0.9, 0.95)),
        ]

    def losses(
        self,
        networks: torch.nn.ModuleDict,
        codes: torch.Tensor,
        input_codes: torch.Tensor,
        texts: list[str],
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy (nats) `[B, K, T]` of codes `[B, K, T]`, given `input_codes` as the past.

        And the hidden states `[B, T, D]` from which the first codebook follows.
        """
        frames = codes.shape[2]
        hidden = self.hidden(networks, input_codes, texts, dropout, frames + CODEBOOKS - 1)
        logits = self.logits(networks, hidden, frames)
        losses = F.cross_entropy(logits.reshape(-1, CODES).float(), codes.reshape(-1), reduction="none")
        return losses.view(codes.shape), hidden[:, :frames]

    def logits(self, networks: torch.nn.ModuleDict, hidden: torch.Tensor, frames: int) -> torch.Tensor:
        """Of each code of so many frames, `[B, K, T, CODES]`, from the hidden states of all steps."""
        heads = networks["decoder"].lm_heads
        return torch.stack([head(hidden[:, k : k + frames]) for k, head in enumerate(heads)], 1)

    def hidden(
        self,
        networks: torch.nn.ModuleDict,
        input_codes: torch.Tensor,
        texts: list[str],
        dropout: float,
        steps: int,
    ) -> torch.Tensor:
        """The last hidden states `[B, steps, D]`, given the codes `[B, K, T]` before each.

        `networks` are the trained ones or their average; `dropout` is the probability of a clip without
        condition. Codebook `k` of frame `t` follows from step `t + k`.
        """
        batch, _, frames = input_codes.shape
        inputs = torch.full((batch, CODEBOOKS, steps), CODES)
        for k in range(CODEBOOKS):
            inputs[:, k, k + 1 : k + 1 + frames] = input_codes[:, k, : steps - k - 1]
        text = self.tokenizer(texts, padding=True, return_tensors="pt")
        encoded = networks["text_encoder"](**text).last_hidden_state
        encoded = networks["enc_to_dec_proj"](encoded) * text.attention_mask[..., None]
        if dropout:
            encoded = encoded * (torch.rand(batch, 1, 1) > dropout)
        return (
            networks["decoder"]
            .model(
                input_ids=inputs.reshape(batch * CODEBOOKS, steps),
                encoder_hidden_states=encoded,
                encoder_attention_mask=text.attention_mask,
                use_cache=False,
            )
            .last_hidden_state
        )

    @torch.no_grad()
    def with_own_codes(
        self, codes: torch.Tensor, texts: list[str], random_: np.random.Generator
    ) -> torch.Tensor:
        """`codes` `[B, K, T]`, a random part of each clip replaced by what the model would play there."""
        frames = codes.shape[2]
        # A context of its own, since the weights that it casts and keeps have no gradient here.
        with autocast():
            hidden = self.hidden(self.trained, codes, texts, 0.0, frames + CODEBOOKS - 1)
            logits = self.logits(self.trained, hidden, frames)
        replaced = torch.tensor(random_.random(codes.shape) < random_.random((len(codes), 1, 1)))
        up_to = logits[replaced].float().softmax(-1).cumsum_(-1)
        drawn = torch.rand(len(up_to), 1) * up_to[:, -1:]
        own = codes.clone()
        own[replaced] = torch.searchsorted(up_to, drawn)[:, 0].clamp_(max=CODES - 1)
        return own

    def learn(
        self,
        songs: Songs,
        batch: Batch,
        own: int,
        draw: random.Random,
        noise: np.random.Generator,
    ) -> torch.Tensor:
        """Add the gradient of random clips; returns their cross-entropy `[B, K, T]`.

        `own` is the number of those in whose past some codes are the model's own.
        """
        rows = draw.choices(
            range(len(songs.attributes)), cum_weights=songs.often, k=batch.clips // processes.count()
        )
        codes, of_mix, classes, bits, on_bar = songs.clips(rows, batch, draw)
        texts = [some_caption(songs.attributes[row], draw) for row in rows]
        input_codes = corrupt_codes(codes, noise)
        if own:
            rows = noise.choice(len(codes), own, replace=False)
            played = self.with_own_codes(codes[rows], [texts[row] for row in rows], noise)
            input_codes = input_codes.index_copy(0, torch.tensor(rows), played)
        for row in np.flatnonzero(noise.random(len(codes)) < OF_MIX):
            until = noise.integers(batch.frames)
            input_codes[row, :, :until] = of_mix[row, :, :until]
        with autocast():
            losses, hidden = self.losses(self.trained, codes, input_codes, texts, CONDITION_DROPOUT)
            of_targets = self.heads.losses(hidden, classes, bits)
        weights = code_weights(on_bar, batch.frames)
        of_frames = (weights[:, 0] / weights[:, 0].sum())[..., None]
        loss = (losses * weights).sum() / weights.sum()
        loss = loss + TARGETS_WEIGHT * (of_targets * self.heads.weights * of_frames).sum()
        (batch.weight * loss).backward()
        return losses.detach()

    def learn_to_count(self, songs: Songs, batch: Batch, draw: random.Random) -> None:
        """Add the gradient of what follows from a caption's tempo if the past is noise.

        From music alone the model knows where in a beat it is, too, but not from music with its own mistakes.
        """
        rows = [draw.randrange(len(songs.attributes)) for _ in range(batch.clips // processes.count())]
        codes, _, classes, bits, _ = songs.clips(rows, batch, draw)
        texts = [telling_caption(songs.attributes[row], draw) for row in rows]
        with autocast():
            noise = torch.randint_like(codes, CODES)
            hidden = self.hidden(self.trained, noise, texts, 0.0, codes.shape[2])
            losses = self.heads.losses(hidden, classes, bits)
        loss = losses[..., [NAMES.index(name) for name in COUNTED_TARGETS]].sum(-1).mean()
        (batch.weight * loss).backward()

    @torch.no_grad()
    def report(self, songs: Songs) -> None:
        random_ = random.Random(3)
        rows = range(min(REPORTED.clips, len(songs.attributes)))
        codes, _, classes, bits, _ = songs.clips(rows, REPORTED, random_)
        texts = [caption(songs.attributes[row], random_).text for row in rows]
        results, of_targets = [], []
        for given in (texts, texts[1:] + texts[:1]):
            parts = []
            for i in range(0, len(rows), 8):
                part = slice(i, i + 8)
                losses, hidden = self.losses(self.average.module, codes[part], codes[part], given[part], 0.0)
                parts.append(losses)
                if given is texts:
                    of_targets.append(self.heads.losses(hidden, classes[part], bits[part]))
            results.append(torch.cat(parts))
        right, wrong = results
        first, other_first = right[:, :, :50].mean(), wrong[:, :, :50].mean()
        print(
            f"  held out, nats by codebook: {np.round(right.mean((0, 2)).numpy(), 2)}, mean"
            f" {right.mean():.3f};"
            f" first second {first:.3f}; with another song's caption {wrong.mean() - right.mean():+.3f},"
            f" first second {other_first - first:+.3f}",
            flush=True,
        )
        targets = torch.cat(of_targets)
        for name, part in (("first second", targets[:, :50]), ("all", targets)):
            values = zip(NAMES, part.mean((0, 1)).tolist(), strict=True)
            print(f"    {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in values), flush=True)


@torch.no_grad()
def set_tables(decoder: torch.nn.Module, codebooks: torch.Tensor) -> None:
    """Begin with embeddings and heads of codes `[K, CODES, n]` in which those that sound alike are alike.

    Each codebook has dimensions of its own, in which it predicts the code that was before.
    """
    for k, values in enumerate(codebooks):
        embeddings, head = (each[k].weight for each in (decoder.model.decoder.embed_tokens, decoder.lm_heads))
        basis = torch.linalg.qr(torch.randn(embeddings.shape[1], values.shape[1]))[0]
        values = (values - values.mean(0)) @ basis.T
        values /= values.pow(2).sum(1).mean().sqrt()
        # 0.3² + 0.95² = 1: they stay as long as they are.
        level = EMBEDDING_STD * embeddings.shape[1] ** 0.5
        embeddings[:CODES] = embeddings[:CODES] * 0.3 + level * 0.95 * values
        head += HEAD_LEVEL * values


def some_caption(attributes: Attributes, random_: random.Random) -> str:
    """Mostly one that says tempo and key; without that the model plays each style at its usual tempo."""
    if random_.random() >= TELLING:
        return caption(attributes, random_).text
    return telling_caption(attributes, random_)


def telling_caption(attributes: Attributes, random_: random.Random) -> str:
    captions = [caption(attributes, random_) for _ in range(TRIES)]
    return max(captions, key=lambda each: len(each.named & {"bpm", "tonic"})).text


def corrupt_codes(codes: torch.Tensor, random_: np.random.Generator) -> torch.Tensor:
    """Codes `[B, K, T]` with random ones in none, some or all frames of a clip, and parts of another clip."""
    batch, _, frames = codes.shape
    kind = random_.choice(3, batch, p=(0.8, 0.15, 0.05))
    share = np.select([kind == 0, kind == 1], [0.0, random_.uniform(0, 0.3, batch)], 1.0)
    replaced = torch.tensor(random_.random(codes.shape) < share[:, None, None])
    corrupted = torch.where(replaced, torch.tensor(random_.integers(0, CODES, codes.shape)), codes)
    others = codes.roll(1, 0)
    for row in np.flatnonzero(random_.random(batch) < 0.1):
        start = random_.integers(0, frames)
        span = slice(start, start + random_.integers(4, 50))
        corrupted[row, :, span] = others[row, :, span]
    return corrupted


def code_weights(on_bar: Sequence[bool], frames: int) -> torch.Tensor:
    """Of codes in the loss, `[B, K, T]`."""
    result = torch.ones(len(on_bar), CODEBOOKS, frames) * torch.tensor(CODEBOOK_WEIGHTS)[:, None] / CODEBOOKS
    for row, begins in enumerate(on_bar):
        if begins:
            result[row, :, :FIRST] *= FIRST_WEIGHT
        else:
            result[row, :, :HEARD] = 0
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--codes", type=Path, default=Path("work/codes"))
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--text", type=Path, default=Path("work/text.pt"))
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--out", type=Path, default=Path("work/lm.pt"))
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    processes.run(train, arguments.processes, arguments)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    songs, held_out = Songs(arguments.codes, "train"), Songs(arguments.codes, "held_out")
    trainer = Trainer(arguments.codec, arguments.text, arguments.tokenizer)
    parameters = list(trainer.trained.parameters())
    optimizers = trainer.optimizers()
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, elapsed = 0, 0.0
    if arguments.out.exists():
        saved = torch.load(arguments.out)
        trainer.trained.load_state_dict(saved["last"])
        trainer.average.module.load_state_dict(saved["average"])
        trainer.average.n_averaged.fill_(saved["step"])
        trainer.heads.load_state_dict(saved["heads"])
        if "optimizers" in saved:  # those of keep.py have none
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        step, elapsed = saved["step"], saved["elapsed"]
    number = processes.number()
    leads = number == 0
    torch.manual_seed(1000 * step + number)
    size = sum(parameter.numel() for parameter in parameters) / 1e6
    print(
        f"process {number} begins at step {step}: {size:.2f} M parameters, {len(songs.attributes)} songs",
        flush=True,
    )
    sums, begun = np.zeros(CODEBOOKS), time.time()
    while step < arguments.steps:
        start = time.process_time()
        left = 1 - step / arguments.steps
        rate = min(1, (step + 1) / WARM_UP) * max(0.03, left)
        for optimizer, peaks in zip(optimizers, rates, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
        early = step < EARLY
        batches = EARLY_BATCHES if early else BATCHES
        shared = random.Random(step)
        batch = shared.choices(tuple(batches), tuple(batches.values()))[0]
        # As many in each process: they wait for each other.
        own = 0 if early else int(batch.clips / processes.count() * OWN + shared.random())
        draw, noise = random.Random(f"{step} {number}"), np.random.default_rng([step, number])
        trainer.trained.zero_grad()
        trainer.heads.zero_grad()
        losses = trainer.learn(songs, batch, own, draw, noise)
        trainer.learn(songs, STARTS, 0, draw, noise)
        if step % 4 == 1:
            trainer.learn_to_count(songs, COUNTED, draw)
        processes.average_gradients([*parameters, *trainer.heads.parameters()])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        trainer.average.update_parameters(trainer.trained)
        step += 1
        sums += losses.mean((0, 2)).numpy()
        elapsed += time.process_time() - start
        if step % 100 == 0 and leads:
            losses_text, seconds = np.round(sums / 100, 2), time.time() - begun
            print(
                f"{elapsed / 60:.1f} min, step {step}: nats by codebook {losses_text}; {seconds:.0f} s",
                flush=True,
            )
            save(arguments.out, trainer, optimizers, step, elapsed)
            sums, begun = np.zeros(CODEBOOKS), time.time()
        if step % 500 == 0 and leads:
            trainer.report(held_out)
    if leads:
        save(arguments.out, trainer, optimizers, step, elapsed)
        trainer.report(held_out)


def save(
    path: Path, trainer: Trainer, optimizers: list[torch.optim.Optimizer], step: int, elapsed: float
) -> None:
    state = {
        "average": trainer.average.module.state_dict(),
        "last": trainer.trained.state_dict(),
        "heads": trainer.heads.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "elapsed": elapsed,
    }
    write_file(path, lambda file: torch.save(state, file))


if __name__ == "__main__":
    main()
