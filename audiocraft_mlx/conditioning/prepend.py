"""The prefix of melody and style models: in front of the codes, tokens of the audio, then those of the text.

audiocraft's `ConditionFuser` with `prepend` (`modules/conditioners.py`). There texts of a batch are padded at
their end with zeros, which the model attends to. Here each row has the same tokens as alone, with masked
padding in front. Only rows without style in a batch with others have as many zeros as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.notes import Notes
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

AudioConditioner = MelodyConditioner | StyleConditioner


def build_prepended_conditions(
    text_conditioner: TextConditioner,
    audio_conditioner: AudioConditioner,
    prompts: Sequence[str | None],
    audios: Sequence[mx.array | Notes | None],
    style_params: StyleParams,
    seeds: Sequence[int],
    window: int,
    separate_null: bool,
    separate_melody: bool = True,
    negative: Sequence[str | None] | None = None,
    notes_start: float = 0.0,
) -> ConditionTensors:
    """Conditions of `prompts` with `audios`.

    Args:
        audios: one per row, float `[C, T]` at the model's rate or None; for melody models notes, too.
        seeds: one per row; a style's excerpt is drawn from it and `window`.
        separate_null: the null conditions are not for one batch with the others. They have as few tokens as
            possible then, else as many as the others.
        separate_melody: source separation before the chroma, as in the reference.
        notes_start: the second from which on notes are taken.
        negative: texts that stand in the null conditions, one for each row; None: no text.
    """
    text = _text_rows(text_conditioner, prompts)
    null_text = [mx.zeros_like(row) for row in text]
    if isinstance(audio_conditioner, MelodyConditioner):
        audio = audio_conditioner.encode(audios, separate_melody, notes_start)
        null_audio = minimal_null = [audio_conditioner.null_tokens()] * len(audio)
    else:
        styles = [None if isinstance(clip, Notes) else clip for clip in audios]
        tokens, present = audio_conditioner.encode(styles, style_params, seeds, window)
        counts = [int(count) for count in np.array(present).sum(axis=1)]
        # A row without style has as many zeros as the others have tokens.
        audio = [row[: count or len(row)] for row, count in zip(tokens, counts, strict=True)]
        null_audio = [mx.zeros_like(row) for row in audio]
        minimal_null = [row[:1] for row in null_audio]
    null = None
    if any(prompts) or any(clip is not None for clip in audios) or any(negative or ()):
        away_from = [row[:1] for row in null_text] if separate_null else null_text
        if negative is not None and any(negative):
            encoded = _text_rows(text_conditioner, negative)
            away_from = [
                own if text else null for own, text, null in zip(encoded, negative, away_from, strict=True)
            ]
        null = _concat_rows(minimal_null if separate_null else null_audio, away_from)
    conditions = _concat_rows(audio, text)
    return ConditionTensors(
        prefix=conditions.prefix,
        prefix_padding=conditions.prefix_padding,
        unconditional=null,
        audio_only=_concat_rows(audio, null_text),
    )


def _text_rows(conditioner: TextConditioner, prompts: Sequence[str | None]) -> list[mx.array]:
    """The hidden states `[n, dim]` of each prompt, without padding."""
    hidden, mask = conditioner.hidden_states(prompts)
    return [row[: int(own.sum())] for row, own in zip(hidden, mask, strict=True)]


def _concat_rows(first: list[mx.array], second: list[mx.array]) -> ConditionTensors:
    """Rows `[n, dim]` of `first`, each followed by that of `second`, padded in front to one length."""
    rows = [mx.concatenate(list(pair)) for pair in zip(first, second, strict=True)]
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    prefix = mx.stack([mx.pad(row, [(count, 0), (0, 0)]) for row, count in zip(rows, padding, strict=True)])
    return ConditionTensors(prefix=prefix, prefix_padding=mx.array(padding) if any(padding) else None)
