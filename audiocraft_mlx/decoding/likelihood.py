"""How likely a model finds codes that follow others: what it would have predicted where they are."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM


def following_loss(lm: LM, conditions: ConditionTensors, codes: mx.array, first: int) -> np.ndarray:
    """The cross-entropy of the frames from `first` on, given those before each: float32 `[B]`, in nats.

    The mean over codebooks and frames, without guidance: that of a training (audiocraft's
    `MusicGenSolver._compute_cross_entropy`), but all codebooks of the last frame count too. One forward pass
    for each row, since the scores of a CPU's attention take memory with the square of the length.

    Args:
        conditions: a row for each sequence.
        codes: int `[B, K, F]`.
        first: a frame, at least 0 and below F.
    """
    pattern = DelayPattern(lm.config.delays, codes.shape[2])
    sequence = pattern.build_sequence(codes, lm.special_token_id)
    # Step s is predicted from those before it.
    counted = pattern.mask(pattern.frames) & ~pattern.mask(first)
    begin = pattern.first_step(first)
    mask = mx.array(counted[:, begin:])
    losses = []
    for row in range(codes.shape[0]):
        steps, targets = sequence[row : row + 1, :, :-1], sequence[row, :, begin:]
        state = lm.make_state(conditions.row(row), 1, steps.shape[2])
        x, position = lm.embed_steps(steps, state)
        x = lm.run_layers(x, position, state)
        logits = lm.predict(x, targets.shape[1])[0].astype(mx.float32)
        # The special code has no logit.
        known = mx.where(mask, targets, 0)[..., None]
        entropy = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, known, axis=-1)[..., 0]
        losses.append(mx.where(mask, entropy, 0).sum() / mask.sum())
        mx.eval(losses[-1])
    return np.array(mx.stack(losses))
