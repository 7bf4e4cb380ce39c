"""A step of LoRA training: its time and peak memory, beside torch with transformers and peft; Markdown.

    python benchmarks/training_step.py                  # small: 10 and 30 s, with and without checkpointing
    python benchmarks/training_step.py --compare peft   # torch by turns, in a process of its own
    python benchmarks/training_step.py --seconds 30 --batch 2 --runs 5
    python benchmarks/training_step.py --compute        # what small, medium and large keep in memory

Random weights in the shape of a released model, random codes, 20 tokens of text. LoRA of rank 16 on attention
and feed-forward, float32. Seconds are the fewest of all runs: other work on the machine only adds to them.
The comparison needs the extra `bench`, and peft.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.machine import num_cpus

FRAME_RATE, CODEBOOKS, CARDINALITY, TEXT_TOKENS, TEXT_DIM, RANK = 50, 4, 2048, 20, 768, 16
SIZES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}
"""Channels, layers and heads. Feed-forward layers have four times as many channels."""


@dataclass(frozen=True)
class Case:
    shape: str
    seconds: float
    batch: int
    checkpointing: bool
    dropout: float

    @property
    def frames(self) -> int:
        return int(self.seconds * FRAME_RATE)

    def codes(self) -> np.ndarray:
        """int `[batch, CODEBOOKS, frames]`."""
        rng = np.random.default_rng(0)
        return rng.integers(0, CARDINALITY, (self.batch, CODEBOOKS, self.frames))

    def texts(self) -> np.ndarray:
        """float32 `[batch, TEXT_TOKENS, TEXT_DIM]`."""
        shape = (self.batch, TEXT_TOKENS, TEXT_DIM)
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def mlx_step(case: Case) -> Callable[[], object]:
    """Our step, whose weights are in memory."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    from audiocraft_mlx.benchmark.model import random_bundle
    from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
    from audiocraft_mlx.tuning.lora import add_lora
    from audiocraft_mlx.tuning.network import TrainedNetwork, make_batch
    from audiocraft_mlx.tuning.options import LoRAConfig
    from audiocraft_mlx.tuning.trainable import trained_places

    patch_mlx_blas()
    bundle = random_bundle(case.shape)
    lm, projection = bundle.lm, bundle.text_conditioner.output_proj
    lm.set_dtype(mx.float32)
    mx.eval(lm.parameters(), projection.parameters())
    network = TrainedNetwork(lm, projection, checkpointing=case.checkpointing)
    add_lora(network, trained_places(network), LoRAConfig(rank=RANK, dropout=case.dropout))
    network.train()
    batch = make_batch(list(case.codes()), list(case.texts()), TEXT_DIM)
    loss_and_grad = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())
    optimizer = optim.AdamW(1e-4, bias_correction=True)
    optimizer.init(network.trainable_parameters())
    mx.eval(network.parameters(), optimizer.state)

    def step() -> None:
        loss, gradients = loss_and_grad(batch)
        gradients, norm = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(network, gradients)
        mx.eval(loss, norm, network.trainable_parameters(), optimizer.state)

    return step


def torch_step(case: Case) -> Callable[[], object]:
    """The same with torch, transformers and peft."""
    import peft
    import torch
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_cpus())  # its default is sometimes half of them
    dim, layers, heads = SIZES[case.shape]
    decoder = MusicgenDecoderConfig(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * dim,
        dropout=0.0,
        pad_token_id=CARDINALITY,
        bos_token_id=CARDINALITY,
        decoder_start_token_id=CARDINALITY,
    )
    # The text encoder isn't run.
    text = T5Config(vocab_size=8, d_model=TEXT_DIM, d_ff=8, num_layers=1, num_heads=2)
    config = MusicgenConfig(text_encoder=text, audio_encoder=EncodecConfig(), decoder=decoder)
    model = MusicgenForConditionalGeneration(config)
    model.config.decoder_start_token_id = model.config.pad_token_id = CARDINALITY
    if case.checkpointing:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    targets = r"decoder\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    adapter = peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=case.dropout, target_modules=targets)
    wrapped = peft.get_peft_model(model, adapter).train()
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    # What transformers' own training takes: a column for each codebook.
    labels = torch.from_numpy(case.codes()).transpose(1, 2)
    hidden = torch.from_numpy(case.texts())
    mask = torch.ones(hidden.shape[:2], dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        loss = wrapped(encoder_outputs=(hidden,), attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


_step: Callable[[], object] | None = None
"""The one of this process, which exists for it alone."""


def _start(make: Callable[[Case], Callable[[], object]], case: Case) -> None:
    global _step
    _step = make(case)
    _step()  # the first one allocates


def _time() -> float:
    from audiocraft_mlx.benchmark.measure import seconds

    gc.collect()
    assert _step is not None
    return seconds(_step)


def _peak() -> float:
    from audiocraft_mlx.benchmark.measure import peak_memory

    return peak_memory()


def measure(case: Case, runs: int, compare: bool) -> list[tuple[float, float]]:
    """Seconds of a step and peak bytes of its process: ours, and torch's if it is compared."""
    makers = [mlx_step, torch_step] if compare else [mlx_step]
    pools = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in makers]
    try:
        # One after the other, so that neither waits for the other's processors.
        for pool, make in zip(pools, makers, strict=True):
            _result(pool.submit(_start, make, case))
        times = [[_result(pool.submit(_time)) for pool in pools] for _ in range(runs)]
        fewest = [min(values) for values in zip(*times, strict=True)]
        return list(zip(fewest, [_result(pool.submit(_peak)) for pool in pools], strict=True))
    finally:
        for pool in pools:
            pool.shutdown()


def _result(future: Future) -> float:
    return future.result()


def kept_bytes(shape: str, frames: int, batch: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes of the weights, and of what a step keeps besides at its highest, in float32 on a CPU.

    A block keeps its input; for the gradients of A what each adapted layer multiplied with it, after dropout
    (5 times the channels, and the feed-forward's 4); queries, keys, values, both attentions' outputs, the
    inputs of the other two norms, cross-attention's queries, and what GELU takes: 22 values of each channel
    for each position.
    """
    dim, layers, _ = SIZES[shape]
    block_weights = 4 * dim * dim + 4 * dim * dim + 8 * dim * dim
    tables = CODEBOOKS * (2 * CARDINALITY + 1) * dim
    # q, k, v, out, q, k, v, out: 2 dim each; fc1 and fc2: 5 dim each.
    trained = layers * RANK * (8 * 2 * dim + 2 * 5 * dim)
    # 4 times: with gradients and AdamW's averages.
    weights = 4 * (layers * block_weights + tables + TEXT_DIM * dim + 4 * trained)
    positions = batch * frames
    block, logits = 22 * dim * positions, CODEBOOKS * CARDINALITY * positions
    kept = (
        (layers * dim * positions + max(2 * block, 3 * logits))
        if checkpointing
        else layers * block + 3 * logits
    )
    return weights, 4 * kept


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.compute:
        yield "| shape | crop | batch | weights, GB | a step, GB | with checkpointing, GB |"
        yield "|---|---|---|---|---|---|"
        for shape in SIZES:
            for seconds in arguments.seconds:
                for batch in arguments.batch:
                    frames = int(seconds * FRAME_RATE)
                    weights, plain = kept_bytes(shape, frames, batch, False)
                    checkpointed = kept_bytes(shape, frames, batch, True)[1]
                    values = " | ".join(f"{value / 1e9:.1f}" for value in (weights, plain, checkpointed))
                    yield f"| {shape} | {seconds:g} s | {batch} | {values} |"
        return
    compare = arguments.compare is not None
    yield "| crop | batch | checkpointing | ours, s | ours, GB |" + (
        " torch, s | torch, GB | ratio |" if compare else ""
    )
    yield "|---|---|---|---|---|" + ("---|---|---|" if compare else "")
    for seconds in arguments.seconds:
        for batch in arguments.batch:
            for checkpointing in {"off": [False], "on": [True], "both": [False, True]}[
                arguments.checkpointing
            ]:
                case = Case(arguments.shape, seconds, batch, checkpointing, arguments.dropout)
                ours, *theirs = measure(case, arguments.runs, compare)
                line = f"| {seconds:g} s | {batch} | {'yes' if checkpointing else 'no'} | {_shown(ours)} |"
                for other in theirs:
                    line += f" {_shown(other)} | {other[0] / ours[0]:.2f} |"
                yield line


def _shown(values: tuple[float, float]) -> str:
    return f"{values[0]:.2f} | {values[1] / 1e9:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SIZES, default="small")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0], help="lengths of crops")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checkpointing", choices=("off", "on", "both"), default="both")
    parser.add_argument("--dropout", type=float, default=0.05, help="of LoRA (default: 0.05)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compare", choices=("peft",), help="torch with transformers and peft, by turns")
    parser.add_argument("--compute", action="store_true", help="no measurement: the memory of all shapes")
    for row in rows(parser.parse_args()):
        print_stdout(row)


if __name__ == "__main__":
    main()
