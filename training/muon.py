"""Muon (Jordan et al. 2024), which torch's computes in bfloat16: emulated, a step takes a processor 22 s."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import processes
import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """`[n, rows, columns]` with all singular values near 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For matrices; their updates are as large as AdamW's (Liu et al. 2025), so that its rates hold."""

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            stacks = list(by_shape.values())
            updates = [torch.stack([self._gradient(each, group["momentum"]) for each in s]) for s in stacks]
            for update in updates:  # each process makes its part
                mine = slice(processes.number(), None, processes.count())
                part = orthogonalized(update[mine])
                update.zero_()
                update[mine] = part
            processes.sum_up(updates)
            for stack, update in zip(stacks, updates, strict=True):
                scale = 0.2 * max(update.shape[1:]) ** 0.5
                for matrix, each in zip(stack, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(each, alpha=-group["lr"] * scale)

    def _gradient(self, matrix: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """With Nesterov's momentum."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)
