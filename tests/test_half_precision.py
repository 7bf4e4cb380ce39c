"""float16, in which a GPU computes the language model: how exact it is, and where it isn't used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from audiocraft_mlx.benchmark.model import random_bundle
from audiocraft_mlx.decoding.frames import generate_frames
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams, row_keys
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.models.audiogen import AudioGen
from audiocraft_mlx.models.genmodel import GenModel
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.activations import gelu
from audiocraft_mlx.ops.device import gpu_branch
from audiocraft_mlx.ops.int8_rows import quantize_int8
from audiocraft_mlx.ops.linear import linear

from .conftest import load_arrays
from .half_precision import Comparison

PREFIXES = {"melody": ("cond", "both"), "style": ("cond3", "three")}
"""Names of the arrays with the conditions, and of the logits, of models whose conditions are prepended."""


@pytest.fixture
def gpu() -> Iterator[None]:
    with gpu_branch():
        yield


def model_of(name: str, goldens: Path) -> GenModel:
    model_class = AudioGen if name == "audiogen" else MusicGen
    return model_class.get_pretrained(str(goldens / "goldens" / name))


def logits_of(
    dtype: mx.Dtype, model: GenModel, conditions: ConditionTensors, codes: np.ndarray
) -> np.ndarray:
    """Step by step, as codes are generated: float32 `[B, K, S, card]`."""
    model.lm.set_dtype(dtype)
    steps = LMDecoder(model.lm).start(conditions, codes.shape[2])
    sequence = mx.array(codes)
    logits = [steps(sequence[:, :, step : step + 1]) for step in range(codes.shape[2])]
    return np.array(mx.concatenate(logits, axis=2).astype(mx.float32))


@pytest.mark.usefixtures("gpu", "hub_cache")
@pytest.mark.parametrize("name", ["mono", "stereo", "rope", "audiogen", "melody", "style"])
def test_logits_in_half_precision_are_near_those_of_audiocraft(name: str, goldens: Path) -> None:
    model, values = model_of(name, goldens), load_arrays(goldens / "goldens" / f"{name}.npz")
    if name in PREFIXES:
        conditions, logits = PREFIXES[name]
        prefix = [values[f"{conditions}.{part}"] for part in ("self_wav", "description")]
        given = ConditionTensors(prefix=mx.array(np.concatenate(prefix, axis=1)))
    else:
        logits = "both"
        given = ConditionTensors(cross=mx.array(values["cond.description"]))
    exact = values[f"raw_logits.{logits}"]
    codes = np.concatenate([values["seq"]] * (len(exact) // len(values["seq"])))
    # Of the three branches of a style model, the first two serve as well.
    rows = len(values["seq"]) * 2
    exact, given, codes = exact[:rows], _rows(given, rows), codes[:rows]
    assert model.lm.dtype == mx.float16
    half = logits_of(mx.float16, model, given, codes)
    Comparison.of(model.lm.config, exact, half).check()
    # What computes with less precision than float16 is noticed.
    coarse = Comparison.of(model.lm.config, exact, logits_of(mx.bfloat16, model, given, codes))
    assert coarse.rms_error > coarse.bound.rms_error


def _rows(conditions: ConditionTensors, count: int) -> ConditionTensors:
    cross, prefix = (None if a is None else a[:count] for a in (conditions.cross, conditions.prefix))
    return ConditionTensors(cross=cross, prefix=prefix)


@pytest.mark.usefixtures("gpu", "hub_cache")
@pytest.mark.parametrize("name", ["mono", "melody", "style", "transformers"])
def test_only_the_language_model_is_in_half_precision(
    name: str, goldens: Path, transformers_folder: Callable[[str], Path]
) -> None:
    if name == "transformers":
        model: GenModel = MusicGen.get_pretrained(str(transformers_folder("mono")))
    else:
        model = model_of(name, goldens)
    bundle = model._bundle
    for network in bundle._networks():
        dtypes = {weight.dtype for weight in flat_parameters(network).values()}
        assert dtypes == {mx.float16 if network is bundle.lm else mx.float32}


# What would overflow


LARGEST = 65504.0
"""Of float16."""


@pytest.mark.usefixtures("gpu")
def test_gelu_of_any_half_is_finite() -> None:
    x = mx.array([-LARGEST, -1, 0, 1, 40000, LARGEST], mx.float16)
    exact = nn.gelu(x.astype(mx.float32))
    np.testing.assert_allclose(gelu(x), exact, rtol=2**-10)
    assert gelu(x).dtype == mx.float16


@pytest.mark.usefixtures("gpu")
def test_a_norm_is_of_the_squares_of_any_half() -> None:
    layer, norm = nn.Linear(64, 8, bias=False), nn.LayerNorm(64)
    x = LARGEST * mx.random.uniform(-1, 1, (3, 64), key=mx.random.key(0))
    exact = linear(layer, x, norm=norm)
    for part in (layer, norm):
        part.set_dtype(mx.float16)
    half = linear(layer, x.astype(mx.float16), norm=norm)
    assert half.dtype == mx.float16
    np.testing.assert_allclose(half, exact, atol=0.01)


@pytest.mark.usefixtures("gpu")
def test_int8_rows_hold_any_half() -> None:
    x = mx.array([[LARGEST, -LARGEST, 0, 6.0]], mx.float16)
    dequantized = quantize_int8(x).dequantize(mx.float16)
    np.testing.assert_allclose(dequantized, x, atol=LARGEST / 127)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(temperature=0.01)]
)
def test_guidance_and_sampling_take_logits_near_the_largest_half(sampling: SamplingParams) -> None:
    bundle = random_bundle("demo")
    bundle.materialize()
    lm = bundle.lm
    conditions = bundle.text_conditioner.encode(["a tune"])
    logits = lm(mx.zeros((1, 4, 1), mx.int32), conditions)
    lm.lm_heads.weight = lm.lm_heads.weight * (0.5 * LARGEST / mx.abs(logits).max().item())
    with_guidance = generate_frames(
        LMDecoder(lm), conditions, 4, sampling, GuidanceParams(10.0), keys=row_keys([0], 9)
    )
    codes = mx.concatenate(list(with_guidance), axis=2)  # raises where a logit isn't finite
    assert codes.shape == (1, 4, 4)


@pytest.mark.usefixtures("gpu")
def test_t5_takes_hidden_states_beyond_any_half() -> None:
    bundle = random_bundle("demo")
    text = bundle.text_conditioner
    text.t5.embed.weight = text.t5.embed.weight * (100 * LARGEST)
    hidden, _ = text.hidden_states(["a tune"])
    assert hidden.dtype == mx.float32
    assert mx.isfinite(hidden).all().item()
    assert mx.abs(hidden).max().item() > 0
