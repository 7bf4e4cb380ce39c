"""The training loop: batches → steps of the optimizer → events.

Nothing random depends on what was before: order, dropout and conditions of a step come from its number and
the seed. So a training that is resumed goes on exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.networks.weights import Weights
from audiocraft_mlx.tuning.network import Batch, TrainedNetwork, make_batch
from audiocraft_mlx.tuning.options import TrainingOptions


class Crop(Protocol):
    """Codes int `[K, T]` of a piece of music, and its text's place among all texts."""

    @property
    def codes(self) -> np.ndarray: ...

    @property
    def text(self) -> int | None: ...


@dataclass(frozen=True)
class Step:
    """A step of the optimizer; `step` counts from 1. `loss` is of its batch, before it."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The validation crops' loss after `step` steps, of each codebook."""

    step: int
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class Trainer:
    """A network and its optimizer between steps."""

    def __init__(
        self,
        network: TrainedNetwork,
        options: TrainingOptions,
        train: Sequence[Crop],
        validation: Sequence[Crop],
        texts: Sequence[np.ndarray],
        text_dim: int,
    ) -> None:
        self.network, self.options = network, options
        self._train, self._validation = train, validation
        self._texts, self._text_dim = texts, text_dim
        self.optimizer = optim.AdamW(
            learning_rate(options),
            betas=[options.beta1, options.beta2],
            weight_decay=options.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(network.trainable_parameters())
        self.step = 0
        self._loss_and_grad = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())

    def run(self) -> Iterator[Step | Evaluation]:
        """The steps that are left. The first event of a new training, and its last, are evaluations."""
        options = self.options
        if self.step == 0 and self._validation:
            yield self.evaluate()
        while self.step < options.iters:
            yield self.train_step()
            every = options.steps_per_eval
            if self._validation and (self.step == options.iters or (every and self.step % every == 0)):
                yield self.evaluate()

    def train_step(self) -> Step:
        start = time.perf_counter()
        options, network = self.options, self.network
        network.train()
        # Of dropout.
        mx.random.seed(_seed(options.seed, "dropout", self.step))
        gradients: Any = None
        loss = 0.0
        batches = list(self._batches(self.step))
        for batch, share in batches:
            value, own = self._loss_and_grad(batch)
            own = tree_map(lambda gradient, share=share: gradient * share, own)
            gradients = own if gradients is None else tree_map(mx.add, gradients, own)
            mx.eval(value, gradients)
            loss += value.item() * share
        if not math.isfinite(loss):
            raise MusicGenError(
                f"the loss is {loss} at step {self.step + 1}: it diverged; try a lower --learning-rate"
            )
        rate = float(self.optimizer.learning_rate)
        gradients, norm = optim.clip_grad_norm(gradients, options.max_grad_norm)
        self.optimizer.update(network, gradients)
        mx.eval(network.trainable_parameters(), self.optimizer.state, norm)
        self.step += 1
        return Step(self.step, loss, norm.item(), rate, time.perf_counter() - start)

    def evaluate(self) -> Evaluation:
        """All validation crops, with their texts and without dropout."""
        network = self.network
        # Not `eval`: that would take operations for a step at a time.
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        total = np.zeros(network.lm.config.num_codebooks)
        size = self.options.micro_batch
        for start in range(0, len(self._validation), size):
            crops = self._validation[start : start + size]
            total += np.array(network.losses(self._batch(crops, [True] * len(crops)))) * len(crops)
        return Evaluation(self.step, tuple(float(value) for value in total / len(self._validation)))

    def state(self) -> Weights:
        """All that a checkpoint needs beside the trained weights: the optimizer's arrays by name."""
        return dict(tree_flatten(self.optimizer.state))

    def restore(self, step: int, weights: Weights, state: Weights) -> None:
        """Go on after `step` steps, with what `state` returned then."""
        self.network.load_weights(list(weights.items()), strict=False)
        self.optimizer.state = tree_unflatten(list(state.items()))
        self.step = step

    def _batches(self, step: int) -> Iterator[tuple[Batch, float]]:
        """Parts of a step's batch that pass through the network by themselves, with their shares of it."""
        options = self.options
        random = np.random.default_rng(_seed(options.seed, "conditions", step))
        crops = [self._train[index] for index in self._order(step)]
        with_text = list(random.random(len(crops)) >= options.condition_dropout)
        for start in range(0, len(crops), options.micro_batch):
            part = slice(start, start + options.micro_batch)
            yield self._batch(crops[part], with_text[part]), len(crops[part]) / len(crops)

    def _order(self, step: int) -> list[int]:
        """The crops of a step: all of them once, in random order, then once more, and so on."""
        count, size = len(self._train), self.options.batch_size
        indices = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, count)
            order = np.random.default_rng(_seed(self.options.seed, "order", epoch)).permutation(count)
            indices.append(int(order[place]))
        return indices

    def _batch(self, crops: Sequence[Crop], with_text: Sequence[bool]) -> Batch:
        texts = [
            self._texts[crop.text] if wanted and crop.text is not None else None
            for crop, wanted in zip(crops, with_text, strict=True)
        ]
        return make_batch([crop.codes for crop in crops], texts, self._text_dim)


def learning_rate(options: TrainingOptions) -> Any:
    """A schedule: up to the highest in a line, then down to zero as a cosine."""
    warmup = min(options.warmup, options.iters)
    cosine = optim.cosine_decay(options.learning_rate, max(options.iters - warmup, 1))
    if not warmup:
        return cosine
    # Not from zero: a step of nothing is none.
    line = optim.linear_schedule(options.learning_rate / (warmup + 1), options.learning_rate, warmup)
    return optim.join_schedules([line, cosine], [warmup])


def _seed(seed: int, use: str, number: int) -> int:
    return int(np.random.SeedSequence([seed, *use.encode(), number]).generate_state(1, np.uint64)[0])
