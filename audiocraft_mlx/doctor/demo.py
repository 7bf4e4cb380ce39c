"""What the demo model computes: on the default device, on the CPU, or in the GPU's branch on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import mlx.core as mx
import numpy as np

from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_files import DEMO
from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
from audiocraft_mlx.ops.device import gpu_branch

PROMPTS = ("a fast happy piano tune with a dance beat", "slow sad strings")
"""Of different lengths: the mask of the shorter one's padding is tested too."""
FRAMES = 50
"""One second."""
_PREFILL = 8
"""Steps that are given at once, as those of a clip to continue; the others one by one, as in a generation."""


@dataclass(frozen=True)
class Place:
    """Where and how something is computed; `enter` is that during a `with` block."""

    name: str
    enter: Callable[[], AbstractContextManager[object]]
    tf32: bool = False
    """Whether float32 may be multiplied with the precision of TF32."""


@contextmanager
def _cpu_device() -> Iterator[None]:
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(device)


CPU = Place("CPU", _cpu_device)
FORCED_GPU_BRANCH = Place("GPU branch on the CPU", gpu_branch)


def tested_place(tf32: bool) -> Place:
    """The GPU, or its branch on the CPU where there is none; `tf32` is whether MLX may use TF32 on a GPU."""
    if mx.default_device() == mx.gpu:
        return Place("GPU", nullcontext, tf32)
    return FORCED_GPU_BRANCH


class DemoModel:
    """The demo model at a place, with the language model in float32 or, if `half`, float16.

    Everything is given and returned as NumPy arrays, so that no place computes with what is lazy of another.
    """

    def __init__(self, place: Place, half: bool = False) -> None:
        self.place = place
        self.half = half

    @cached_property
    def bundle(self) -> ModelBundle:
        with self.place.enter():
            patch_mlx_blas()
            if self.half:
                return load(DEMO)  # as every user's model on a GPU
            bundle = load(DEMO, lazy=True)
            bundle.materialize()
            return bundle

    def hidden_states(self, *prompts: str) -> np.ndarray:
        """T5's of `prompts`, as a batch, projected: float32 `[N, dim]`, of all tokens but the padding."""
        with self.place.enter():
            hidden, mask = self.bundle.text_conditioner.hidden_states(prompts)
            return np.array(hidden)[mask]

    def greedy_codes(self, hidden: np.ndarray) -> np.ndarray:
        """Greedy, guided codes int32 `[K, FRAMES]` under one prompt's hidden states `[L, dim]`."""
        with self.place.enter():
            chunks = generate_frames(
                LMDecoder(self.bundle.lm),
                _conditions(hidden),
                FRAMES,
                SamplingParams(use_sampling=False),
                self.bundle.guidance,
                chunk_frames=repeat(FRAMES),
            )
            return np.array(next(iter(list(chunks))))[0]

    def logits(self, codes: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Teacher-forced logits float32 `[2, K, S, card]`, with and without the prompt.

        `codes` int `[K, F]` are the sequence, `hidden` `[L, dim]` the prompt's hidden states.
        Logits of step s are those for the codes at step s + 1 of the delay pattern.
        """
        with self.place.enter():
            lm = self.bundle.lm
            pattern = DelayPattern(lm.config.delays, codes.shape[1])
            sequence = pattern.build_sequence(mx.array(codes)[None], lm.special_token_id)
            sequence = mx.concatenate([sequence] * 2)
            conditions = _conditions(hidden)
            assert conditions.unconditional is not None
            steps = pattern.steps - 1
            decoder = LMDecoder(lm).start(conditions.concat_batch(conditions.unconditional), steps)
            logits = []
            for start in (0, *range(_PREFILL, steps)):
                end = start + 1 if start else _PREFILL
                logits.append(decoder(sequence[:, :, start:end]).astype(mx.float32))
                mx.eval(logits[-1])
            return np.array(mx.concatenate(logits, axis=2))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Audio float32 `[C, samples]` of `codes` int `[K, F]`."""
        with self.place.enter():
            return np.array(self.bundle.codec.decode(mx.array(codes)[None]))[0]


def _conditions(hidden: np.ndarray) -> ConditionTensors:
    cross = mx.array(hidden)[None]
    return ConditionTensors(cross=cross, unconditional=ConditionTensors(cross=mx.zeros_like(cross)))
