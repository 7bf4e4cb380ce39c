"""The options of a training, as a value. Nothing heavy is imported here: the command checks them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import SEED, NumberRange

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""What is adapted by default, in the names of transformers and PEFT: attention and feed-forward."""
PROJECTION, HEADS = "enc_to_dec_proj", "lm_heads"
ALL_TARGETS = (*TARGETS, PROJECTION, HEADS)

RANK = NumberRange(int, "an integer from 1 to 4096", lambda rank: 1 <= rank <= 4096)
ALPHA = NumberRange(float, "a number above 0, at most 100000", lambda alpha: 0 < alpha <= 1e5)
FRACTION = NumberRange(float, "a number from 0 to below 1", lambda fraction: 0 <= fraction < 1)
COUNT = NumberRange(int, "an integer, 1 or more", lambda count: 1 <= count < 2**31)
COUNT_OR_NONE = NumberRange(int, "an integer, 0 or more", lambda count: 0 <= count < 2**31)
LEARNING_RATE = NumberRange(float, "a number above 0, at most 1", lambda rate: 0 < rate <= 1)
WEIGHT_DECAY = NumberRange(float, "a number from 0 to 1", lambda decay: 0 <= decay <= 1)
PROBABILITY = NumberRange(float, "a number from 0 to 1", lambda probability: 0 <= probability <= 1)
NORM = NumberRange(float, "a number above 0", lambda norm: norm > 0)


@dataclass(frozen=True)
class LoRAConfig:
    """`rank`, `alpha` and `dropout` as in PEFT: the product is scaled by `alpha / rank`.

    Raises `UsageError` for what is out of range.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        for name, allowed in (("rank", RANK), ("alpha", ALPHA), ("dropout", FRACTION)):
            allowed.validate(f"--{name}", getattr(self, name))
        if not self.targets or not all(target.strip() for target in self.targets):
            raise UsageError(f"--targets: name some, for example {','.join(TARGETS)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


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

    Raises `UsageError` for what is out of range.
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

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            allowed.validate(option_name(name), getattr(self, name))


RANGES = {
    "iters": COUNT,
    "batch_size": COUNT,
    "micro_batch": COUNT,
    "learning_rate": LEARNING_RATE,
    "warmup": COUNT_OR_NONE,
    "weight_decay": WEIGHT_DECAY,
    "max_grad_norm": NORM,
    "condition_dropout": PROBABILITY,
    "steps_per_eval": COUNT_OR_NONE,
    "save_every": COUNT_OR_NONE,
    "sample_every": COUNT_OR_NONE,
    "seed": SEED,
}
"""The valid values of the options that have a range."""


def option_name(name: str) -> str:
    """The option of a field, as messages call it."""
    return f"--{name.replace('_', '-')}"
