"""A step's graph: how long the host takes to build it, and how many kernels the device has to run for it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from audiocraft_mlx.benchmark.side import GUIDANCE, SAMPLING, STEPS
from audiocraft_mlx.decoding.guidance import GuidedDecoder
from audiocraft_mlx.decoding.sampling import sample_codes
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM

VIEWS = frozenset(
    {
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Contiguous",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    }
)
"""Operations that compute nothing, but look at an array in another way. (Some of them copy it at times.)"""


def count_kernels(array: mx.array) -> int:
    """Operations that are left to do for `array`, views not counted."""
    drawing = io.StringIO()
    mx.export_to_dot(drawing, array)
    operations = re.findall(r'\[label ="([^"]*)"', drawing.getvalue())
    return sum(operation not in VIEWS for operation in operations)


def kernels_of_step(lm: LM, conditions: ConditionTensors) -> int:
    """Operations of a guided step, the draw of its codes included."""
    stepper = _Stepper(lm, conditions, steps=2)
    mx.eval(stepper.next())
    return count_kernels(stepper.next())


def kernels_of_layer(lm: LM, conditions: ConditionTensors) -> int:
    """Operations of a step that are one layer's: what a model with a layer less doesn't have."""
    with _without_a_layer(lm):
        fewer = kernels_of_step(lm, conditions)
    return kernels_of_step(lm, conditions) - fewer


def host_time(lm: LM, conditions: ConditionTensors) -> float:
    """Seconds that building a step takes, none of it evaluated."""
    stepper = _Stepper(lm, conditions, 1 + STEPS)
    mx.eval(stepper.next())
    start = time.perf_counter()
    for _ in range(STEPS):
        stepper.next()
    return (time.perf_counter() - start) / STEPS


class _Stepper:
    """Guided steps one after the other, for which `frames.generate_frames` would wait each time."""

    def __init__(self, lm: LM, conditions: ConditionTensors, steps: int) -> None:
        config = lm.config
        self._predict = GuidedDecoder(lm, conditions, steps, GUIDANCE)
        self._codes = mx.full((conditions.batch, config.num_codebooks), lm.special_token_id, mx.int32)
        self._noise = mx.zeros((conditions.batch, config.num_codebooks, config.cardinality))
        mx.eval(self._codes, self._noise)

    def next(self) -> mx.array:
        """The codes of the next step, not evaluated."""
        self._codes = sample_codes(self._predict(self._codes[:, :, None]), SAMPLING, self._noise)
        return self._codes


@contextmanager
def _without_a_layer(lm: LM) -> Iterator[None]:
    layer = lm.layers.pop()
    try:
        yield
    finally:
        lm.layers.append(layer)
