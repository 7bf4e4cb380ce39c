"""Several processes that train one model, each on its part of every batch, with one thread each.

Two threads make a step of the codec 1.2 times as fast, two processes 1.45 times.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call `work(*arguments)` in so many processes."""
    if processes == 1:
        torch.set_num_threads(1)
        work(*arguments)
        return
    # Leaves as any program that ends, which ends the others.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        for each in range(1, processes):
            mp.get_context("spawn").Process(
                target=_join, args=(each, processes, folder, work, arguments), daemon=True
            ).start()
        _join(0, processes, folder, work, arguments)


def _join(number: int, processes: int, folder: str, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=processes)
    work(*arguments)
    dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """0 is the one that reports and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_up(tensors: Sequence[torch.Tensor]) -> None:
    """Each becomes the sum of those of all processes."""
    if count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sum_up(gradients)
    for gradient in gradients:
        gradient.div_(count())


def share(tensors: Sequence[torch.Tensor]) -> None:
    """Each becomes that of process 0."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
