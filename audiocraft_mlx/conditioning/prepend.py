"""What stands in front of the codes in melody and style models: tokens of audio, then those of the text.

audiocraft's `ConditionFuser` with `prepend` (`modules/conditioners.py`). There the texts of a batch are
padded at their end with zeros, which the model sees; here each row has what it has alone, padded in front
with what no row sees. Only rows without style among rows with it have as many zeros as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.networks.condition_tensors import ConditionTensors

AudioConditioner = MelodyConditioner | StyleConditioner
Rows = list[mx.array]


def build_prepended_conditions(
    text: TextConditioner,
    listener: AudioConditioner,
    prompts: Sequence[str | None],
    audios: Sequence[mx.array | None],
    style: StyleParams,
    seeds: Sequence[int],
    window: int,
    separate_null: bool,
) -> ConditionTensors:
    """Conditions of `prompts` with `audios`, each float `[C, T]` at the model's rate or None.

    The excerpts of a style are drawn from `seeds` and `window`. With `separate_null` nothing is said in as few
    tokens as possible, as where it isn't in one batch with what it is compared to, else in as many as that.
    """
    hidden, mask = text.hidden_states(prompts)
    lengths = [int(row.sum()) for row in mask]
    said = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    unsaid = [mx.zeros_like(row) for row in said]
    if isinstance(listener, MelodyConditioner):
        heard = listener.encode(audios)
        silence = listener.null()
        unheard = alone = [silence] * len(heard)
    else:
        tokens, present = listener.encode(audios, style, seeds, window)
        counts = [int(count) for count in np.array(present).sum(axis=1)]
        # A row without style has as many zeros as the others have tokens.
        heard = [row[: count or len(row)] for row, count in zip(tokens, counts, strict=True)]
        unheard = [mx.zeros_like(row) for row in heard]
        alone = [row[:1] for row in unheard]
    null = None
    if any(prompts) or any(audio is not None for audio in audios):
        null = (
            _side_by_side(alone, [row[:1] for row in unsaid])
            if separate_null
            else _side_by_side(unheard, unsaid)
        )
    conditions = _side_by_side(heard, said)
    return ConditionTensors(
        prefix=conditions.prefix,
        prefix_padding=conditions.prefix_padding,
        unconditional=null,
        audio_only=_side_by_side(heard, unsaid),
    )


def _side_by_side(first: Rows, second: Rows) -> ConditionTensors:
    rows = [mx.concatenate(list(pair)) for pair in zip(first, second, strict=True)]
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    prefix = mx.stack([mx.pad(row, [(count, 0), (0, 0)]) for row, count in zip(rows, padding, strict=True)])
    return ConditionTensors(prefix=prefix, prefix_padding=mx.array(padding) if any(padding) else None)
