"""float16, in which a GPU computes the language model: how exact it is, and where it isn't used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.models.audiogen import AudioGen
from audiocraft_mlx.models.genmodel import GenModel
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.device import gpu_branch

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
@pytest.mark.parametrize("name", ["mono", "melody", "style"])
def test_only_the_language_model_is_in_half_precision(name: str, goldens: Path) -> None:
    bundle = model_of(name, goldens)._bundle
    for network in bundle._networks():
        dtypes = {weight.dtype for weight in flat_parameters(network).values()}
        assert dtypes == {mx.float16 if network is bundle.lm else mx.float32}
