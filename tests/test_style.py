"""Style conditioning, layer by layer and as a whole, equals audiocraft's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.audio.resample import resample
from audiocraft_mlx.checkpoints.build import read_tensors
from audiocraft_mlx.checkpoints.model_files import resolve_model
from audiocraft_mlx.checkpoints.tensors import read_json, read_state_dict, read_transformers_weights
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.networks import style_encoder
from audiocraft_mlx.networks.mert import MERT, MERTConfig
from audiocraft_mlx.networks.style_encoder import StyleConfig, StyleEncoder
from audiocraft_mlx.networks.weights import Weights, load_strict

from .conftest import load_arrays

TOLERANCE = 1e-4
PREFIX = "condition_provider.conditioners.self_wav."


def mert_config(goldens: Path, **changes: object) -> MERTConfig:
    config = read_json(goldens / "goldens" / "mert" / "config.json")
    return MERTConfig.from_transformers(ConfigSection({**config, **changes}, "mert"))


def mert_weights(goldens: Path) -> Weights:
    return read_tensors(read_transformers_weights(resolve_model(str(goldens / "goldens" / "mert"))))


def loaded_mert(goldens: Path, weights: Weights) -> MERT:
    mert = MERT(mert_config(goldens))
    load_strict(mert, mert.sanitize(weights), mx.float32, "mert")
    return mert


def style_config(package: dict, changed: str = "", to: str = "") -> StyleConfig:
    assert changed in package["xp.cfg"]
    config = ConfigSection.from_yaml(package["xp.cfg"].replace(changed, to), "style")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            style_encoder.SCALES, "xsmall", (256, 8, 2)
        )  # the golden model has two of the four layers
        return StyleConfig.from_audiocraft(config, feature_dim=32)


def style_weights(package: dict) -> Weights:
    state = {k.removeprefix(PREFIX): v for k, v in package["best_state"].items() if k.startswith(PREFIX)}
    return read_tensors(read_state_dict(state, "style"))


@pytest.fixture(scope="module")
def package(goldens: Path) -> dict:
    return read_torch_file(goldens / "goldens" / "style" / "state_dict.bin")


@pytest.fixture(scope="module")
def golden(goldens: Path, package: dict) -> SimpleNamespace:
    encoder = StyleEncoder(style_config(package))
    load_strict(encoder, encoder.sanitize(style_weights(package)), mx.float32, "style")
    mert = loaded_mert(goldens, mert_weights(goldens))
    values = load_arrays(goldens / "goldens" / "style.npz")
    return SimpleNamespace(
        values=values,
        mert=mert,
        encoder=encoder,
        conditioner=StyleConditioner(mert, encoder, 32000),
        audios=[mx.array(audio) for audio in values["wav"]],
        features=mert(mx.array(resample(values["wav"][:, 0], 32000, 24000))),
    )


def close(actual: mx.array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(actual), expected, atol=TOLERANCE)


# MERT


def test_mert_features_are_those_of_the_reference(golden: SimpleNamespace) -> None:
    assert golden.features.shape == (2, 224, 32)
    close(golden.features[:1, ::4], golden.values["style.mert"])


def test_mert_loads_both_spellings_of_weight_norm(golden: SimpleNamespace, goldens: Path) -> None:
    weights = mert_weights(goldens)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        tensor = weights.pop(f"encoder.pos_conv_embed.conv.{old}")
        weights[f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"] = tensor
    audio = mx.array(golden.values["wav"][:1, 0, :4000])
    np.testing.assert_array_equal(loaded_mert(goldens, weights)(audio), golden.mert(audio))


def test_mert_needs_a_receptive_field_for_its_first_frame(golden: SimpleNamespace) -> None:
    config = golden.mert.config
    assert (config.receptive_field, config.hop_length) == (400, 320)
    for samples, frames in ((400, 1), (719, 1), (720, 2)):
        assert golden.mert(mx.zeros((1, samples))).shape == (1, frames, config.dim)


@pytest.mark.parametrize("name", ["encoder.layers.0.attention.q_proj.weight", "masked_spec_embed_2"])
def test_missing_and_unexpected_tensors_of_mert_are_named(goldens: Path, name: str) -> None:
    weights = mert_weights(goldens)
    if weights.pop(name, None) is None:
        weights[name] = mx.zeros(1)
    with pytest.raises(CheckpointError, match=r"qkv_proj\.weight is missing|masked_spec_embed_2 is unexp"):
        loaded_mert(goldens, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_extractor_cqt": True},
        {"deepnorm": True},
        {"do_stable_layer_norm": True},
        {"feat_extract_norm": "layer"},
        {"model_type": "hubert"},
        {"conv_stride": [5, 2]},
        {"num_attention_heads": 5},
    ],
)
def test_an_unsupported_mert_is_an_error(goldens: Path, changes: dict) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes)).replace("conv_stride", "conv_dim")):
        mert_config(goldens, **changes)


# The style encoder


def test_style_encoder_layer_by_layer(golden: SimpleNamespace) -> None:
    values, encoder = golden.values, golden.encoder
    embedded = encoder.embed(golden.features)
    close(embedded[:1, ::4], values["style.embed"])
    transformed = encoder.transformer(embedded)
    close(transformed[:1, ::4], values["style.transformer"])
    normalized = encoder.batch_norm(transformed)
    close(normalized[:1, ::4].swapaxes(1, 2), values["style.batch_norm"])
    np.testing.assert_array_equal(encoder.bottleneck.encode(normalized, 3), values["style.rvq_codes"])
    close(encoder.bottleneck(normalized, 3)[:1, ::15].swapaxes(1, 2), values["style.rvq_x"])


@pytest.mark.parametrize(("eval_q", "name"), [(3, "cond"), (1, "cond_eval_q1"), (6, "cond_eval_q6")])
def test_style_tokens_by_number_of_codebooks(golden: SimpleNamespace, eval_q: int, name: str) -> None:
    close(golden.encoder(golden.features, eval_q, 15), golden.values[f"style.{name}"])


def test_a_missing_codebook_of_the_bottleneck_is_an_error(package: dict) -> None:
    weights = style_weights(package)
    del weights["rvq.vq.layers.5._codebook.embed"]
    encoder = StyleEncoder(style_config(package))
    with pytest.raises(CheckpointError, match="bottleneck"):
        load_strict(encoder, encoder.sanitize(weights), mx.float32, "style")


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("model_name: mert", "model_name: encodec"),
        ("transformer_scale: xsmall", "transformer_scale: none"),
        ("batch_norm: true", "batch_norm: false"),
        ("n_q_out: 6", "n_q_out: 0"),
        ("model: style", "model: chroma_stem"),
    ],
)
def test_an_unsupported_style_encoder_is_an_error(package: dict, changed: str, to: str) -> None:
    with pytest.raises(CheckpointError, match=changed.split(":")[0]):
        style_config(package, changed, to)


# The conditioner


@pytest.mark.parametrize(("eval_q", "name"), [(3, "cond"), (1, "cond_eval_q1"), (6, "cond_eval_q6")])
def test_style_condition_of_audio(golden: SimpleNamespace, eval_q: int, name: str) -> None:
    tokens, mask = golden.conditioner.encode(golden.audios, StyleParams(eval_q=eval_q), [0, 1])
    close(tokens, golden.values[f"style.{name}"])
    np.testing.assert_array_equal(mask, golden.values["style.mask"])


def test_style_condition_of_the_middle_and_of_a_given_position(
    golden: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = StyleParams(excerpt_length=1.5)
    middle = StyleEncoder(dataclasses.replace(golden.encoder.config, middle_excerpt=True))
    middle.update(golden.encoder.parameters()).eval()
    tokens, mask = StyleConditioner(golden.mert, middle, 32000).encode(golden.audios, params, [0, 1])
    close(tokens, golden.values["style.middle_1.5s.cond"])
    np.testing.assert_array_equal(mask, golden.values["style.middle_1.5s.mask"])
    start = int(golden.values["style.random_1.5s.start"])
    monkeypatch.setattr(golden.conditioner, "excerpt_start", lambda last, seed, window: start)
    tokens, _ = golden.conditioner.encode(golden.audios, params, [0, 1])
    close(tokens, golden.values["style.random_1.5s.cond"])


def test_rows_without_style_are_zero_and_masked(golden: SimpleNamespace) -> None:
    first, second = golden.audios
    tokens, mask = golden.conditioner.encode([first, None, second], StyleParams(), [0, 1, 2])
    close(tokens, golden.values["cond_mixed.self_wav"][:3])
    np.testing.assert_array_equal(mask, golden.values["cond_mixed.self_wav.mask"][:3])
    tokens, mask = golden.conditioner.encode([None] * 3, StyleParams(), [0, 1, 2])
    np.testing.assert_array_equal(tokens, golden.values["cond_textonly.self_wav"][:3])
    np.testing.assert_array_equal(mask, golden.values["cond_textonly.self_wav.mask"][:3])


def test_an_excerpt_comes_from_its_own_seed_and_window_alone(golden: SimpleNamespace) -> None:
    long = mx.concatenate([*golden.audios, *golden.audios], axis=1)
    encode, params = golden.conditioner.encode, StyleParams(excerpt_length=1.5)
    batch, _ = encode([golden.audios[0], long, long], params, [7, 8, 9])
    alone, _ = encode([long], params, [8])
    np.testing.assert_array_equal(batch[1], alone[0])
    others = [batch[2], encode([long], params, [8], window=1)[0][0]]
    assert not any(np.array_equal(other, alone[0]) for other in others)


def test_an_excerpt_is_part_of_the_audio_in_mono(golden: SimpleNamespace) -> None:
    audio = mx.concatenate([golden.audios[0], -0.5 * golden.audios[0]])
    excerpt, start = golden.conditioner.excerpt(audio, StyleParams(excerpt_length=1.5), seed=3)
    assert excerpt.shape == (48000,)
    np.testing.assert_allclose(
        np.array(excerpt), np.array(golden.audios[0][0, start : start + 48000]) / 4, atol=1e-6
    )


def test_excerpts_are_drawn_from_everywhere(golden: SimpleNamespace) -> None:
    drawn = {golden.conditioner.excerpt_start(3, seed, 0) for seed in range(100)}
    assert drawn == {0, 1, 2, 3}
    assert golden.conditioner.excerpt_start(-5, 0, 0) == 0
    assert golden.conditioner.excerpt_start(3, -1, 0) in drawn


def test_audio_shorter_than_the_excerpt_is_used_whole(golden: SimpleNamespace) -> None:
    short = golden.audios[1][:, :48000]
    tokens, mask = golden.conditioner.encode([golden.audios[0], short], StyleParams(), [0, 1])
    alone, _ = golden.conditioner.encode([short], StyleParams(excerpt_length=1.5), [0])
    np.testing.assert_array_equal(mask.sum(axis=1), [15, 8])
    np.testing.assert_array_equal(tokens[1, :8], alone[0])
    assert not np.array(tokens[1, 8:]).any()


def test_stereo_is_encoded_as_the_mean_of_its_channels(golden: SimpleNamespace) -> None:
    first, second = golden.audios
    stereo, _ = golden.conditioner.encode([mx.concatenate([first, second])], StyleParams(), [0])
    mono, _ = golden.conditioner.encode([(first + second) / 2], StyleParams(), [0])
    close(stereo, np.array(mono))


def test_ds_factor_takes_every_nth_frame(golden: SimpleNamespace) -> None:
    tokens, mask = golden.conditioner.encode(golden.audios, StyleParams(ds_factor=5), [0, 1])
    assert tokens.shape[1] == mask.shape[1] == 45
    close(tokens[:, ::3], golden.values["style.cond"])


def test_params_as_the_release_file_has_them(package: dict) -> None:
    assert StyleParams.from_audiocraft(ConfigSection.from_yaml(package["xp.cfg"], "style")) == StyleParams()
    absurd = package["xp.cfg"].replace("length: 3.0", "length: -1.0")
    with pytest.raises(CheckpointError, match="excerpt_length"):
        StyleParams.from_audiocraft(ConfigSection.from_yaml(absurd, "style"))


@pytest.mark.parametrize(
    "params",
    [
        {"eval_q": 0},
        {"eval_q": 1.5},
        {"excerpt_length": 0},
        {"excerpt_length": 31},
        {"excerpt_length": float("nan")},
        {"ds_factor": 0},
    ],
)
def test_params_out_of_range_are_refused(params: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(params))) as error:
        StyleParams(**params)
    assert "\n" not in str(error.value)


def test_more_codebooks_than_the_model_has_are_refused(golden: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="eval_q must be at most 6"):
        golden.conditioner.encode([None], StyleParams(eval_q=7), [0])


@pytest.mark.parametrize("shape", [(100,), (1, 1, 100), (0, 96000), (1, 0), (1, 500)])
def test_audio_of_a_wrong_shape_or_too_short_is_refused(golden: SimpleNamespace, shape: tuple) -> None:
    with pytest.raises(UsageError, match="style audio 1"):
        golden.conditioner.encode([None, mx.zeros(shape)], StyleParams(), [0, 1])
