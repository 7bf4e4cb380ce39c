"""Equal to transformers in many small shapes and in all checkpoint layouts, present and past."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import EncodecConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.t5.modeling_t5 import T5Attention

from audiocraft_mlx.decoding.sampling import SamplingParams, sampling_distribution
from audiocraft_mlx.networks.t5 import relative_position_buckets

from .pair import LONG_PROMPT, SHORT_PROMPT, Pair, build


@dataclass(frozen=True)
class Shape:
    """A small model, by its differences from the first; `layout` is the format of its checkpoint."""

    seed: int = 0
    channels: int = 1
    codebooks: int = 4
    cardinality: int = 64
    dim: int = 32
    heads: int = 4
    layers: int = 2
    t5_dim: int = 16
    t5_heads: int = 2
    t5_buckets: int = 32
    t5_distance: int = 128
    lstm_layers: int = 2
    residual_layers: int = 1
    ratios: tuple[int, ...] = (4, 2)
    pad_mode: str = "reflect"
    half: bool = False
    layout: str = "safetensors"


SHAPES = {
    "plain": Shape(),
    "stereo": Shape(seed=1, channels=2),
    "wide heads": Shape(seed=2, heads=2, layers=3),
    "many heads": Shape(seed=3, dim=48, heads=8, layers=1),
    "no projection": Shape(seed=4, t5_dim=32, t5_heads=3),
    "stereo without projection": Shape(seed=5, channels=2, t5_dim=32),
    "few buckets": Shape(seed=6, t5_buckets=8, t5_distance=12),
    "odd buckets": Shape(seed=7, t5_buckets=18, t5_distance=40),
    "one LSTM": Shape(seed=8, lstm_layers=1),
    "two residual layers": Shape(seed=9, residual_layers=2, ratios=(5, 4, 2)),
    "constant padding": Shape(seed=10, pad_mode="constant"),
    "two codebooks": Shape(seed=11, codebooks=2, cardinality=128),
    "half": Shape(seed=12, half=True),
    "sharded": Shape(seed=13, layout="sharded safetensors"),
    "sharded half stereo": Shape(seed=14, channels=2, half=True, layout="sharded safetensors"),
    "torch": Shape(seed=15, layout="torch"),
    "torch half": Shape(seed=16, half=True, layout="torch"),
    "sharded torch": Shape(seed=17, layout="sharded torch"),
    "sharded torch half stereo": Shape(seed=18, channels=2, half=True, layout="sharded torch"),
    "middle": Shape(seed=19, cardinality=512, dim=128, heads=8, layers=4, t5_dim=64, t5_heads=4),
}


@pytest.fixture(scope="module", params=list(SHAPES.values()), ids=list(SHAPES))
def pair(request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    shape: Shape = request.param
    hop, bits = int(np.prod(shape.ratios)), int(np.ceil(np.log2(shape.cardinality)))
    theirs = build(
        T5Config(
            vocab_size=32128,
            d_model=shape.t5_dim,
            d_kv=8,
            d_ff=2 * shape.t5_dim,
            num_layers=2,
            num_heads=shape.t5_heads,
            relative_attention_num_buckets=shape.t5_buckets,
            relative_attention_max_distance=shape.t5_distance,
        ),
        MusicgenDecoderConfig(
            vocab_size=shape.cardinality,
            pad_token_id=shape.cardinality,
            bos_token_id=shape.cardinality,
            hidden_size=shape.dim,
            num_attention_heads=shape.heads,
            num_hidden_layers=shape.layers,
            ffn_dim=3 * shape.dim,
            num_codebooks=shape.codebooks * shape.channels,
            audio_channels=shape.channels,
        ),
        EncodecConfig(
            sampling_rate=50 * hop,
            hidden_size=16,
            num_filters=4,
            num_residual_layers=shape.residual_layers,
            num_lstm_layers=shape.lstm_layers,
            upsampling_ratios=list(shape.ratios),
            pad_mode=shape.pad_mode,
            use_causal_conv=False,
            use_conv_shortcut=False,
            codebook_size=shape.cardinality,
            target_bandwidths=[50 * bits * shape.codebooks / 1000],
        ),
        seed=shape.seed,
    )
    folder = tmp_path_factory.mktemp("tiny")
    if shape.half:
        theirs = theirs.half()
    save(theirs, folder, shape.layout)
    return Pair(theirs.float(), folder, goldens / "goldens" / "t5" / "tokenizer.json")


def save(model: MusicgenForConditionalGeneration, folder: Path, layout: str) -> None:
    """Save as transformers does, or (as before version 5) in one or several torch files."""
    model.save_pretrained(folder, max_shard_size="50KB" if layout == "sharded safetensors" else "50GB")
    files = sorted(path.name for path in folder.glob("*.safetensors*"))
    assert (files == ["model.safetensors"]) == (layout != "sharded safetensors")
    if "torch" not in layout:
        return
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    if layout == "torch":
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    shards = {f"pytorch_model-{i + 1:05}-of-00003.bin": names[i::3] for i in range(3)}
    for file, tensors in shards.items():
        torch.save({name: state[name] for name in tensors}, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("guidance", [3, 1])
@pytest.mark.parametrize(
    "prompts",
    [
        [SHORT_PROMPT],
        [LONG_PROMPT, SHORT_PROMPT],
        [SHORT_PROMPT, None, LONG_PROMPT],
        [None],
        [None, None],
    ],
    ids=["single", "padded", "one without prompt", "unconditional", "two unconditional"],
)
def test_greedy_codes(pair: Pair, prompts: Sequence[str | None], guidance: int) -> None:
    pair.check_greedy(prompts, frames=16, guidance=guidance)


def test_hidden_states(pair: Pair) -> None:
    pair.check_hidden_states([SHORT_PROMPT, 12 * LONG_PROMPT])


def test_logits(pair: Pair) -> None:
    pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=24)


@pytest.mark.parametrize("samples", [1, 3, 400, 1283])
def test_codec(pair: Pair, samples: int) -> None:
    pair.check_codec(samples, frames=25)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 250, 2048])
def test_distribution_of_top_k(temperature: float, top_k: int) -> None:
    logits = torch.randn(3, 4, 2048, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 0, :8] = logits[0, 0].max()  # ties
    scores = TemperatureLogitsWarper(temperature)(None, logits.flatten(0, 1))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    check_distribution(logits, scores, SamplingParams(top_k=top_k, temperature=temperature))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9])
def test_distribution_of_top_p(temperature: float, top_p: float) -> None:
    logits = torch.randn(3, 4, 2048, generator=torch.Generator().manual_seed(1)) * 3
    scores = TemperatureLogitsWarper(temperature)(None, logits.flatten(0, 1))
    scores = TopPLogitsWarper(top_p)(None, scores)
    check_distribution(logits, scores, SamplingParams(top_p=top_p, temperature=temperature))


def check_distribution(logits: torch.Tensor, scores: torch.Tensor, sampling: SamplingParams) -> None:
    wanted = scores.softmax(dim=-1).reshape(logits.shape).numpy()
    probs = np.array(sampling_distribution(mx.array(logits.numpy()), sampling))
    np.testing.assert_array_equal(probs > 0, wanted > 0)
    np.testing.assert_allclose(probs, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("max_distance", [20, 100, 128, 1000])
@pytest.mark.parametrize("num_buckets", [4, 6, 8, 18, 32, 33, 64])
def test_relative_position_buckets(num_buckets: int, max_distance: int) -> None:
    longest = 1100
    positions = torch.arange(longest)
    wanted = T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], num_buckets=num_buckets, max_distance=max_distance
    ).numpy()
    np.testing.assert_array_equal(relative_position_buckets(longest, num_buckets, max_distance), wanted)
    # A bucket depends on the distance alone, so a shorter text has the upper left corner of a longer one's.
    for length in (1, 2, 3, 5, 8, 31, 33, 127, 129, 511, 1099):
        ours = relative_position_buckets(length, num_buckets, max_distance)
        np.testing.assert_array_equal(ours, wanted[:length, :length])
