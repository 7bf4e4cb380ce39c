"""What is trained: the language model and the projection of its text, as one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, PositionInfo
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.linear import linear
from audiocraft_mlx.ops.training import random_key
from audiocraft_mlx.tuning.lora import seed_dropout
from audiocraft_mlx.tuning.loss import codebook_losses, shift_codes, target_mask


@dataclass(frozen=True)
class Batch:
    """Rows of a step, padded behind their ends.

    Attributes:
        codes: int32 `[B, K, T]`.
        lengths: the frames of each row.
        text: T5's hidden states before their projection, float32 `[B, L, t5_dim]`.
        text_lengths: the tokens of each row; 0 for a row without text.
    """

    codes: mx.array
    lengths: tuple[int, ...]
    text: mx.array
    text_lengths: tuple[int, ...]


def make_batch(codes: Sequence[np.ndarray], texts: Sequence[np.ndarray | None], text_dim: int) -> Batch:
    """Rows of int `[K, T]` codes, and of their texts, float32 `[L, text_dim]` or None."""
    frames = max(row.shape[1] for row in codes)
    tokens = max([1, *(len(text) for text in texts if text is not None)])
    padded_codes = np.zeros((len(codes), codes[0].shape[0], frames), np.int32)
    padded_text = np.zeros((len(texts), tokens, text_dim), np.float32)
    for row, (one, text) in enumerate(zip(codes, texts, strict=True)):
        padded_codes[row, :, : one.shape[1]] = one
        if text is not None:
            padded_text[row, : len(text)] = text
    return Batch(
        mx.array(padded_codes),
        tuple(row.shape[1] for row in codes),
        mx.array(padded_text),
        tuple(0 if text is None else len(text) for text in texts),
    )


class TrainedNetwork(nn.Module):
    """`lm`, and the projection of T5's hidden states (None where there is none).

    `prefix` is what a melody model has in front of the text, float32 `[length, dim]`: no melody's tokens.
    `checkpointing` computes a block's activations once more in the backward pass, instead of keeping them.
    """

    def __init__(
        self,
        lm: LM,
        output_proj: nn.Module | None,
        prefix: mx.array | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.lm = lm
        if output_proj is not None:
            self.output_proj = output_proj
        # Not parameters.
        self._prefix = prefix
        self._checkpointing = checkpointing

    @property
    def prefix_length(self) -> int:
        """Tokens in front of the text."""
        return 0 if self._prefix is None else len(self._prefix)

    def losses(self, batch: Batch) -> mx.array:
        """The loss of each codebook, float32 `[K]`; see `codebook_losses`."""
        seed_dropout(self, random_key())
        inputs, targets = shift_codes(batch.codes, self.lm.config.delays, self.lm.special_token_id)
        mask = target_mask(batch.lengths, self.lm.config.delays, targets.shape[2])
        return codebook_losses(self(inputs, self.conditions(batch)), targets, mx.array(mask))

    def __call__(self, inputs: mx.array, conditions: ConditionTensors) -> mx.array:
        """Logits `[B, K, T, card]` for the step after each of `inputs`, int `[B, K, T]`."""
        state = self.lm.make_state(conditions, inputs.shape[0], inputs.shape[2])
        x, position = self.lm.embed_steps(inputs, state)
        for index, block in enumerate(self.lm.layers):
            kv = state.cross_kv[index] if state.cross_kv else None

            def run(key: mx.array, x: mx.array, *kv: mx.array, block: nn.Module = block) -> mx.array:
                seed_dropout(block, key)
                return run_block(block, x, position, kv or None, state.cross_mask)

            run_once = _checkpointed(block, run) if self._checkpointing else run
            x = run_once(random_key(), x, *(kv or ()))
        return self.lm.predict(x, inputs.shape[2])

    def conditions(self, batch: Batch) -> ConditionTensors:
        """Those of `conditioning.text` and `conditioning.prepend`, differentiable."""
        hidden = batch.text
        if "output_proj" in self:
            hidden = self.output_proj(hidden)
        tokens, lengths = hidden.shape[1], np.array(batch.text_lengths)
        filled = np.arange(tokens) < lengths[:, None]
        hidden = mx.where(mx.array(filled)[..., None], hidden, 0)
        # A row without text has a single token of zeros.
        lengths = np.maximum(lengths, 1)
        if self.lm.config.cross_attention:
            visible = np.arange(tokens) < lengths[:, None]
            return ConditionTensors(cross=hidden, cross_mask=None if visible.all() else mx.array(visible))
        rows = []
        for row, length in enumerate(lengths):
            text = hidden[row, : int(length)]
            parts = [text] if self._prefix is None else [self._prefix, text]
            rows.append(mx.pad(mx.concatenate(parts), [(tokens - int(length), 0), (0, 0)]))
        prefix = mx.stack(rows)
        padding = tokens - lengths
        return ConditionTensors(prefix=prefix, prefix_padding=mx.array(padding) if padding.any() else None)


def run_block(
    block: nn.Module,
    x: mx.array,
    position: PositionInfo,
    cross_kv: tuple[mx.array, ...] | None,
    cross_mask: mx.array | None,
) -> mx.array:
    """A `networks.lm.Block`; its queries, keys and values are parted so that the gradients aren't copied."""
    heads = block.self_attn.num_heads
    qkv = linear(block.self_attn.qkv_proj, x, norm=block.norm1)
    q, k, v = (
        part.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in mx.split(qkv, 3, axis=-1)
    )
    if position.rotary_periods is not None:
        q, k = position.apply_rope(q), position.apply_rope(k)
    attn_out = attention(q, k, v, position.mask, training=True)
    return block.post_attention(x, attn_out, cross_kv, cross_mask)


def _checkpointed(block: nn.Module, run: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def with_parameters(parameters: dict, *arrays: mx.array) -> mx.array:
        block.update(parameters)
        return run(*arrays)

    checkpointed = mx.checkpoint(with_parameters)
    return lambda *arrays: checkpointed(block.trainable_parameters(), *arrays)
