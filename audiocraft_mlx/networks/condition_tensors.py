"""What the code transformer is conditioned on, as a value: made by a conditioner, read by the model."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class ConditionTensors:
    """Conditions of a batch, in the transformer's dimension.

    Attributes:
        cross: float `[B, C, dim]`, what cross-attention attends to.
        cross_mask: bool `[B, C]`, False where it may not (None: everywhere; at least one True in each row).
        prefix: float `[B, P, dim]`, prepended to the codes.
        prefix_padding: int `[B]`, the positions at the beginning of each row's prefix that are padding
            (None: none).
        unconditional: what guidance leads away from; None if these conditions are themselves empty.
        audio_only: the same without the text, for guidance in two parts; None where there is only text.
    """

    cross: mx.array | None = None
    cross_mask: mx.array | None = None
    prefix: mx.array | None = None
    prefix_padding: mx.array | None = None
    unconditional: ConditionTensors | None = None
    audio_only: ConditionTensors | None = None

    @property
    def batch(self) -> int:
        for array in (self.cross, self.prefix):
            if array is not None:
                return array.shape[0]
        raise ValueError("conditions without any array have no batch size")

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    def row(self, index: int) -> ConditionTensors:
        """Those of one row, without what guidance leads away from."""
        arrays = (self.cross, self.cross_mask, self.prefix, self.prefix_padding)
        cross, mask, prefix, padding = (None if a is None else a[index : index + 1] for a in arrays)
        return ConditionTensors(cross, mask, prefix, padding)

    def concat_batch(self, other: ConditionTensors) -> ConditionTensors:
        """The rows of both in one batch, these first; both have the same arrays.

        The shorter ones are padded: a prefix in front, what cross-attention attends to at its end.
        """
        first, second = self._padded_like(other), other._padded_like(self)
        both = first, second
        mask, padding = None, None
        if any(one.cross_mask is not None for one in both):
            mask = mx.concatenate(
                [_full_mask(one) if one.cross_mask is None else one.cross_mask for one in both]
            )
        if any(one.prefix_padding is not None for one in both):
            padding = mx.concatenate([_full_padding(one) for one in both])
        return ConditionTensors(
            _concat(first.cross, second.cross), mask, _concat(first.prefix, second.prefix), padding
        )

    def _padded_like(self, other: ConditionTensors) -> ConditionTensors:
        """These in arrays that are at least as long as those of `other`."""
        cross, mask, prefix, padding = self.cross, self.cross_mask, self.prefix, self.prefix_padding
        if cross is not None and other.cross is not None and cross.shape[1] < other.cross.shape[1]:
            missing = other.cross.shape[1] - cross.shape[1]
            mask = mx.pad(_full_mask(self) if mask is None else mask, [(0, 0), (0, missing)])
            cross = mx.pad(cross, [(0, 0), (0, missing), (0, 0)])
        if prefix is not None and self.prefix_length < other.prefix_length:
            missing = other.prefix_length - self.prefix_length
            padding = _full_padding(self) + missing
            prefix = mx.pad(prefix, [(0, 0), (missing, 0), (0, 0)])
        return ConditionTensors(cross, mask, prefix, padding)


def _full_mask(conditions: ConditionTensors) -> mx.array:
    assert conditions.cross is not None
    return mx.ones(conditions.cross.shape[:2], mx.bool_)


def _full_padding(conditions: ConditionTensors) -> mx.array:
    if conditions.prefix_padding is not None:
        return conditions.prefix_padding
    return mx.zeros(conditions.batch, mx.int32)


def _concat(first: mx.array | None, second: mx.array | None) -> mx.array | None:
    return None if first is None or second is None else mx.concatenate([first, second])
