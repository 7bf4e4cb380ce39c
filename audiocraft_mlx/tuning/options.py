"""The options of a training, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

from audiocraft_mlx.tuning.lora import LoRAConfig


@dataclass(frozen=True)
class TrainingOptions:
    """Names are mlx-lm's where it has them.

    Attributes:
        lora: None trains all weights of the language model.
        iters: steps of the optimizer.
        batch_size: crops of a step; each passes through the network by itself or with `micro_batch` others.
        micro_batch: rows that pass through the network together; the gradients of a step are accumulated.
        learning_rate: at its highest, after `warmup` steps; it falls to zero as a cosine.
        weight_decay, beta1, beta2: AdamW's.
        max_grad_norm: longer gradients are scaled down to it.
        condition_dropout: how often a row goes without its text, so that guidance has something to compare.
        grad_checkpoint: less memory, a third more time.
        save_every, steps_per_eval, sample_every: in steps; 0 is never.
    """

    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    iters: int = 1000
    batch_size: int = 4
    micro_batch: int = 1
    learning_rate: float = 1e-4
    warmup: int = 20
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    condition_dropout: float = 0.2
    grad_checkpoint: bool = False
    steps_per_eval: int = 100
    save_every: int = 100
    sample_every: int = 0
    seed: int = 0
