import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from audiocraft_mlx.audio.read import read_audio
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.audio.write import write_wav
from audiocraft_mlx.checkpoints.tensors import read_json
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.conditioning.chroma import (
    ChromaConfig,
    chroma,
    chroma_filters,
    melody_chroma,
    null_chroma,
)
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.errors import CheckpointError, UsageError

ONE_HOT = ChromaConfig()
RAW = replace(ONE_HOT, one_hot=False)
SCALE = (0, 2, 4, 5, 7, 9, 11, 12)  # semitones above C


@pytest.fixture(scope="module")
def melody(goldens: Path) -> dict[str, np.ndarray]:
    names = ("fbanks", "wav", "raw", "argmax", "null", "short_raw", "short_argmax", "stems_shift0")
    with np.load(goldens / "goldens" / "melody.npz") as file:
        return {name: file[f"chroma.{name}"] for name in names} | {"mix": file["demucs.mix_shift0"]}


def hummed_scale(rate: int, seconds: float = 10.0) -> np.ndarray:
    """A voice that hums C major from middle C up, with overtones and vibrato: `[T]`."""
    time = np.arange(int(rate * seconds)) / rate
    note = np.minimum((time / seconds * len(SCALE)).astype(int), len(SCALE) - 1)
    pitch = 261.626 * 2 ** (np.array(SCALE)[note] / 12) * (1 + 0.004 * np.sin(2 * np.pi * 5 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(n * phase) / n**2 for n in range(1, 6))
    return (0.3 * voice).astype(np.float32)


def test_filters_equal_the_reference(melody: dict[str, np.ndarray]) -> None:
    filters, expected = chroma_filters(32000, 16384, 12), melody["fbanks"]
    every = math.ceil(filters.shape[1] / expected.shape[1])  # the archive has a part of the bins
    np.testing.assert_allclose(filters[:, ::every], expected, atol=1e-6)


def test_chroma_equals_the_reference(melody: dict[str, np.ndarray]) -> None:
    wav = mx.array(melody["wav"])
    np.testing.assert_allclose(np.array(chroma(wav, RAW)), melody["raw"], atol=2e-5)
    np.testing.assert_array_equal(chroma(wav, ONE_HOT), melody["argmax"])


def test_chroma_equals_the_feature_extractor_of_transformers(
    goldens: Path, melody: dict[str, np.ndarray]
) -> None:
    with np.load(goldens / "goldens_hf" / "melody.npz") as file:
        np.testing.assert_array_equal(chroma(mx.array(melody["wav"]), ONE_HOT), file["input_features"])


def test_audio_shorter_than_a_window_is_padded_with_zeros(melody: dict[str, np.ndarray]) -> None:
    wav = mx.array(melody["wav"][..., :5001])
    np.testing.assert_allclose(np.array(chroma(wav, RAW)), melody["short_raw"], atol=2e-5)
    np.testing.assert_array_equal(chroma(wav, ONE_HOT), melody["short_argmax"])


def test_chroma_of_separated_stems_equals_the_reference(melody: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(chroma(mx.array(melody["mix"]), ONE_HOT), melody["stems_shift0"][:1])


def test_silence_is_c_if_one_hot_and_else_zero(melody: dict[str, np.ndarray]) -> None:
    silence = mx.zeros((1, 1))
    np.testing.assert_array_equal(chroma(silence, ONE_HOT), melody["null"])
    np.testing.assert_array_equal(chroma(silence, RAW), np.zeros((1, 5, 12)))


@pytest.mark.parametrize(("amplitude", "strongest"), [(1.0, 1), (1e-4, 1), (1e-6, 4e-3)])
def test_chroma_fades_close_to_silence(amplitude: float, strongest: float) -> None:
    # A tone of amplitude a has a power of a**2 * n_fft / 4 in three bins; below 1e-6 that is not scaled to 1.
    tone = mx.sin(mx.arange(32000) * (2 * math.pi * 880 / 32000))[None]
    frames = np.array(chroma(amplitude * tone, RAW))
    np.testing.assert_allclose(frames[0, 2:-2].max(-1), strongest, rtol=0.05)
    assert (frames[0, 2:-2].argmax(-1) == 9).all()


def test_no_melody_is_silence_of_full_length() -> None:
    null = np.array(null_chroma(ONE_HOT))
    assert null.shape == (1, 235, 12)
    assert (null[..., 0] == 1).all()
    assert (null[..., 1:] == 0).all()


@pytest.mark.parametrize("frames", [1, 16, 234, 235])
def test_a_short_melody_is_repeated(frames: int) -> None:
    samples = (frames - 1) * 4096 + 100
    wav = mx.array(hummed_scale(32000, 31)[None, :samples])
    once = np.array(chroma(wav, RAW))
    expected = np.concatenate([once] * 235, axis=1)[:, :235]
    np.testing.assert_array_equal(melody_chroma(wav, RAW), expected)


@pytest.mark.parametrize("samples", [960_000, 966_655, 966_657, 1_300_000])
def test_a_long_melody_is_cut_after_its_chroma_and_not_before(samples: int) -> None:
    wav = mx.array(np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32))
    np.testing.assert_allclose(
        np.array(melody_chroma(wav, RAW)), np.array(chroma(wav, RAW))[:, :235], atol=1e-6
    )


def test_the_channel_dimension_is_optional() -> None:
    wav = mx.array(np.stack([hummed_scale(32000, 2), hummed_scale(32000, 2)[::-1]]))
    frames = chroma(wav, RAW)
    assert frames.shape == (2, 16, 12)
    np.testing.assert_array_equal(frames, chroma(wav[:, None], RAW))
    np.testing.assert_allclose(np.array(frames[1:]), np.array(chroma(wav[1:], RAW)), atol=1e-6)


@pytest.mark.parametrize("shape", [(100,), (1, 2, 100), (1, 1, 1, 100)])
def test_other_shapes_than_mono_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="mono"):
        chroma(mx.zeros(shape), ONE_HOT)


def test_the_notes_of_a_scale_are_found() -> None:
    frames = np.array(chroma(mx.array(hummed_scale(32000))[None], ONE_HOT))[0].argmax(-1)
    middles = ((np.arange(len(SCALE)) + 0.5) * 10 / len(SCALE) * 32000 / 4096).round().astype(int)
    assert frames[middles].tolist() == [note % 12 for note in SCALE]


def test_chroma_is_the_same_at_any_rate_and_number_of_channels(tmp_path: Path) -> None:
    frames = []
    for rate, channels in ((32000, 1), (48000, 2), (44100, 2), (16000, 1)):
        voice = hummed_scale(rate)
        # In stereo only on the left.
        write_wav(tmp_path / "hum.wav", np.stack([voice, 0 * voice][:channels]), rate)
        wav = mx.array(convert_audio(*read_audio(tmp_path / "hum.wav"), 32000, 1))
        frames.append(np.array(melody_chroma(wav[None], ONE_HOT)))
    assert len(set(frames[0].argmax(-1).flat)) == 7
    for other in frames[1:]:
        np.testing.assert_array_equal(other, frames[0])


def test_both_upstream_configs_describe_the_released_chroma(goldens: Path) -> None:
    package = read_torch_file(goldens / "goldens" / "melody" / "state_dict.bin")
    audiocraft = ChromaConfig.from_audiocraft(ConfigSection.from_yaml(package["xp.cfg"], "melody"))
    path = goldens / "goldens_hf" / "melody" / "config.json"
    transformers = ChromaConfig.from_transformers(ConfigSection(read_json(path), str(path)))
    assert audiocraft == transformers == ONE_HOT


def test_a_melody_that_rows_share_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner = MelodyConditioner(ONE_HOT, nn.Linear(12, 4), load_separator=None)
    encoded = []
    monkeypatch.setattr(conditioner, "chroma", lambda melody: encoded.append(melody) or mx.ones((235, 12)))
    first, second = mx.ones((1, 100)), mx.ones((1, 100))
    rows = conditioner.encode([first, None, second, first, None])
    assert [melody is first for melody in encoded] == [True, False]
    assert rows[3] is rows[0]
    assert rows[4] is rows[1]
    np.testing.assert_array_equal(rows[1], conditioner.null_tokens())


def test_a_melody_without_separation_needs_no_network_and_keeps_all_that_is_there() -> None:
    conditioner = MelodyConditioner(ONE_HOT, nn.Linear(12, 12), load_separator=lambda: pytest.fail("loaded"))
    melody = mx.array(np.sin(np.arange(32000) * 2 * np.pi * 440 / 32000, dtype=np.float32))[None]
    chroma = conditioner.chroma_of_mix(melody)
    np.testing.assert_array_equal(chroma, melody_chroma(melody[None], ONE_HOT)[0])
    assert chroma[:20].argmax(axis=1).tolist() == [9] * 20, "an A"
    both = conditioner.chroma_of_mix(mx.concatenate([melody, 0 * melody]))
    assert both.argmax(axis=1).tolist() == chroma.argmax(axis=1).tolist()
    (tokens,) = conditioner.encode([melody], separate=False)
    np.testing.assert_array_equal(tokens, conditioner.output_proj(chroma))


YAML = """
sample_rate: 16000
dataset: {segment_duration: 10}
conditioners: {self_wav: {model: chroma_stem, chroma_stem: {sample_rate: "${sample_rate}", n_chroma: 12,
  radix2_exp: 12, eval_wavs: null}}}
"""


def test_another_config_is_used() -> None:
    config = ChromaConfig.from_audiocraft(ConfigSection.from_yaml(YAML, "other"))
    assert config == ChromaConfig(16000, 12, 4096, 1024, 157, one_hot=False)
    assert null_chroma(config).shape == (1, 157, 12)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("model: chroma_stem", "model: style", "model"),
        ("radix2_exp: 12", "radix2_exp: 40", "radix2_exp"),
        ("radix2_exp: 12", "radix2_exp: 12, winhop: 7", "winhop"),
        ("n_chroma: 12", "n_chroma: 0", "n_chroma"),
        ("segment_duration: 10", "segment_duration: .inf", "segment_duration"),
    ],
)
def test_unsupported_configs_are_named(old: str, new: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        ChromaConfig.from_audiocraft(ConfigSection.from_yaml(YAML.replace(old, new), "other"))
