"""This package as a benchmark backend."""

from __future__ import annotations

import time
from itertools import repeat

import mlx.core as mx

from audiocraft_mlx.benchmark import measure, step_costs
from audiocraft_mlx.benchmark.backend import GUIDANCE, PROMPT, SAMPLING, TIMED_STEPS, WARM_UP_STEPS
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import row_keys
from audiocraft_mlx.decoding.step import DecoderSteps, LMDecoder
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.cache import Span
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM


class MLXBackend:
    """See `Backend`; the methods after `peak_memory` are measured for this backend only."""

    def __init__(self, name: str, bundle: ModelBundle, cache_bits: int | None = None) -> None:
        self._lm = bundle.lm
        self._cache_bits = cache_bits
        self._codec = bundle.codec
        self._text_conditioner = bundle.text_conditioner
        self._model = MusicGen(name, bundle, cache_bits)
        self._conditions = self._text_conditioner.encode([PROMPT])
        max_frames = int(bundle.max_duration * self._codec.frame_rate)
        self._capacity = DelayPattern(self._lm.config.delays, max_frames).steps

    def encode_text(self) -> float:
        def encode() -> None:
            conditions = self._text_conditioner.encode([PROMPT])
            mx.eval(conditions.cross)

        return measure.seconds(encode)

    def step(self, second: float) -> float:
        frames = WARM_UP_STEPS + TIMED_STEPS
        steps = DelayPattern(self._lm.config.delays, frames).steps
        decoder = PrefilledDecoder(self._lm, self._cache_bits, self._offset(second), self._capacity)
        step_ends: list[float] = []
        for _ in generate_frames(
            decoder,
            self._conditions,
            frames,
            SAMPLING,
            GUIDANCE,
            keys=row_keys([0], steps),
            on_step=lambda step, total: step_ends.append(time.perf_counter()),
            chunk_frames=repeat(frames),  # at each chunk it waits for the device
        ):
            pass
        return (step_ends[WARM_UP_STEPS + TIMED_STEPS - 1] - step_ends[WARM_UP_STEPS - 1]) / TIMED_STEPS

    def decode(self, duration: float) -> float:
        frames = max(1, int(duration * self._codec.frame_rate))
        codes = mx.random.randint(
            0, self._codec.cardinality, (1, self._codec.num_codebooks, frames), key=mx.random.key(0)
        )
        mx.eval(codes)
        return measure.seconds(lambda: mx.eval(self._codec.decode(codes)))

    def generate(self, duration: float) -> float:
        self._model.set_generation_params(
            use_sampling=SAMPLING.use_sampling,
            top_k=SAMPLING.top_k,
            top_p=SAMPLING.top_p,
            temperature=SAMPLING.temperature,
            cfg_coef=GUIDANCE.coef,
            two_step_cfg=GUIDANCE.two_step,
            duration=duration,
            seed=0,
        )
        return measure.seconds(lambda: self._model.generate([PROMPT]))

    def peak_memory(self) -> float:
        return measure.peak_memory()

    def host_time(self) -> float:
        """Seconds that the host takes to build the graph of one step."""
        return step_costs.host_time(LMDecoder(self._lm, self._cache_bits), self._conditions)

    def kernels_per_layer(self) -> int:
        """Kernels that one layer adds to a step."""
        return step_costs.kernels_per_layer(self._lm, self._conditions, self._cache_bits)

    def bytes_per_step(self, second: float) -> int:
        """Bytes that a guided step at `second` of the music has to read."""
        conditions, empty = self._conditions, self._conditions.unconditional
        if empty is not None:
            conditions = conditions.concat_batch(empty)
        state = LMDecoder(self._lm, self._cache_bits).start(conditions, self._capacity).state
        positions = self._offset(second) + WARM_UP_STEPS + TIMED_STEPS
        weights = step_costs.weight_bytes(self._lm, conditions.batch)
        return weights + step_costs.cache_bytes(state, positions)

    def _offset(self, second: float) -> int:
        """The position to start at for the last step to be at `second`."""
        return max(0, int(second * self._codec.frame_rate) - WARM_UP_STEPS - TIMED_STEPS)


class PrefilledDecoder(LMDecoder):
    """Sequences that start at position `offset`, behind a KV cache of zeros.

    It stands for the steps that would lead there: attention to zeros costs the same. The cache is allocated
    for `capacity` positions.
    """

    def __init__(self, lm: LM, cache_bits: int | None, offset: int, capacity: int) -> None:
        super().__init__(lm, cache_bits)
        self._offset = offset
        self._capacity = capacity

    def start(self, conditions: ConditionTensors, steps: int) -> DecoderSteps:
        sequences = super().start(conditions, max(self._capacity, self._offset + steps))
        if self._offset:
            config = self.lm.config
            shape = (conditions.batch, 2 * config.num_heads, self._offset, config.dim // config.num_heads)
            zeros = mx.zeros(shape, self.lm.dtype)
            for cache in sequences.state.caches:
                cache.update_and_fetch(zeros, Span((0,) * conditions.batch, self._offset))
                cache.eval()
            sequences.state.advance(self._offset)
        return sequences
