"""What one decoding step costs: kernels on the device, graph building on the host, bytes read from memory."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from audiocraft_mlx.benchmark.backend import GUIDANCE, SAMPLING, TIMED_STEPS
from audiocraft_mlx.decoding.guidance import GuidedDecoder
from audiocraft_mlx.decoding.sampling import sample_codes
from audiocraft_mlx.decoding.step import LMDecoder, taken
from audiocraft_mlx.networks.cache import DecoderState
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.weights import flat_parameters

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
"""MLX primitives that usually return a view instead of running a kernel (a few of them copy at times)."""


def count_kernels(array: mx.array) -> int:
    """Operations in the unevaluated graph of `array`, without views."""
    dot = io.StringIO()
    mx.export_to_dot(dot, array)
    operations = re.findall(r'\[label ="([^"]*)"', dot.getvalue())
    return sum(operation not in VIEWS for operation in operations)


def kernels_per_step(decoder: LMDecoder, conditions: ConditionTensors) -> int:
    """Kernels of one guided step, sampling included."""
    stepper = _Stepper(decoder, conditions, steps=2)
    mx.eval(stepper.next())
    return count_kernels(stepper.next())


def kernels_per_layer(lm: LM, conditions: ConditionTensors, cache_bits: int | None = None) -> int:
    """Kernels that one layer adds to a step: the difference to the same model with a layer less."""
    with _one_layer_less(lm):
        fewer = kernels_per_step(LMDecoder(lm, cache_bits), conditions)
    return kernels_per_step(LMDecoder(lm, cache_bits), conditions) - fewer


def host_time(decoder: LMDecoder, conditions: ConditionTensors) -> float:
    """Seconds to build the graph of one step, without evaluating it."""
    stepper = _Stepper(decoder, conditions, 1 + TIMED_STEPS)
    mx.eval(stepper.next())
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        stepper.next()
    return (time.perf_counter() - start) / TIMED_STEPS


def weight_bytes(lm: LM, rows: int) -> int:
    """Bytes of weights that a step for `rows` sequences reads."""
    weights = flat_parameters(lm)
    embedding = weights["embed.weight"]
    # Of the embedding one row per codebook. The cross-attention's keys and values are computed before the
    # first step.
    read = [
        weight
        for name, weight in weights.items()
        if name != "embed.weight" and ".cross_attn.kv_proj." not in name
    ]
    embedding_rows = rows * lm.config.num_codebooks * embedding.shape[1] * embedding.itemsize
    return sum(weight.nbytes for weight in read) + embedding_rows


def cache_bytes(state: DecoderState, positions: int) -> int:
    """Bytes of keys and values (self- and cross-attention) that a step which attends to `positions` reads."""
    capacity = state.positions.shape[0]
    allocated = sum(cache.nbytes for cache in state.caches)
    cross = sum(array.nbytes for kv in state.cross_kv for array in kv)
    return allocated * positions // capacity + cross


class _Stepper:
    """Guided steps that are only built; `frames.generate_frames` would wait for each of them."""

    def __init__(self, decoder: LMDecoder, conditions: ConditionTensors, steps: int) -> None:
        lm, config = decoder.lm, decoder.lm.config
        self._decoder = GuidedDecoder(decoder, conditions, steps, GUIDANCE)
        self._codes = mx.full((conditions.batch, config.num_codebooks), lm.special_token_id, mx.int32)
        self._noise = mx.zeros((conditions.batch, config.num_codebooks, config.cardinality))
        mx.eval(self._codes, self._noise)

    def next(self) -> mx.array:
        """The codes of the next step, unevaluated."""
        self._codes = sample_codes(taken(self._decoder(self._codes[:, :, None])), SAMPLING, self._noise)
        return self._codes


@contextmanager
def _one_layer_less(lm: LM) -> Iterator[None]:
    layer = lm.layers.pop()
    try:
        yield
    finally:
        lm.layers.append(layer)
