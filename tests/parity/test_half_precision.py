"""musicgen-small's shape in float16, as on a GPU, beside float32: random weights, exact in float16."""

from __future__ import annotations

import gc

import mlx.core as mx
import numpy as np

from audiocraft_mlx.benchmark.model import random_bundle
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.device import gpu_branch
from tests.half_precision import Comparison

STEPS = 12
SINGLE_STEPS = 4


def logits_of(bundle: ModelBundle, codes: mx.array) -> np.ndarray:
    """With a prompt and without one, the last steps one by one: float32 `[2, K, S, card]`."""
    text = bundle.text_conditioner.encode(["a slow piano piece with strings"])
    assert text.unconditional is not None
    steps = LMDecoder(bundle.lm).start(text.concat_batch(text.unconditional), STEPS)
    prefill = STEPS - SINGLE_STEPS
    logits = [steps(codes[:, :, :prefill])]
    logits += [steps(codes[:, :, step : step + 1]) for step in range(prefill, STEPS)]
    return np.array(mx.concatenate(logits, axis=2).astype(mx.float32))


def test_logits_in_half_precision_are_near_those_in_float32() -> None:
    exact_model = random_bundle("small")
    config = exact_model.lm.config
    codes = mx.random.randint(0, config.cardinality, (1, config.num_codebooks, STEPS), key=mx.random.key(7))
    codes = mx.concatenate([codes] * 2)
    exact = logits_of(exact_model, codes)
    del exact_model
    gc.collect()
    mx.clear_cache()
    with gpu_branch():
        bundle = random_bundle("small")
        weights = flat_parameters(bundle.lm).values()
        assert bundle.lm.dtype == mx.float16
        assert sum(weight.size for weight in weights) > 4e8
        half = logits_of(bundle, codes)
    Comparison.of(config, exact, half).check()
