"""Prompts → T5 → projection: the text condition.

Equal to audiocraft's `T5Conditioner` (`modules/conditioners.py`), except that padding is masked, so that a
prompt's hidden states don't depend on the others of its batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from tokenizers import Tokenizer

from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.validation import TRAINED_TOKENS


class TextConditioner:
    """T5, its tokenizer, and the projection to the decoder's dimension (None where T5 has the same)."""

    def __init__(self, tokenizer: Tokenizer, t5: T5Encoder, output_proj: nn.Linear | None) -> None:
        self.tokenizer = tokenizer
        self.t5 = t5
        self.output_proj = output_proj
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def tokenize(self, prompts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 `[B, L]` and their mask bool `[B, L]`, padded to the longest prompt.

        Raises `CheckpointError` if the tokenizer fails, or gives a token that T5 has no embedding for: a
        look-up beyond a table's end reads whatever is there.
        """
        encodings = self.token_ids(prompts)
        length = max(len(ids) for ids in encodings)
        if length > TRAINED_TOKENS:
            warnings.warn(
                f"a prompt has {length} tokens, and the text encoder was trained with up to {TRAINED_TOKENS}:"
                " what is beyond may count for little; a shorter one is followed more closely",
                stacklevel=2,
            )
        tokens = np.zeros((len(encodings), length), np.int32)
        mask = np.zeros((len(encodings), length), bool)
        for row, ids in enumerate(encodings):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def token_ids(self, prompts: Sequence[str | None]) -> list[list[int]]:
        """Of each prompt, at least one. Raises `CheckpointError` as `tokenize`."""
        try:
            encodings = [encoding.ids for encoding in self.tokenizer.encode_batch([p or "" for p in prompts])]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        # The library raises bare `Exception`, and where it panics a `BaseException`.
        except BaseException as error:
            raise CheckpointError(
                "the model's tokenizer.json fails on a prompt; download it again"
            ) from error
        highest = max((max(ids, default=0) for ids in encodings), default=0)
        if highest >= self.t5.config.vocab_size:
            raise CheckpointError(
                f"the model's tokenizer.json gives token {highest} for a prompt, and its text encoder has"
                f" {self.t5.config.vocab_size} embeddings; download it again"
            )
        return encodings

    def count_tokens(self, prompt: str) -> int:
        """Raises `CheckpointError` as `tokenize` does."""
        return len(self.token_ids([prompt])[0])

    def hidden_states(self, prompts: Sequence[str | None]) -> tuple[mx.array, np.ndarray]:
        """T5's hidden states of `prompts`, projected, float32 `[B, L, dim]`, and their mask bool `[B, L]`.

        None and "" have a single token, of zeros. The states are zero where the mask is False.
        """
        ids, mask = self.tokenize(prompts)
        hidden = self._t5_states(ids, mask)
        if self.output_proj is not None:
            hidden = self.output_proj(hidden)
        nonzero = mask & np.array([bool(prompt) for prompt in prompts])[:, None]
        return mx.where(mx.array(nonzero)[..., None], hidden, 0), mask

    def unprojected_states(self, ids: Sequence[int]) -> mx.array:
        """T5's hidden states of one prompt's tokens without the projection, float32 `[L, t5_dim]`.

        For training. Of more than `TRAINED_TOKENS` those before the limit, and the last: the end of the text.
        """
        used = ids if len(ids) <= TRAINED_TOKENS else [*ids[: TRAINED_TOKENS - 1], ids[-1]]
        tokens = mx.array([used], mx.int32)
        states = self.t5(tokens, mx.ones(tokens.shape, mx.bool_))[0].astype(mx.float32)
        mx.eval(states)
        return states

    def _t5_states(self, ids: np.ndarray, mask: np.ndarray) -> mx.array:
        batch, length = ids.shape
        if length <= TRAINED_TOKENS or batch == 1:
            return self.t5(mx.array(ids), mx.array(mask))
        # T5 takes memory with the square of a text's length: one at a time, and none at another one's length.
        rows = []
        for row, count in zip(ids, mask.sum(axis=1).clip(1).tolist(), strict=True):
            hidden = self.t5(mx.array(row[None, :count]), mx.ones((1, count), mx.bool_))
            rows.append(mx.pad(hidden, [(0, 0), (0, length - count), (0, 0)]))
            mx.eval(rows[-1])
        return mx.concatenate(rows)

    def encode(
        self, prompts: Sequence[str | None], negative: Sequence[str | None] | None = None
    ) -> ConditionTensors:
        """Conditions for cross-attention, a row for each prompt.

        `negative` has the texts that guidance leads away from, one for each prompt; None: no text.
        """
        conditions = self._encode(prompts)
        unconditional = None
        if negative is not None and any(negative):
            unconditional = self._encode(negative)
        elif any(prompts):
            assert conditions.cross is not None
            unconditional = ConditionTensors(cross=mx.zeros_like(conditions.cross))
        return ConditionTensors(conditions.cross, conditions.cross_mask, unconditional=unconditional)

    def _encode(self, prompts: Sequence[str | None]) -> ConditionTensors:
        hidden, mask = self.hidden_states(prompts)
        # The zeros of an empty prompt can be attended to: they add nothing, and the softmax of a row that is
        # masked everywhere is NaN.
        mask |= np.array([not prompt for prompt in prompts])[:, None]
        return ConditionTensors(cross=hidden, cross_mask=None if mask.all() else mx.array(mask))
