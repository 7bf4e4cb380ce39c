"""What sounds in each frame, as the language model knows it: see `targets.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from targets import BITS, FRAME_CLASSES, NAMES, SONG_CLASSES

HARDEST = {"tempo": 2.0, "beat": 2.0, "place in the beat": 3.0}
"""Weights of what takes longest to learn; others have 1."""


class TargetHeads(torch.nn.Module):
    """Logits of all classes and bits from a hidden state."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.sizes = [*SONG_CLASSES.values(), *FRAME_CLASSES.values()]
        self.weights = torch.tensor([HARDEST.get(name, 1.0) for name in NAMES])
        self.linear = torch.nn.Linear(hidden_size, sum(self.sizes) + BITS)

    def losses(self, hidden: torch.Tensor, classes: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats `[B, T, targets]` from hidden states `[B, T, D]`; the last is of all bits."""
        *logits, of_bits = self.linear(hidden).float().split([*self.sizes, BITS], dim=-1)
        of_classes = [
            F.cross_entropy(each.transpose(1, 2), classes[..., i], reduction="none")
            for i, each in enumerate(logits)
        ]
        of_bits = F.binary_cross_entropy_with_logits(of_bits, bits, reduction="none").sum(-1)
        return torch.stack([*of_classes, of_bits], dim=-1)
