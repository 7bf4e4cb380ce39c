"""Our own format and quantization: the round trip is exact, and invalid files are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import audiocraft_mlx
from audiocraft_mlx.checkpoints import mlx_format, tensors
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_card import model_card
from audiocraft_mlx.checkpoints.quantization import quantization_of, quantize
from audiocraft_mlx.checkpoints.quantization_config import Quantization
from audiocraft_mlx.cli.convert import main
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.weights import Weights, flat_parameters, quantized_parameters
from audiocraft_mlx.ops.linear import has_optimized_layout, tile_quantized_layers

from .conftest import _HF_HOME, add_to_hub_cache

PROMPTS = ["happy rock", "80s driving pop song with heavy drums", None]


@pytest.fixture(scope="module")
def source(
    goldens: Path, hub_cache: Path, separator: None, transformers_folder: Callable[[str], Path]
) -> Callable[[str], str]:
    """A function: the folder of a tiny model, by format and name."""

    def folder(name: str) -> str:
        form, kind = name.split("/")
        return str(transformers_folder(kind) if form == "transformers" else goldens / "goldens" / kind)

    return folder


@pytest.fixture(scope="module")
def converted(source: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in our format, with 4 bits."""
    folder = tmp_path_factory.mktemp("converted") / "mono-4bit"
    assert main([source("audiocraft/mono"), "-o", str(folder), "-q", "4"]) == 0
    return folder


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def greedy(model: MusicGen) -> np.ndarray:
    model.set_generation_params(use_sampling=False, duration=0.5, seed=1)
    if model.condition_types != {"text"}:
        audio = 0.3 * mx.random.normal((1, 50000), key=mx.random.key(4))
        return np.array(
            model.generate_with_chroma(PROMPTS, [audio, None, audio], 32000, return_tokens=True)[1]
        )
    return np.array(model.generate(PROMPTS, return_tokens=True)[1])


def all_parameters(name: str, bits: int | None = None) -> dict[str, np.ndarray]:
    bundle = load(name, None, bits)
    networks = {
        "lm": bundle.lm,
        "t5": bundle.text_conditioner.t5,
        "output_proj": bundle.text_conditioner.output_proj,
        "codec": bundle.mono_codec,
    }
    return {
        f"{part}.{key}": np.array(value)
        for part, network in networks.items()
        if network is not None
        for key, value in flat_parameters(network).items()
    }


MODELS = [
    "audiocraft/mono",
    "audiocraft/stereo",
    "audiocraft/rope",
    "audiocraft/audiogen",
    "audiocraft/melody",
    "audiocraft/style",
    "transformers/mono",
    "transformers/stereo",
    "transformers/melody",
]


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_is_the_model(source: Callable[[str], str], tmp_path: Path, name: str) -> None:
    assert main([source(name), "-o", str(tmp_path / "made"), "--dtype", "float32"]) == 0
    before, after = MusicGen.get_pretrained(source(name)), MusicGen.get_pretrained(str(tmp_path / "made"))
    assert after.lm.config == before.lm.config
    assert after.text_conditioner.t5.config == before.text_conditioner.t5.config
    assert after.condition_types == before.condition_types
    for value in ("sampling", "guidance", "max_duration"):
        assert getattr(after._bundle, value) == getattr(before._bundle, value)
    assert (after.sample_rate, after.frame_rate, after.audio_channels) == (
        before.sample_rate,
        before.frame_rate,
        before.audio_channels,
    )
    codes = greedy(before)
    np.testing.assert_array_equal(greedy(after), codes)
    codes = mx.array(codes)
    np.testing.assert_array_equal(after.generate_audio(codes), before.generate_audio(codes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_fft", 2**21, "'melody.n_fft' .* is 2097152, not an integer from 4 to 1048576"),
        ("n_fft", 0, "'melody.n_fft'"),
        ("hop_length", 2**15, "'melody.hop_length' .* at most"),
        ("n_chroma", 13, "audio_conditioner.safetensors doesn't fit its configuration"),
        ("loudness", 1, "'melody.loudness' .* is unknown"),
    ],
)
def test_an_invalid_melody_configuration_is_named(
    source: Callable[[str], str], tmp_path: Path, key: str, value: int, message: str
) -> None:
    assert main([source("audiocraft/melody"), "-o", str(tmp_path / "made")]) == 0
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    config["melody"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path / "made"))


def test_weights_that_a_release_stores_in_half_precision_are_unchanged(
    source: Callable[[str], str], tmp_path: Path
) -> None:
    assert main([source("audiocraft/mono"), "-o", str(tmp_path / "made")]) == 0
    before, after = all_parameters(source("audiocraft/mono")), all_parameters(str(tmp_path / "made"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith(("lm.", "output_proj.")):
            np.testing.assert_array_equal(after[name], value)
        else:
            np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["audiocraft/mono", "audiocraft/stereo", "audiocraft/rope", "demo/demo"])
def test_a_quantized_folder_is_the_model_quantized_on_the_fly(
    source: Callable[[str], str], tmp_path: Path, name: str, bits: int
) -> None:
    path = "demo" if name == "demo/demo" else source(name)
    folder = str(tmp_path / "made")
    assert main([path, "-o", folder, "-q", str(bits), "--dtype", "float32"]) == 0
    before, after = all_parameters(path, bits), all_parameters(folder)
    assert any(name.endswith(".scales") for name in before)
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
        assert after[key].dtype == value.dtype
    np.testing.assert_array_equal(
        greedy(MusicGen.get_pretrained(folder)), greedy(MusicGen.get_pretrained(path, quantize=bits))
    )


def test_a_folder_that_is_not_quantized_can_be_converted_again(
    source: Callable[[str], str], converted: Path, tmp_path: Path
) -> None:
    assert main([source("audiocraft/mono"), "-o", str(tmp_path / "plain"), "--dtype", "float32"]) == 0
    assert main([str(tmp_path / "plain"), "-o", str(tmp_path / "small"), "-q", "4"]) == 0
    before, after = all_parameters(str(converted)), all_parameters(str(tmp_path / "small"))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_the_quantized_model_computes_with_its_dequantized_weights() -> None:
    quantized, plain = load("demo", lazy=True), load("demo", lazy=True)
    quantize(quantized, 4, 32)
    networks = [(quantized.lm, plain.lm), (quantized.text_conditioner.t5, plain.text_conditioner.t5)]
    for network, equal in networks:
        dequantized = [
            (f"{name}.weight", mx.dequantize(*exact(layer), group_size=layer.group_size, bits=layer.bits))
            for name, layer in network.named_modules()
            if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        ]
        assert dequantized
        equal.load_weights(dequantized, strict=False)
    prompts = ["slow happy piano", "a fast sad organ with drums"]
    ours, theirs = (bundle.text_conditioner.encode(prompts) for bundle in (quantized, plain))
    assert ours.cross.dtype == mx.float32
    np.testing.assert_allclose(ours.cross, theirs.cross, atol=1e-4)
    codes = mx.array(np.random.default_rng(0).integers(0, 512, (2, 4, 20), dtype=np.int32))
    np.testing.assert_allclose(
        quantized.lm(codes, cache=quantized.lm.make_cache(ours, 20)),
        plain.lm(codes, cache=plain.lm.make_cache(theirs, 20)),
        atol=2e-4,
    )


def exact(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> tuple[mx.array, mx.array, mx.array]:
    return layer.weight, layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)


def test_linear_layers_and_the_text_embedding_are_quantized_and_nothing_else() -> None:
    bundle = load("demo", lazy=True)
    quantize(bundle, 4, 32)
    assert quantization_of(bundle.lm) == Quantization(4, 32)
    kinds = {type(layer) for layer in bundle.lm.leaf_modules()["layers"][0]["self_attn"].values()}
    assert kinds == {nn.QuantizedLinear}
    assert isinstance(bundle.lm.lm_heads, nn.QuantizedLinear)
    assert type(bundle.lm.embed) is nn.Embedding
    assert isinstance(bundle.text_conditioner.t5.embed, nn.QuantizedEmbedding)
    assert type(bundle.text_conditioner.t5.relative_bias) is nn.Embedding
    assert {layer.scales.dtype for layer in bundle.lm.modules() if isinstance(layer, nn.QuantizedLinear)} == {
        mx.float16
    }
    assert quantization_of(bundle.mono_codec) is None


def test_a_model_that_was_not_loaded_lazily_is_neither_saved_nor_quantized(tmp_path: Path) -> None:
    bundle = load("demo", quantize_to=8)
    if has_optimized_layout(bundle.lm):  # with the native extension
        with pytest.raises(UsageError, match="lazy=True"):
            mlx_format.save_model(bundle, tmp_path / "made", mx.float32)
    bundle = load("demo")
    if has_optimized_layout(bundle.lm):  # without
        with pytest.raises(UsageError, match="lazy=True"):
            quantize(bundle, 8)
        with pytest.raises(UsageError, match="lazy=True"):
            mlx_format.save_model(bundle, tmp_path / "made", mx.float32)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("lazy", [True, False])
def test_no_layer_of_a_loaded_model_is_in_training_mode(lazy: bool) -> None:
    bundle = load("demo", quantize_to=4, lazy=lazy)
    networks = (bundle.lm, bundle.text_conditioner.t5, bundle.mono_codec)
    assert not [name for network in networks for name, layer in network.named_modules() if layer.training]


def test_a_layer_whose_width_is_no_multiple_of_the_group_size_is_not_quantized() -> None:
    bundle = load("demo", lazy=True)
    layer = bundle.lm.layers[0]
    layer.linear1, layer.linear2 = nn.Linear(192, 768), nn.Linear(768, 192)
    quantize(bundle, 4, 128)
    assert type(layer.linear1) is nn.Linear
    assert isinstance(layer.linear2, nn.QuantizedLinear)


def test_a_model_without_a_layer_that_the_group_size_divides_is_refused() -> None:
    bundle = load("demo", lazy=True)
    for layer in bundle.lm.modules():
        for name, child in layer.children().items():
            if isinstance(child, nn.Linear):
                layer[name] = nn.Linear(100, 100)
    with pytest.raises(UsageError, match="group_size 128 doesn't divide"):
        quantize(bundle, 4, 128)


@pytest.mark.parametrize("bits", [3, 16, True, 4.5])
def test_another_number_of_bits_is_refused(bits: Any) -> None:
    with pytest.raises(UsageError, match="bits must be one of 4, 8, not"):
        MusicGen.get_pretrained("demo", quantize=bits)


def test_a_quantized_folder_is_small(converted: Path, source: Callable[[str], str], tmp_path: Path) -> None:
    assert main([source("audiocraft/mono"), "-o", str(tmp_path / "plain")]) == 0
    plain, quantized = (
        (folder / mlx_format.LM_FILE).stat().st_size for folder in (tmp_path / "plain", converted)
    )
    assert quantized < 0.5 * plain


def test_it_loads_from_the_hub(converted: Path, hub_cache: Path) -> None:
    add_to_hub_cache(_HF_HOME / "hub", "somebody/tiny-4bit", converted)
    bundle = load("somebody/tiny-4bit")
    assert quantization_of(bundle.lm) == Quantization(4, 64)
    assert bundle.source_repo == "somebody/tiny-4bit"


def test_the_source_repo_is_kept_from_one_conversion_to_the_next(tmp_path: Path) -> None:
    assert main(["demo", "-o", str(tmp_path / "first")]) == 0
    assert main([str(tmp_path / "first"), "-o", str(tmp_path / "second"), "-q", "8"]) == 0
    assert load(str(tmp_path / "second")).source_repo == "demo"
    assert "license: cc0-1.0" in (tmp_path / "second" / "README.md").read_text()


@pytest.mark.parametrize(
    ("source_repo", "expected"),
    [
        ("facebook/musicgen-small", "license: cc-by-nc-4.0\nbase_model: facebook/musicgen-small\n"),
        ("somebody/else", "base_model: somebody/else\n"),
        (None, "whose files don't name their authors or licence"),
    ],
)
def test_the_card_names_the_source_and_licence_of_the_weights(source_repo: str | None, expected: str) -> None:
    card = model_card("made", source_repo, Quantization(4), mx.float16)
    assert expected in card
    assert "CC-BY-NC 4.0" in card
    assert ("license:" in card) == (source_repo == "facebook/musicgen-small")
    assert "quantized to 4 bits (affine, groups of 64); the rest is stored as float16" in card


# Earlier versions of the format


def all_weights(bundle: ModelBundle) -> dict[str, np.ndarray]:
    return {
        f"{number}.{name}": np.array(value)
        for number, network in enumerate(bundle._networks())
        for name, value in flat_parameters(network).items()
    }


def write_version_2(folder: Path) -> None:
    """Rewrite a converted folder as version 2 has it: quantized layers in MLX's order, files not aligned."""
    plain = load(str(folder), lazy=True)
    config = json.loads((folder / "config.json").read_text())
    config["format_version"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    for name, prefix, network in (
        ("lm.safetensors", "", plain.lm),
        ("text_encoder.safetensors", "t5.", plain.text_conditioner.t5),
    ):
        weights = dict(mx.load(str(folder / name)))
        weights |= {prefix + key: value for key, value in quantized_weights(network).items()}
        mx.eval(weights)
        mx.save_safetensors(str(folder / name), weights)


def quantized_weights(network: nn.Module) -> dict[str, mx.array]:
    names = quantized_parameters(network)
    return {name: value for name, value in flat_parameters(network).items() if name in names}


def write_version_1(folder: Path) -> None:
    """Rewrite a converted folder with the names of version 1."""
    write_version_2(folder)
    config = json.loads((folder / "config.json").read_text())
    config["format_version"] = 1
    if "source_repo" in config:
        config["origin"] = config.pop("source_repo")
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(mx.load(str(folder / "lm.safetensors")))
    mx.eval(weights)
    renamed = {re.sub(r"^lm_heads\.", "heads.", name): weight for name, weight in weights.items()}
    mx.save_safetensors(str(folder / "lm.safetensors"), renamed)
    if (folder / "audio_conditioner.safetensors").exists():
        (folder / "audio_conditioner.safetensors").rename(folder / "listener.safetensors")


@pytest.mark.parametrize("write", [write_version_1, write_version_2])
@pytest.mark.parametrize("kind", ["demo", "melody", "style"])
def test_a_folder_of_an_earlier_version_is_loaded(
    source: Callable[[str], str], tmp_path: Path, kind: str, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "made"
    quantize = ["-q", "8"] if kind == "demo" else []
    name = "demo" if kind == "demo" else source(f"audiocraft/{kind}")
    assert main([name, "-o", str(folder), "--dtype", "float32", *quantize]) == 0
    before = load(str(folder))
    expected = all_weights(before)
    write(folder)
    if write is write_version_1:
        # What is read is what version 1 really wrote, with layers' numbers as #.
        written = {
            file.name: sorted({re.sub(r"\.\d+\.", ".#.", tensor) for tensor in mx.load(str(file))})
            for file in folder.glob("*.safetensors")
        }
        written["keys"] = sorted(json.loads((folder / "config.json").read_text()))
        assert written == json.loads(Path(__file__).with_name("mlx_format_v1.json").read_text())[kind]
    after = load(str(folder))
    assert after.source_repo == before.source_repo == ("demo" if kind == "demo" else None)
    assert after.style_params == before.style_params
    weights = all_weights(after)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)


# How files are written


def test_tensors_are_aligned_so_that_their_file_can_be_mapped(converted: Path) -> None:
    for path in converted.glob("*.safetensors"):
        header, start = tensors._read_header(path)
        assert start % 8 == 0
        for entry in header.values():
            assert entry["data_offsets"][0] % tensors._DTYPES[entry["dtype"]].size == 0


def test_files_have_the_permissions_of_other_new_files(converted: Path) -> None:
    assert len({path.stat().st_mode for path in converted.iterdir()}) == 1


def test_mapped_tensors_are_those_that_mlx_reads(converted: Path) -> None:
    for path in converted.glob("*.safetensors"):
        mapped, read = tensors.map_safetensors(path), mx.load(str(path))
        assert mapped.keys() == read.keys()
        for name, value in mapped.items():
            assert value.dtype == read[name].dtype
            np.testing.assert_array_equal(value, read[name])


def test_a_file_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    for length in range(8):  # of the header
        path = tmp_path / f"{length}.safetensors"
        mx.save_safetensors(str(path), {"a" * (length + 1): mx.arange(5).astype(mx.float32)})
        (value,) = tensors.map_safetensors(path).values()
        assert value.tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_cannot_be_mapped_is_read(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, places: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(tensors, "map_tensors", refuse)
    path = converted / mlx_format.LM_FILE
    assert tensors.map_safetensors(path).keys() == mx.load(str(path)).keys()


def test_a_loaded_model_outlives_its_folder(copy: Path) -> None:
    model = MusicGen.get_pretrained(str(copy))
    expected = greedy(model)
    shutil.rmtree(copy)
    np.testing.assert_array_equal(greedy(model), expected)


def test_a_process_may_end_right_after_loading(converted: Path) -> None:
    script = f"from audiocraft_mlx import MusicGen; model = MusicGen.get_pretrained({str(converted)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Invalid folders


def test_files_and_version_of_the_format(converted: Path) -> None:
    assert {file.name for file in converted.iterdir()} == {
        "README.md",
        "codec.safetensors",
        "config.json",
        "lm.safetensors",
        "text_encoder.safetensors",
        "tokenizer.json",
    }
    config = json.loads((converted / "config.json").read_text())
    assert (config["format"], config["format_version"]) == ("musicgen-mlx", 3)
    assert config["quantization"] == {"group_size": 64, "bits": 4}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "gguf", "'format' .* is 'gguf'; only 'musicgen-mlx' is supported"),
        ("format_version", 5, r"'format_version' .* is newer than this program knows \(4\); update"),
        ("format_version", "1", "'format_version' .* is '1', not an integer"),
        ("stereo", 1, "'stereo' .* is 1, not true or false"),
        ("max_duration", 0, "'max_duration' .* is 0, not a number from 0.5 to 600"),
        ("max_duration", float("inf"), "'max_duration' .* is inf, not a number from 0.5 to 600"),
        ("lm.dim", None, "'lm.dim' .* is None"),
        ("lm.dim", 128, "lm.safetensors doesn't fit its configuration: .* has shape"),
        ("lm.num_heads", 3, "'lm.num_heads' .* doesn't divide 64"),
        (
            "lm.delays",
            [0, 1, 2],
            r"'lm.delays' .* is \[0, 1, 2\], not a delay for each of 4 codebooks, ascending from 0",
        ),
        ("lm.num_layers", 5, "lm.safetensors doesn't fit its configuration: layers.3.* is missing"),
        ("lm.bias_heads", True, "lm.safetensors doesn't fit its configuration: lm_heads.bias is missing"),
        ("lm.colour", "red", "'lm.colour' .* is unknown"),
        ("text_encoder.num_buckets", 2, "'text_encoder.num_buckets' .* is 2"),
        ("codec.pad_mode", "wrap", "'codec.pad_mode' .* is 'wrap'"),
        ("codec.ratios", [], "'codec.ratios' .* is empty"),
        ("codec.ratios", [8, 0], "'codec.ratios' .* not a list of up to 12 integers from 1 to 256"),
        ("sampling.top_p", 2.0, "top_p must be a number from 0 to 1"),
        ("quantization.bits", 3, "bits must be one of 4, 8, not 3"),
        ("quantization.bits", 8, "lm.safetensors doesn't fit its configuration: .* has shape"),
        ("quantization.group_size", 128, "doesn't fit its configuration"),
        ("quantization", None, "lm.safetensors doesn't fit its configuration: .*scales is unexpected"),
        ("quantization", [4], "'quantization' .* is not a mapping"),
    ],
)
def test_an_invalid_configuration_value_is_named(copy: Path, path: str, value: Any, message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    place = config
    *sections, key = path.split(".")
    for section in sections:
        place = place[section]
    place[key] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(copy))
    assert "\n" not in str(caught.value)


def test_values_of_the_wrong_type_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    tried = 0
    for section, keys in config.items():
        for key in keys if isinstance(keys, dict) else [None]:
            for wrong in ("x", {}, -1.5, None):
                old = config[section] if key is None else config[section][key]
                if type(old) is type(wrong) or (wrong is None and section == "source_repo"):
                    continue
                if wrong == -1.5 and key == "coef":
                    continue
                bad = json.loads(json.dumps(config))
                if key is None:
                    bad[section] = wrong
                else:
                    bad[section][key] = wrong
                (copy / "config.json").write_text(json.dumps(bad))
                with pytest.raises(CheckpointError):
                    load(str(copy))
                tried += 1
    assert tried > 100


def change(path: Path, how: Callable[[Weights], object]) -> None:
    weights = dict(mx.load(str(path)))
    mx.eval(weights)
    how(weights)
    mx.save_safetensors(str(path), weights)


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        (mlx_format.LM_FILE, lambda w: w.pop("lm_heads.scales"), "lm_heads.scales is missing"),
        (mlx_format.LM_FILE, lambda w: w.update(more=mx.zeros(1)), "more is unexpected"),
        (
            mlx_format.LM_FILE,
            lambda w: w.update({"lm_heads.weight": w["lm_heads.weight"].astype(mx.float32)}),
            "lm_heads.weight is of type float32 instead of uint32",
        ),
        (
            mlx_format.LM_FILE,
            lambda w: w.update({"lm_heads.scales": w["lm_heads.scales"].astype(mx.bfloat16)}),
            "lm_heads.scales is of type bfloat16 instead of float16",
        ),
        (
            mlx_format.LM_FILE,
            lambda w: w.update({"out_norm.weight": w["out_norm.weight"].astype(mx.int32)}),
            "out_norm.weight is of type int32 instead of float32",
        ),
        (mlx_format.TEXT_FILE, lambda w: w.pop("t5.norm.weight"), "norm.weight is missing"),
        (mlx_format.TEXT_FILE, lambda w: w.pop("output_proj.bias"), "bias is missing"),
        (mlx_format.TEXT_FILE, lambda w: w.update(t6=mx.zeros(1)), "t6 is unexpected"),
        (
            mlx_format.CODEC_FILE,
            lambda w: w.update({"quantizer.codebooks": mx.zeros((1, 2, 3))}),
            "quantizer.codebooks has shape",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_or_unexpected_tensor_is_named(
    copy: Path, file: str, how: Callable[[Weights], object], message: str
) -> None:
    change(copy / file, how)
    with pytest.raises(CheckpointError, match=rf"{file} doesn't fit its configuration: {message}"):
        load(str(copy))


@pytest.mark.parametrize(
    "file", [mlx_format.LM_FILE, mlx_format.TEXT_FILE, mlx_format.CODEC_FILE, "tokenizer.json"]
)
def test_a_missing_or_truncated_file_is_named(copy: Path, file: str) -> None:
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=file):
        load(str(copy))
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load(str(copy))


# Invalid conversions


def no_loading(*args: object, **kwargs: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "-o", "made", "-q", "3"], "invalid choice: 3"),
        (["demo", "-o", "made", "-q", "4", "--group-size", "48"], "invalid choice: 48"),
        (["demo", "-o", "made", "--group-size", "64"], "--group-size needs -q"),
        (["demo", "-o", "made", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["demo"], "required: -o/--output"),
        (["-o", "made"], "required: MODEL"),
        (["demo", "other", "-o", "made"], "unrecognized arguments: other"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audiocraft_mlx.checkpoints.load.load", no_loading)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("musicgen-mlx-convert: error: ")
    assert message in err
    assert err.endswith("; try musicgen-mlx-convert --help\n")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("full", "full is not empty; choose another folder, or remove it first"),
        ("full/file", "full/file is a file; choose another name for the folder"),
        ("none/made", "there is no folder"),
    ],
)
def test_an_invalid_output_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audiocraft_mlx.checkpoints.load.load", no_loading)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    assert main(["demo", "-o", output]) == 1
    assert message in capsys.readouterr().err
    assert (os.listdir(), os.listdir("full")) == (["full"], ["file"])


def test_an_empty_folder_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    assert main(["demo", "-o", "."]) == 0
    assert capsys.readouterr().out.startswith("wrote .: ")
    assert load(str(tmp_path / "made")).max_duration == load("demo", lazy=True).max_duration
    assert os.listdir(tmp_path) == ["made"]


def test_a_quantized_model_is_not_quantized_again(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(converted), "-o", str(tmp_path / "made"), "-q", "8"]) == 2
    assert "quantization to 8 bits: the model is quantized to 4 bits already" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert main([str(converted), "-o", str(tmp_path / "made"), "--dtype", "float32"]) == 0
    assert quantization_of(load(str(tmp_path / "made")).lm) == Quantization(4, 64)


DAMAGED = "has values that are NaN or infinite: the checkpoint is damaged, or its training diverged"


def set_one(folder: Path, file: str, name: str, value: float, at: int = 5) -> None:
    """One value of a tensor in a safetensors file."""
    weights = dict(mx.load(str(folder / file)))
    flat = weights[name].flatten()
    flat[at] = value
    weights[name] = flat.reshape(weights[name].shape)
    mx.eval(weights)
    mx.save_safetensors(str(folder / file), weights, metadata={"format": "mlx"})


@pytest.fixture
def demo_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(audiocraft_mlx.__file__).parent / "demo", tmp_path / "demo"))


@pytest.fixture
def published(source: Callable[[str], str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(source("transformers/mono"), tmp_path / "published"))


# Quantized weights, ones that stay as they are, and T5's quantized embedding.
PARTS = {
    "decoder.lm_heads.1.weight": "lm.lm_heads.weight",
    "decoder.model.decoder.layers.1.fc1.weight": "lm.layers.1.linear1.weight",
    "decoder.model.decoder.layers.1.final_layer_norm.bias": "lm.layers.1.norm2.bias",
    "decoder.model.decoder.embed_tokens.2.weight": "lm.embed.weight",
    "text_encoder.shared.weight": "t5.embed.weight",
    "text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight": "t5.",
    "text_encoder.encoder.final_layer_norm.weight": "t5.norm.weight",
    "enc_to_dec_proj.bias": "output_proj.bias",
}


@pytest.mark.parametrize(
    ("name", "expected", "value"),
    [
        (*part, float(value))
        for part, value in zip(PARTS.items(), cycle(("nan", "inf", "-inf")), strict=False)
    ],
)
def test_quantizing_refuses_weights_that_are_nan_or_infinite(
    published: Path,
    tmp_path: Path,
    name: str,
    expected: str,
    value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_one(published, "model.safetensors", name, value)
    for bits in (4, 8):
        with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}.*{DAMAGED}"):
            load(str(published), None, bits)
    for options in (["-q", "8"], ["-q", "4"], [], ["--dtype", "float32"], ["--dtype", "bfloat16"]):
        assert main([str(published), "-o", str(tmp_path / "made"), *options]) == 1
        assert DAMAGED in capsys.readouterr().err
        assert not (tmp_path / "made").exists()


def test_converting_refuses_a_codec_that_is_nan(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_one(published, "model.safetensors", "audio_encoder.decoder.layers.0.conv.bias", float("nan"))
    assert main([str(published), "-o", str(tmp_path / "made"), "-q", "8"]) == 1
    assert f"codec.decoder.layers.0.conv.bias {DAMAGED}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("lm.safetensors", "layers.1.norm1.bias"),
        ("lm.safetensors", "layers.1.norm1.weight"),
        ("lm.safetensors", "layers.1.linear1.scales"),
        ("lm.safetensors", "layers.1.linear1.biases"),
        ("text_encoder.safetensors", "t5.embed.weight"),
        ("text_encoder.safetensors", "t5.norm.weight"),
    ],
)
def test_a_quantized_folder_with_nan_is_refused(copy: Path, file: str, part: str) -> None:
    set_one(copy, file, part, float("nan"))
    with pytest.raises(CheckpointError, match=DAMAGED):
        load(str(copy))


def test_int8_activations_do_not_hide_a_norm_that_is_nan(demo_folder: Path) -> None:
    names = dict(mx.load(str(demo_folder / "model.safetensors")))
    name = next(name for name in names if "decoder" in name and name.endswith("layer_norm.bias"))
    set_one(demo_folder, "model.safetensors", name, float("nan"))
    with pytest.raises(CheckpointError, match=DAMAGED):
        MusicGen.get_pretrained(str(demo_folder), quantize=4, int8_activations=True)


def test_a_weight_beyond_the_scales_of_quantized_layers_is_refused(published: Path) -> None:
    set_one(published, "model.safetensors", "decoder.model.decoder.layers.1.fc1.weight", 1e30)
    with pytest.raises(CheckpointError, match=r"lm\.layers\.1\.linear1\.weight .*too large to be quantized"):
        load(str(published), None, 4)


def test_a_weight_that_overflows_in_half_precision_is_refused(tmp_path: Path) -> None:
    bundle = load("demo", lazy=True)
    bundle.text_conditioner.t5.embed.weight = bundle.text_conditioner.t5.embed.weight + 70000
    with pytest.raises(UsageError, match=r"t5\.embed\.weight has values that float16 can't hold; .*float32"):
        mlx_format.save_model(bundle, tmp_path / "made", mx.float16)
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, saved = mlx_format._save, []

    def interrupted(path: Path, weights: Weights) -> None:
        if saved:
            assert len(os.listdir(tmp_path)) == 1  # a partial folder is there
            raise KeyboardInterrupt
        save(path, weights)
        saved.append(path)

    monkeypatch.setattr(mlx_format, "_save", interrupted)
    assert main(["demo", "-o", str(tmp_path / "made")]) == 130
    assert capsys.readouterr().err == "musicgen-mlx-convert: error: interrupted\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
@pytest.mark.parametrize("limit", [500, 2_000_000])
def test_a_full_disk_leaves_no_files(tmp_path: Path, limit: int) -> None:
    # A limit on the size of files stands in for a full disk: the write ends in the middle.
    script = f"""
import resource, signal, sys
from audiocraft_mlx.cli.convert import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(["demo", "-o", {str(tmp_path / "made")!r}]))
"""
    # -B: a module that is imported behind the limit would leave a damaged .pyc.
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"musicgen-mlx-convert: error: {tmp_path / 'made'} can't be written: ")
    assert done.stderr.endswith("; free some space\n")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


# On a GPU, where models are loaded in half precision


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocraft_mlx.checkpoints.bundle.on_gpu", lambda: True)


def write_precise(folder: Path) -> dict[str, np.ndarray]:
    """A model in our format whose LM isn't exact in half precision; the LM's tensors."""
    assert main(["demo", "-o", str(folder), "--dtype", "float32"]) == 0
    change(folder / mlx_format.LM_FILE, lambda w: w.update({name: w[name] * 1.0001 for name in w}))
    return {name: np.array(value) for name, value in mx.load(str(folder / mlx_format.LM_FILE)).items()}


def test_a_conversion_keeps_the_precision_of_the_files(tmp_path: Path, as_on_gpu: None) -> None:
    before = write_precise(tmp_path / "precise")
    assert main([str(tmp_path / "precise"), "-o", str(tmp_path / "made"), "--dtype", "float32"]) == 0
    after = mx.load(str(tmp_path / "made" / mlx_format.LM_FILE))
    for name, value in before.items():
        np.testing.assert_array_equal(np.array(after[name]), value)
    assert any((value.astype(np.float16) != value).any() for value in before.values())


def test_weights_are_quantized_from_the_precision_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_precise(tmp_path / "precise")
    assert main([str(tmp_path / "precise"), "-o", str(tmp_path / "cpu"), "-q", "4"]) == 0
    monkeypatch.setattr("audiocraft_mlx.checkpoints.bundle.on_gpu", lambda: True)
    assert main([str(tmp_path / "precise"), "-o", str(tmp_path / "gpu"), "-q", "4"]) == 0
    quantized = load(str(tmp_path / "precise"), quantize_to=4, lazy=True)
    tile_quantized_layers(quantized.lm)  # as in the files
    loaded = flat_parameters(quantized.lm)
    cpu, gpu = (mx.load(str(tmp_path / name / mlx_format.LM_FILE)) for name in ("cpu", "gpu"))
    for name, value in cpu.items():
        np.testing.assert_array_equal(np.array(gpu[name]), np.array(value), err_msg=name)
        np.testing.assert_array_equal(
            np.array(loaded[name].astype(value.dtype)), np.array(value), err_msg=name
        )
    assert load(str(tmp_path / "precise"), quantize_to=4).lm.dtype == mx.float16


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_in_half_precision(
    source: Callable[[str], str], as_on_gpu: None, name: str
) -> None:
    bundle = load(source(name))
    assert bundle.lm.dtype == mx.float16
    assert {value.dtype for value in flat_parameters(bundle.lm).values()} == {mx.float16}
    lazy = load(source(name), lazy=True)
    assert {value.dtype for value in flat_parameters(lazy.lm).values()} == {mx.float32}
