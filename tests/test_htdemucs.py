"""HTDemucs and its files: equal to Demucs at any length; errors for damaged and unsupported files."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.checkpoints.demucs import ENV_VAR, HTDEMUCS_FILE, HTDEMUCS_REPO, load_htdemucs
from audiocraft_mlx.checkpoints.hub_client import shown_endpoint
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.errors import CheckpointError, DownloadError
from audiocraft_mlx.networks.htdemucs import HTDemucs, HTDemucsConfig, istft, stft
from audiocraft_mlx.ops.normalization import moments

from .conftest import add_to_hub_cache
from .torch_files import Opcodes, write_torch_file

HTDEMUCS = Opcodes(b"cdemucs.htdemucs\nHTDemucs\n")
TINY = {
    "sources": ["drums", "vocals"],
    "samplerate": 8000,
    "segment": 0.75,
    "channels": 8,
    "dconv_mode": 3,
    "bottom_channels": 8,
    "t_layers": 2,
    "t_heads": 2,
}


def config(**changes: Any) -> HTDemucsConfig:
    return HTDemucsConfig.from_demucs(ConfigSection({**TINY, **changes}, "a file"))


@pytest.fixture(scope="module")
def tiny() -> HTDemucs:
    """A random network with a segment of 6000 samples."""
    network = HTDemucs(config())
    key = mx.random.key(3)
    for name, value in tree_flatten(network.parameters()):
        key, own = mx.random.split(key)
        fan_in = value[0].size if value.ndim > 1 else 4
        network.load_weights([(name, mx.random.normal(value.shape, key=own) / fan_in**0.5)], strict=False)
    return network


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(0)) * 0.1


@pytest.fixture(scope="module")
def golden(goldens: Path, device: str) -> SimpleNamespace:
    """The golden network, its stems of the golden melody, and those of Demucs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_VAR, str(goldens / "goldens" / "htdemucs" / HTDEMUCS_FILE))
        network = load_htdemucs()
    with np.load(goldens / "goldens" / "melody.npz") as values:
        melody = convert_audio(values["chroma.wav"][:1], 32000, network.sample_rate, network.channels)
        return SimpleNamespace(
            network=network,
            stems=np.array(network.separate(mx.array(melody))),
            expected_stems=values["demucs.stems_shift0"],
            expected_mix=values["demucs.mix_shift0"],
        )


# The network


def test_stems_are_those_of_demucs(golden: SimpleNamespace) -> None:
    assert golden.network.sources == ("drums", "bass", "other", "vocals")
    assert (golden.network.sample_rate, golden.network.channels) == (44100, 2)
    expected = golden.expected_stems
    np.testing.assert_allclose(golden.stems[..., : expected.shape[-1]], expected, atol=1e-5)


def test_the_melodic_stems_are_those_of_audiocraft(golden: SimpleNamespace) -> None:
    melody = golden.stems[:, 2] + golden.stems[:, 3]
    np.testing.assert_allclose(convert_audio(melody, 44100, 32000, 1), golden.expected_mix, atol=1e-5)


def test_istft_is_the_inverse_of_stft() -> None:
    audio = noise(1, 2, 10_001)
    parts = stft(audio)
    assert parts.shape == (1, 2048, 10, 4)
    # At the edges, frames beyond the clip are missing from the overlap-add.
    inner = slice(1536, -2560)
    np.testing.assert_allclose(istft(parts, 10_001)[..., inner], audio[..., inner], atol=2e-3)


def test_a_frame_of_the_stft_is_the_windowed_fft_around_its_center() -> None:
    audio = noise(1, 1, 12_288)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(4096) / 4096)
    frame = np.fft.rfft(np.array(audio, np.float64)[0, 0, 512 : 512 + 4096] * window)[:-1] / 64
    got = np.array(stft(audio))[0, :, 2]
    np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], frame, atol=1e-6)


def test_moments_of_millions_of_values_are_exact() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (1, 40_000, 96)).astype(np.float32)
    mean, variance = moments(mx.array(values))
    assert mean.item() == pytest.approx(values.mean(dtype=np.float64), rel=1e-5)
    assert variance.item() == pytest.approx(values.var(dtype=np.float64), rel=1e-5)


# Segments


def demucs_overlap_add(network: HTDemucs, audio: mx.array) -> np.ndarray:
    """Demucs' `apply_model` with shifts=0, transcribed to NumPy."""
    segment, length = network.config.segment, audio.shape[-1]
    weight = np.concatenate([np.arange(1, segment // 2 + 1), np.arange(segment - segment // 2, 0, -1)])
    weight = weight / weight.max()
    out = np.zeros((audio.shape[0], len(network.sources), *audio.shape[1:]))
    total = np.zeros(length)
    for offset in range(0, length, int(0.75 * segment)):
        count = min(length - offset, segment)
        delta = segment - count
        start = offset - delta // 2
        end = start + segment
        inside = audio[..., max(0, start) : min(length, end)]
        padded = mx.pad(inside, [(0, 0), (0, 0), (max(0, -start), max(0, end - length))])
        stems = np.array(network(padded))[..., delta // 2 : delta // 2 + count]
        out[..., offset : offset + segment] += weight[:count] * stems
        total[offset : offset + segment] += weight[:count]
    return out / total


@pytest.mark.parametrize("length", [1, 2000, 6000, 6001, 11_300])
def test_segments_are_overlapped_as_in_demucs(tiny: HTDemucs, length: int) -> None:
    audio = noise(1, 2, length)
    stems = tiny.separate(audio)
    assert stems.shape == (1, 2, 2, length)
    assert stems.dtype == mx.float32
    expected = demucs_overlap_add(tiny, audio)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(stems, expected, atol=1e-5)


def test_a_clip_has_the_same_stems_in_a_batch_as_alone(tiny: HTDemucs) -> None:
    audio = noise(2, 2, 7000)
    batch = tiny.separate(audio)
    for row in range(2):
        np.testing.assert_array_equal(batch[row : row + 1], tiny.separate(audio[row : row + 1]))


def test_empty_audio_has_empty_stems(tiny: HTDemucs) -> None:
    assert tiny.separate(mx.zeros((1, 2, 0))).shape == (1, 2, 2, 0)


def test_peak_memory_is_that_of_one_segment(tiny: HTDemucs) -> None:
    def peak(length: int) -> int:
        audio = noise(1, 2, length)
        mx.eval(audio)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(tiny.separate(audio))
        return mx.get_peak_memory() - before

    peak(6000)
    stems = 4 * 4 * 60_000  # bytes
    assert peak(60_000) < 1.2 * peak(6000) + 3 * stems


# The configuration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels_time", 32),
        ("growth", 3),
        ("nfft", 2048),
        ("cac", False),
        ("depth", 5),
        ("multi_freqs", [0.5]),
        ("norm_starts", 2),
        ("dconv_mode", 1),
        ("dconv_comp", 9),
        ("bottom_channels", 0),
        ("t_layers", 0),
        ("t_emb", "cape"),
        ("t_heads", 3),
        ("t_hidden_scale", float("inf")),
        ("t_cross_first", True),
        ("t_sparse_self_attn", True),
        ("use_train_segment", False),
        ("segment", 0.1),
        ("segment", None),
        ("segment", float("inf")),
        ("sources", []),
    ],
)
def test_an_unsupported_argument_is_an_error_that_names_it(key: str, value: Any) -> None:
    named = "bottom_channels" if key == "t_heads" else key
    with pytest.raises(CheckpointError, match=f"^a file: '{named}' in its configuration [^\n]*$"):
        config(**{key: value})


def test_the_segment_length_is_rounded_not_truncated() -> None:
    assert config(samplerate=44100, segment=39 / 5).segment == 343_980
    assert config(samplerate=10_000, segment=1.1).segment == 11_000
    assert config(samplerate=10_000, segment=1.00006).segment == 10_000


# Files


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """A function: a path with this suffix, which the environment variable is set to."""

    def name(suffix: str) -> Path:
        path = tmp_path / f"file{suffix}"
        monkeypatch.setenv(ENV_VAR, str(path))
        return path

    return name


def golden_parts(goldens: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = goldens / "goldens" / "htdemucs" / HTDEMUCS_FILE
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    return load_file(path), metadata


def test_torch_and_safetensors_files_load_the_same_weights(
    goldens: Path, golden: SimpleNamespace, named: Callable[[str], Path]
) -> None:
    tensors, metadata = golden_parts(goldens)
    arguments = {**json.loads(metadata["kwargs"]), "segment": Fraction(39, 5)}
    package = {"klass": HTDEMUCS, "args": (), "kwargs": arguments, "state": tensors, "training_args": {}}
    write_torch_file(named(".th"), package)
    other = load_htdemucs()
    assert golden.network.config == other.config
    assert other.config.segment == 343_980
    one, two = (dict(tree_flatten(network.parameters())) for network in (golden.network, other))
    assert one.keys() == two.keys()
    assert all(mx.array_equal(one[name], two[name]) for name in one)


def test_the_release_is_found_in_the_hub_cache(
    goldens: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv(ENV_VAR, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    add_to_hub_cache(tmp_path, HTDEMUCS_REPO, goldens / "goldens" / "htdemucs")
    assert load_htdemucs().config.width == 8


def test_offline_without_a_file_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv(ENV_VAR, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DownloadError, match=rf"^{HTDEMUCS_REPO} is not in the cache [^\n]*{ENV_VAR}[^\n]*$"
    ) as caught:
        load_htdemucs()
    assert f"downloaded once, from {shown_endpoint()}/{HTDEMUCS_REPO};" in str(caught.value)
    assert "demo" not in str(caught.value)  # no other model helps


def test_the_environment_variable_names_a_missing_file(named: Callable[[str], Path]) -> None:
    path = named(".th")
    with pytest.raises(CheckpointError, match=f"^{path}: no such file; {ENV_VAR} [^\n]*$"):
        load_htdemucs()


def test_missing_and_unexpected_tensors_are_named(goldens: Path, named: Callable[[str], Path]) -> None:
    tensors, metadata = golden_parts(goldens)
    del tensors["encoder.1.dconv.layers.0.6.scale"]
    tensors["encoder.1.more"] = np.zeros(2, np.float32)
    save_file(tensors, named(".safetensors"), metadata)
    with pytest.raises(
        CheckpointError,
        match=r"encoder\.1\.dconv\.0\.scale is missing; encoder\.1\.more is unexpected$",
    ):
        load_htdemucs()


@pytest.mark.parametrize("shape", [(), (1, 1), (3,), (95, 32)])
def test_a_tensor_of_a_wrong_shape_is_an_error_that_names_the_file(
    goldens: Path, named: Callable[[str], Path], shape: tuple[int, ...]
) -> None:
    tensors, metadata = golden_parts(goldens)
    path = named(".safetensors")
    for name in ("crosstransformer.layers.0.self_attn.in_proj_weight", "decoder.1.conv_tr.weight"):
        save_file({**tensors, name: np.zeros(shape, np.float16)}, path, metadata)
        with pytest.raises(CheckpointError, match=f"^{path} [^\n]*shape"):
            load_htdemucs()


@pytest.mark.parametrize(
    "changes",
    [
        {"klass": "demucs.hdemucs.HDemucs"},
        {"args": '["drums"]'},
        {"args": None},
        {"kwargs": None},
        {"kwargs": "{"},
        {"kwargs": "[]"},
        {"kwargs": "[" * 100_000},
    ],
)
def test_a_safetensors_file_of_another_network_is_an_error(
    goldens: Path, named: Callable[[str], Path], changes: dict[str, str | None]
) -> None:
    tensors, metadata = golden_parts(goldens)
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    path = named(".safetensors")
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=f"^{path} [^\n]*Demucs[^\n]*$"):
        load_htdemucs()


@pytest.mark.parametrize(
    "package",
    [
        [],
        {"klass": "demucs.htdemucs.HTDemucs", "args": (), "kwargs": {}, "state": {}},
        {"klass": Opcodes(b"cdemucs.hdemucs\nHDemucs\n"), "args": (), "kwargs": {}, "state": {}},
        {"klass": HTDEMUCS, "args": (["drums"],), "kwargs": {}, "state": {}},
        {"klass": HTDEMUCS, "args": (), "kwargs": {}, "state": {}},
    ],
)
def test_a_torch_file_of_another_network_is_an_error(named: Callable[[str], Path], package: Any) -> None:
    path = named(".th")
    write_torch_file(path, package)
    with pytest.raises(CheckpointError, match=f"^{path} [^\n]*$"):
        load_htdemucs()


@pytest.mark.parametrize("fraction", [(1, 0), (10**400, 1), ("a", 1)])
def test_an_invalid_fraction_is_an_error(
    goldens: Path, named: Callable[[str], Path], fraction: tuple[Any, Any]
) -> None:
    tensors, metadata = golden_parts(goldens)
    arguments = json.loads(metadata["kwargs"])
    arguments["segment"].update(numerator=fraction[0], denominator=fraction[1])
    save_file(tensors, named(".safetensors"), {**metadata, "kwargs": json.dumps(arguments)})
    with pytest.raises(CheckpointError, match=r"'segment' in its configuration [^\n]*$"):
        load_htdemucs()
