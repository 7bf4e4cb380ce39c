"""Each network and decoding step equals the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from audiocraft_mlx.checkpoints.build import read_tensors
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_files import resolve_model
from audiocraft_mlx.checkpoints.tensors import read_json, read_state_dict, read_transformers_weights
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.sampling import (
    SamplingParams,
    gumbel_noise,
    row_keys,
    sample_codes,
    sampling_distribution,
)
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig, InterleavedStereoCodec
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.rvq import ResidualVectorQuantizer
from audiocraft_mlx.networks.t5 import T5Config, T5Encoder
from audiocraft_mlx.networks.weights import load_strict

from .conftest import load_arrays

TOLERANCE = 1e-4


# T5


@pytest.fixture(scope="module")
def text(goldens: Path) -> TextConditioner:
    source = resolve_model(str(goldens / "goldens" / "t5"))
    t5 = T5Encoder(
        T5Config.from_transformers(ConfigSection(read_json(source.local_path("config.json")), "t5"))
    )
    weights = read_tensors(read_transformers_weights(source, T5Encoder.is_encoder_weight))
    load_strict(t5, t5.sanitize(weights), mx.float32, "t5")
    return TextConditioner(Tokenizer.from_file(str(source.local_path("tokenizer.json"))), t5, None)


@pytest.fixture(scope="module")
def prompts(goldens: Path) -> list[str | None]:
    meta = json.loads((goldens / "goldens" / "meta.json").read_text())
    return meta["prompts"] + meta["prompts_extra"]


def test_t5_tokens_and_hidden_states(text: TextConditioner, prompts: list[str | None], goldens: Path) -> None:
    values = load_arrays(goldens / "goldens" / "t5.npz")
    tokens, mask = text.tokenize(prompts)
    np.testing.assert_array_equal(tokens, values["input_ids"])
    # The reference's mask of empty prompts is all zeros; ours keeps their </s>.
    unmasked = values["attention_mask"].astype(bool)
    np.testing.assert_array_equal(mask[unmasked.any(axis=1)], unmasked[unmasked.any(axis=1)])
    hidden = np.array(text.t5(mx.array(tokens), mx.array(mask)))
    np.testing.assert_allclose(hidden[unmasked], values["last_hidden"][unmasked], atol=TOLERANCE)


def test_t5_hidden_states_of_a_prompt_longer_than_in_training(text: TextConditioner, goldens: Path) -> None:
    values = load_arrays(goldens / "goldens" / "t5.npz")
    tokens = mx.array(values["long_input_ids"])
    hidden = text.t5(tokens, mx.ones(tokens.shape, mx.bool_))
    np.testing.assert_allclose(hidden, values["long_last_hidden"], atol=TOLERANCE)


def test_none_and_the_empty_prompt_are_unconditional_and_a_space_is_not(text: TextConditioner) -> None:
    assert text.encode(["", None]).unconditional is None
    assert not np.array(text.encode(["", None]).cross).any()
    blank = text.encode([" "])
    assert blank.unconditional is not None
    assert np.array(blank.cross).any()


def test_padding_is_masked_and_zero(text: TextConditioner) -> None:
    conditions = text.encode(["rock", "a much longer prompt about a string quartet"])
    assert conditions.cross_mask is not None
    mask = np.array(conditions.cross_mask)
    assert mask[1].all()
    assert not mask[0].all()
    assert not np.array(conditions.cross)[~mask].any()


# The code transformer


def test_prepended_conditions(goldens: Path) -> None:
    """The melody model's transformer: no cross-attention, conditions in front of the codes."""
    folder = goldens / "goldens"
    package = read_torch_file(folder / "melody" / "state_dict.bin")
    config = LMConfig.from_audiocraft(ConfigSection.from_yaml(package["xp.cfg"], "melody"))
    state = {k: v for k, v in package["best_state"].items() if not k.startswith("condition_provider.")}
    lm = LM(config)
    load_strict(lm, lm.sanitize(read_tensors(read_state_dict(state, "melody"))), mx.float32, "melody")
    values = load_arrays(folder / "melody.npz")
    prefix = np.concatenate([values["cond.self_wav"], values["cond.description"]], axis=1)
    conditions = ConditionTensors(prefix=mx.array(prefix))
    sequence, wanted = mx.array(values["seq"]), values["raw_logits.both"]
    steps = sequence.shape[2]
    whole = lm(sequence, cache=lm.make_cache(conditions, steps))
    np.testing.assert_allclose(whole, wanted, atol=TOLERANCE)
    state = lm.make_cache(conditions, steps)
    stepwise = [lm(sequence[:, :, step : step + 1], cache=state) for step in range(steps)]
    np.testing.assert_allclose(mx.concatenate(stepwise, axis=2), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("positions", ["sin", "rope"])
def test_padding_in_front_of_a_prefix_changes_nothing(positions: str) -> None:
    mx.random.seed(0)
    config = LMConfig(
        num_codebooks=2,
        cardinality=8,
        dim=16,
        num_heads=2,
        num_layers=2,
        hidden_dim=32,
        delays=(0, 1),
        cross_attention=False,
        sinusoidal_positions=positions == "sin",
        rotary_positions=positions == "rope",
    )
    lm = LM(config)
    if positions == "rope":
        lm.rotary_frequencies = mx.array([1.0, 0.1, 0.01, 0.001])
    prefix, codes = mx.random.normal((1, 5, 16)), mx.random.randint(0, 8, (1, 2, 6))

    def logits(conditions: ConditionTensors) -> np.ndarray:
        state = lm.make_cache(conditions, 6)
        rows = mx.concatenate([codes] * conditions.batch)
        return np.array(
            mx.concatenate([lm(rows[:, :, :4], cache=state), lm(rows[:, :, 4:], cache=state)], axis=2)
        )

    alone = logits(ConditionTensors(prefix=prefix))
    padded = mx.concatenate([mx.random.normal((1, 3, 16)), prefix], axis=1)
    other = mx.random.normal((1, 8, 16))
    both = logits(ConditionTensors(prefix=mx.concatenate([padded, other]), prefix_padding=mx.array([3, 0])))
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)
    assert np.abs(both[1] - alone[0]).max() > 1e-2


# EnCodec


def codec_from(goldens: Path, name: str) -> Encodec:
    folder = goldens / "goldens"
    if name == "codec":
        source = resolve_model(str(folder / "encodec_32khz"))
        codec = Encodec(
            EncodecConfig.from_transformers(ConfigSection(read_json(source.local_path("config.json")), name))
        )
        weights = read_tensors(read_transformers_weights(source))
    else:
        package = read_torch_file(folder / "audiogen" / "compression_state_dict.bin")
        codec = Encodec(EncodecConfig.from_audiocraft(ConfigSection.from_yaml(package["xp.cfg"], name)))
        weights = read_tensors(read_state_dict(package["best_state"], name))
    load_strict(codec, codec.sanitize(weights), mx.float32, name)
    return codec


@pytest.mark.parametrize("name", ["codec", "codec_16khz"])
def test_codec_encodes_and_decodes_any_length(goldens: Path, name: str) -> None:
    codec, values = codec_from(goldens, name), load_arrays(goldens / "goldens" / f"{name}.npz")
    cases = sorted({key.split(".")[0] for key in values})
    assert len(cases) >= 3
    for case in cases:
        codes = mx.array(values[f"{case}.codes"])
        if f"{case}.wav" in values:
            audio = mx.array(values[f"{case}.wav"])
            latents = (
                codec.encoder.make_stream().step(audio.transpose(0, 2, 1), is_last=True).transpose(0, 2, 1)
            )
            np.testing.assert_allclose(latents, values[f"{case}.latent"], atol=TOLERANCE)
            np.testing.assert_array_equal(codec.encode(audio), codes)
        else:
            latents = codec.quantizer.decode(codes).transpose(0, 2, 1)
            np.testing.assert_allclose(latents, values[f"{case}.latent"], atol=TOLERANCE)
        np.testing.assert_allclose(codec.decode(codes), values[f"{case}.decoded"], atol=TOLERANCE)


def test_quantized_latents_are_the_decoded_codes() -> None:
    quantizer = ResidualVectorQuantizer(num_codebooks=4, cardinality=16, dim=8)
    quantizer.codebooks = mx.random.normal((4, 16, 8), key=mx.random.key(0))
    latents = mx.random.normal((2, 5, 8), key=mx.random.key(1))
    codes = quantizer.encode(latents, 3)
    assert (codes.shape, codes.dtype) == ((2, 3, 5), mx.int32)
    np.testing.assert_allclose(quantizer(latents, 3), quantizer.decode(codes), atol=1e-5)


def test_stereo_codebooks_are_interleaved(goldens: Path) -> None:
    mono = codec_from(goldens, "codec")
    stereo = InterleavedStereoCodec(mono)
    audio = mx.random.normal((2, 2, 3000), key=mx.random.key(1)) * 0.1
    codes = stereo.encode(audio)
    assert codes.shape == (2, 8, 5)
    np.testing.assert_array_equal(codes[:, 0::2], mono.encode(audio[:, :1]))
    np.testing.assert_array_equal(codes[:, 1::2], mono.encode(audio[:, 1:]))
    np.testing.assert_allclose(stereo.decode(codes)[:, 1:], mono.decode(codes[:, 1::2]), atol=1e-6)


# The delay pattern


@pytest.mark.parametrize("name", ["mono", "stereo", "parallel"])
def test_delay_pattern(goldens: Path, name: str) -> None:
    values = load_arrays(goldens / "goldens" / "patterns.npz")
    delays = {"mono": (0, 1, 2, 3), "stereo": (0, 0, 1, 1, 2, 2, 3, 3), "parallel": (0, 0, 0, 0)}[name]
    codes = values[f"{name}.reverted"]
    # The parallel golden is MAGNeT's, which has no special first step: all is one step earlier.
    skipped = 1 if name == "parallel" else 0
    pattern = DelayPattern(delays, codes.shape[2])
    special = int(values["mono.keep0.seq"][0, 0, 0])
    sequence = pattern.build_sequence(mx.array(codes), special)
    np.testing.assert_array_equal(pattern.revert_sequence(sequence), codes)
    for keep, steps in (("keep0", pattern.steps), ("keep1", pattern.steps - pattern.max_delay)):
        wanted = values[f"{name}.{keep}.seq"]
        np.testing.assert_array_equal(sequence[:, :, skipped:steps], wanted)
        mask = pattern.mask(pattern.frames)[:, skipped:steps]
        np.testing.assert_array_equal(mask, values[f"{name}.{keep}.mask"])
    first_steps = [pattern.first_step(frame) - skipped for frame in range(pattern.frames)]
    np.testing.assert_array_equal(first_steps, values[f"{name}.first_step_with_timestep"])


# Sampling


def in_order_of(logits: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` by falling logit; those of equal logits by falling value."""
    return np.take_along_axis(values, np.lexsort((-values, -logits), axis=-1), axis=-1)


def test_distributions_after_temperature_top_k_and_top_p(goldens: Path) -> None:
    values = load_arrays(goldens / "goldens" / "sampling.npz")
    logits = mx.array(values["logits"])
    names = [name for name in values if name.endswith(".probs")]
    assert len(names) >= 20
    for name in names:
        # temp0.7.top_k3.probs, temp1.0.top_p0.9.probs, temp1.5.probs
        temperature, _, cut = name.removeprefix("temp").removesuffix(".probs").partition(".top_")
        sampling = SamplingParams(
            temperature=float(temperature),
            top_k=int(cut[1:]) if cut.startswith("k") else 0,
            top_p=float(cut[1:]) if cut.startswith("p") else 0.0,
        )
        ours, wanted = np.array(sampling_distribution(logits, sampling)), values[name]
        if sampling.top_p:
            # Which of several equally likely codes crosses top_p is up to torch's unstable sort.
            ours, wanted = (in_order_of(np.array(logits), value) for value in (ours, wanted))
        np.testing.assert_allclose(ours, wanted, atol=1e-5, err_msg=name)


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    logits = mx.array([[[3.0, 1.0, 2.0, 2.0, 0.0]]])
    kept = np.array(sampling_distribution(logits, SamplingParams(top_k=2)))[0, 0] > 0
    np.testing.assert_array_equal(kept, [True, False, True, True, False])


def test_top_k_of_one_is_the_most_likely_code() -> None:
    logits = mx.random.normal((3, 4, 50), key=mx.random.key(0))
    drawn = sample_codes(logits, SamplingParams(top_k=1), gumbel_noise(row_keys([5, 6, 7], 1), 4, 50)[:, 0])
    np.testing.assert_array_equal(drawn, mx.argmax(logits, axis=-1))


def test_top_p_keeps_the_code_that_crosses_it() -> None:
    logits = mx.log(mx.array([[[0.5, 0.3, 0.15, 0.05]]]))
    np.testing.assert_allclose(
        sampling_distribution(logits, SamplingParams(top_p=0.6))[0, 0], [0.625, 0.375, 0, 0], atol=1e-6
    )


def test_a_top_k_beyond_all_codes_keeps_all() -> None:
    logits = mx.random.normal((1, 1, 20), key=mx.random.key(0))
    np.testing.assert_allclose(
        sampling_distribution(logits, SamplingParams(top_k=250)), mx.softmax(logits, axis=-1), atol=1e-6
    )


def test_codes_are_drawn_from_the_distribution() -> None:
    sampling = SamplingParams(top_k=3, temperature=0.8)
    logits = mx.array([[[1.0, 0.5, 0.0, -0.5, 2.0]]])
    noise = gumbel_noise(row_keys([0], 20000), 1, 5)[0]
    drawn = sample_codes(mx.broadcast_to(logits, (20000, 1, 5)), sampling, noise)
    frequency = np.bincount(np.array(drawn)[:, 0], minlength=5) / 20000
    np.testing.assert_allclose(frequency, np.array(sampling_distribution(logits, sampling))[0, 0], atol=0.015)


def test_a_row_draws_with_its_own_key() -> None:
    logits = mx.random.normal((1, 4, 100), key=mx.random.key(0))
    noise = gumbel_noise(row_keys([7, 8, 9], steps=5), 4, 100)
    together = sample_codes(mx.broadcast_to(logits, (3, 4, 100)), SamplingParams(), noise[:, 2])
    alone = sample_codes(logits, SamplingParams(), gumbel_noise(row_keys([9], steps=3), 4, 100)[:, 2])
    np.testing.assert_array_equal(together[2:], alone)
    assert np.any(np.array(together[0]) != np.array(together[1]))


def test_a_cache_in_8_bits_takes_a_quarter_and_changes_little(goldens: Path, hub_cache: Path) -> None:
    lm = load(str(goldens / "goldens" / "mono")).lm
    shape = (2, lm.config.num_codebooks, 30)
    codes = mx.random.randint(0, lm.config.cardinality, shape, key=mx.random.key(1))
    conditions = ConditionTensors(cross=mx.random.normal((2, 3, lm.config.dim), key=mx.random.key(2)))
    exact = lm.make_cache(conditions, 30)
    whole = np.array(lm(codes, cache=exact))
    state = lm.make_cache(conditions, 30, bits=8)
    steps = np.concatenate([np.array(lm(codes[:, :, t : t + 1], cache=state)) for t in range(30)], axis=2)
    assert 0 < np.abs(steps - whole).max() / np.abs(whole).max() < 0.02
    assert state.caches[0].nbytes < 0.4 * exact.caches[0].nbytes
