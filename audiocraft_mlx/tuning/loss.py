"""The loss of the language model: cross-entropy per codebook, then the mean over the codebooks.

audiocraft's `MusicGenSolver._compute_cross_entropy` (`solvers/musicgen.py`) over its
`LMModel.compute_predictions` (`models/lm.py`), and transformers' `MusicgenForCausalLM` with labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.ops.training import cross_entropy


def shift_codes(codes: mx.array, delays: Sequence[int], special: int) -> tuple[mx.array, mx.array]:
    """The inputs and the targets of a training step, int `[B, K, T]` each, of `codes` `[B, K, T]`.

    The delay pattern's steps 0 to T - 1, and 1 to T: what is behind them would need frames that aren't there.
    """
    frames = codes.shape[2]
    sequence = DelayPattern(tuple(delays), frames).build_sequence(codes, special)
    return sequence[:, :, :frames], sequence[:, :, 1 : frames + 1]


def target_mask(lengths: Sequence[int], delays: Sequence[int], frames: int) -> np.ndarray:
    """Where there is a target, bool `[B, K, frames]`: of rows with `lengths` frames, padded to `frames`.

    Step `1 + t + delay` holds the code of frame `t`; a row ends with its step `length`.
    """
    step = np.arange(1, frames + 1)
    frame = step - 1 - np.array(delays)[:, None]
    return (frame >= 0) & (step <= np.array(lengths)[:, None, None])


def codebook_losses(logits: mx.array, targets: mx.array, mask: mx.array) -> mx.array:
    """The mean cross-entropy of each codebook over its targets in the batch, float32 `[K]`.

    Args:
        logits: `[B, K, T, card]`.
        targets: int `[B, K, T]`.
        mask: bool `[B, K, T]`, where there is a target.
    """
    # As the logits are in memory: the codebooks of a step beside each other.
    logits, targets, mask = (array.swapaxes(1, 2) for array in (logits, targets, mask))
    # The special code has no logit.
    entropy = cross_entropy(logits, mx.where(mask, targets, 0))
    return mx.where(mask, entropy, 0).sum(axis=(0, 1)) / mx.maximum(mask.sum(axis=(0, 1)), 1)
