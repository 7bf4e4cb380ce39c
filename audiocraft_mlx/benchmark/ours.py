"""This package's side of the benchmark."""

from __future__ import annotations

import time
from typing import cast

import mlx.core as mx

from audiocraft_mlx.benchmark import graph, measure, traffic
from audiocraft_mlx.benchmark.late import LateLM
from audiocraft_mlx.benchmark.side import GUIDANCE, PROMPT, SAMPLING, STEPS, WARM_UP_STEPS
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import row_keys
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.lm import LM


class Ours:
    """See `Side`; further what only this side can say about itself."""

    def __init__(self, name: str, checkpoint: ModelBundle) -> None:
        self._lm = checkpoint.lm
        self._codec = checkpoint.codec
        self._conditioner = checkpoint.text_conditioner
        self._model = MusicGen(name, checkpoint)
        self._conditions = self._conditioner.encode([PROMPT])
        longest = int(checkpoint.max_duration * self._codec.frame_rate)
        self._capacity = DelayPattern(self._lm.config.delays, longest).steps

    def encode_text(self) -> float:
        def encode() -> None:
            conditions = self._conditioner.encode([PROMPT])
            mx.eval(conditions.cross)

        return measure.seconds(encode)

    def step(self, second: float) -> float:
        frames = WARM_UP_STEPS + STEPS
        steps = DelayPattern(self._lm.config.delays, frames).steps
        lm = LateLM(self._lm, self._offset(second), self._capacity)
        done: list[float] = []
        for _ in generate_frames(
            cast(LM, lm),
            self._conditions,
            frames,
            SAMPLING,
            GUIDANCE,
            keys=row_keys(0, 1, steps),
            on_step=lambda step, total: done.append(time.perf_counter()),
        ):
            pass
        return (done[WARM_UP_STEPS + STEPS - 1] - done[WARM_UP_STEPS - 1]) / STEPS

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
        """Seconds of a step that the host takes to build its graph."""
        return graph.host_time(self._lm, self._conditions)

    def kernels_of_layer(self) -> int:
        """Kernels in each step for each layer."""
        return graph.kernels_of_layer(self._lm, self._conditions)

    def bytes_of_step(self, second: float) -> int:
        """Bytes that a step at `second` has to read."""
        null = self._conditions.null
        both = self._conditions if null is None else self._conditions.stacked_on(null)
        state = self._lm.start(both, self._capacity)
        positions = self._offset(second) + WARM_UP_STEPS + STEPS
        return traffic.weight_bytes(self._lm, both.batch) + traffic.cache_bytes(state, positions)

    def _offset(self, second: float) -> int:
        """Where to begin, for the last step to be at `second`."""
        return max(0, int(second * self._codec.frame_rate) - WARM_UP_STEPS - STEPS)
