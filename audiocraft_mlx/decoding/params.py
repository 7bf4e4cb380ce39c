"""What a row is generated with: its length, sampling and guidance, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.masked import MaskedParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import UsageError


@dataclass(frozen=True)
class GenerationParams:
    """Parameters of one row; `GenModel.make_params` makes and checks them."""

    duration: float
    """Seconds of the clip in all, a prompt clip included."""
    max_duration: float
    """Seconds of one window."""
    extend_stride: float
    """Seconds by which each window moves on, where `duration` is beyond `max_duration`."""
    sampling: SamplingParams
    guidance: GuidanceParams
    masked: MaskedParams | None = None
    """Of a model that fills masks, in place of `guidance`."""

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Rows whose keys are equal can share a batch: the same steps, through the same branches."""
        key = (self.duration, self.max_duration, self.extend_stride, self.guidance.branches)
        if self.masked is None:
            return key
        return (*key, self.masked.decoding_steps, self.masked.span_arrangement)


def params_of_rows(
    params: GenerationParams | Sequence[GenerationParams], rows: int
) -> tuple[GenerationParams, ...]:
    """The parameters of each of `rows` rows, of one value for all of them or of one for each.

    Raises:
        UsageError: there isn't one for each, or they can't share a batch.
    """
    if isinstance(params, GenerationParams):
        return (params,) * rows
    if len(params) != rows:
        raise UsageError(f"there are {rows} descriptions, but {len(params)} sets of parameters")
    if len({row.batch_key for row in params}) > 1:
        raise UsageError(
            "these rows can't share a batch: they differ in duration, windows or kind of guidance;"
            " generate them one after the other"
        )
    return tuple(params)
