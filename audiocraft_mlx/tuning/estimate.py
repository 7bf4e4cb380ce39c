"""What a step of a training takes: memory and operations, computed beforehand.

On a CPU a block keeps 22 values of each channel for each position (`benchmarks/training_step.py` counts
them), with four times as many in its feed-forward layers: in small's shape that and the program's own
memory are 3.5 GB for crops of 10 s and 5.9 GB for 30 s, where 3.1 and 5.5 GB were measured. MLX's own
operations, which a GPU uses, keep some 39, and the scores of the attention (measured with blocks of 512 and
1024 channels, 500 and 1000 frames). With checkpointing a block keeps 4. The logits and their gradients take
six times their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.machine import PROGRAM_BYTES
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.tuning.options import TrainingOptions
from audiocraft_mlx.tuning.trainable import Trainable

_KEPT, _KEPT_ON_GPU, _KEPT_CHECKPOINTED, _LOGITS = 22, 39, 4, 6
# Of each trained value: itself, AdamW's two averages, its gradient, and what is added to it.
_COPIES = 5
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepEstimate:
    """What a step of the optimizer takes.

    Attributes:
        positions: of a row: its frames, and the tokens in front of them.
        weights: bytes that stay.
        step: bytes that are taken besides.
        trained: how many values are trained.
        flops: floating-point operations.
    """

    positions: int
    weights: int
    step: int
    trained: int
    flops: float

    @property
    def memory(self) -> int:
        """Bytes, with the program."""
        return PROGRAM_BYTES + self.weights + self.step


def estimate_step(
    trainable: Trainable, options: TrainingOptions, frames: int, text_tokens: int, data_bytes: int = 0
) -> StepEstimate:
    """Of crops of `frames` frames, with texts of `text_tokens` tokens; all of both take `data_bytes`."""
    config = trainable.network.lm.config
    prefix = trainable.network.prefix_length
    positions = frames if config.cross_attention else frames + prefix + text_tokens
    size = _FLOAT_BYTES if trainable.network.lm.dtype == mx.float32 else _FLOAT_BYTES // 2
    trained = sum(weight.size for weight in trainable.trained_weights.values())
    base = sum(
        weight.nbytes
        for network in trainable.bundle.networks.values()
        for weight in flat_parameters(network).values()
    )
    scores = config.num_heads * positions * (positions + (text_tokens if config.cross_attention else 0))
    kept, scores = (_KEPT_ON_GPU, scores) if on_gpu() else (_KEPT, 0)
    block = size * (kept * positions * (4 * config.dim + config.hidden_dim) // 8 + scores)
    logits = _LOGITS * _FLOAT_BYTES * frames * config.num_codebooks * config.cardinality
    if options.grad_checkpoint:
        row = config.num_layers * size * _KEPT_CHECKPOINTED * positions * config.dim + max(block, logits)
    else:
        row = config.num_layers * block + logits
    rows = min(options.micro_batch, options.batch_size)
    # Forwards, backwards to the inputs, and to the weights if all are trained.
    passes = 2 + options.grad_checkpoint + (options.lora is None)
    per_position = (
        2
        * config.num_layers
        * (4 * config.dim**2 * (1 + config.cross_attention / 2) + 2 * config.dim * config.hidden_dim)
        + 2 * config.dim * config.num_codebooks * config.cardinality
    )
    attention = 4 * config.num_layers * config.dim * positions
    flops = options.batch_size * passes * positions * (per_position + attention)
    return StepEstimate(
        positions,
        weights=base + data_bytes + (_COPIES - 1) * _FLOAT_BYTES * trained,
        step=rows * row,
        trained=trained,
        flops=flops,
    )
