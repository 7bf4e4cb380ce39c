"""What trains the demo model: its optimizer, and processes that train together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import processes
from keep import packed, unpacked
from muon import Muon


def learn(path: Path) -> None:
    """Three steps of two matrices on this process's half of eight examples, or on all; saves them."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ELU(), torch.nn.Linear(16, 6))
    optimizer = Muon([layers[0].weight, layers[2].weight], lr=0.1, weight_decay=0.1)
    x = torch.randn(8, 6)
    for _ in range(3):
        optimizer.zero_grad()
        part = x[processes.number() :: processes.count()]
        (layers(part) - part).pow(2).mean().backward()
        processes.average_gradients([layers[0].weight, layers[2].weight])
        optimizer.step()
    if processes.number() == 0:
        torch.save(layers.state_dict(), path)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    for count in (1, 2):
        processes.run(learn, count, tmp_path / f"{count}.pt")
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_muon_moves_matrices_as_torch_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = (
        Muon([ours], **settings),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # torch's works in bfloat16.
    difference = (ours - theirs).norm() / (theirs - start).norm()
    assert difference < 0.03


def test_what_is_kept_differs_by_half_a_step_of_each_row() -> None:
    torch.manual_seed(0)
    weights = {
        "matrix": torch.randn(5, 40) * torch.tensor([[1e-3], [0.1], [1.0], [10.0], [0.0]]),
        "bias": torch.randn(5),
    }
    kept = unpacked(packed(weights))
    assert kept.keys() == weights.keys()
    torch.testing.assert_close(kept["bias"], weights["bias"])
    steps = weights["matrix"].abs().amax(1, keepdim=True) / 127
    assert ((kept["matrix"] - weights["matrix"]).abs() <= 0.501 * steps).all()
