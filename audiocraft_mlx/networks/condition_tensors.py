"""What the code transformer is told, as a value: made by a conditioner, read by the model."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class ConditionTensors:
    """Conditions of a batch, in the transformer's dimension.

    `cross` float `[B, C, dim]` is looked at by cross-attention, where `cross_mask` bool `[B, C]` is True
    (None: everywhere; a row must have something to see). `prefix` float `[B, P, dim]` stands in front of
    the codes; the first `prefix_padding[b]` positions of a row (int `[B]`, None: none) are nothing.
    `null` is what guidance leads away from; None if these conditions say nothing themselves. `audio` is the
    same without the text, for guidance in two parts; None if only text can be told.
    """

    cross: mx.array | None = None
    cross_mask: mx.array | None = None
    prefix: mx.array | None = None
    prefix_padding: mx.array | None = None
    null: ConditionTensors | None = None
    audio: ConditionTensors | None = None

    @property
    def batch(self) -> int:
        for array in (self.cross, self.prefix):
            if array is not None:
                return array.shape[0]
        raise ValueError("conditions without any array have no batch size")

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    def stacked_on(self, other: ConditionTensors) -> ConditionTensors:
        """The rows of both in one batch, these first; both have the same arrays of the same lengths."""
        both = self, other
        mask, padding = None, None
        if any(one.cross_mask is not None for one in both):
            mask = mx.concatenate(
                [_everywhere(one) if one.cross_mask is None else one.cross_mask for one in both]
            )
        if any(one.prefix_padding is not None for one in both):
            padding = mx.concatenate(
                [
                    mx.zeros(one.batch, mx.int32) if one.prefix_padding is None else one.prefix_padding
                    for one in both
                ]
            )
        return ConditionTensors(
            _rows(self.cross, other.cross), mask, _rows(self.prefix, other.prefix), padding
        )


def _everywhere(conditions: ConditionTensors) -> mx.array:
    assert conditions.cross is not None
    return mx.ones(conditions.cross.shape[:2], mx.bool_)


def _rows(first: mx.array | None, second: mx.array | None) -> mx.array | None:
    return None if first is None or second is None else mx.concatenate([first, second])
