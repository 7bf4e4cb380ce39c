"""Checkpoints in both upstream formats: released, fine-tuned, incomplete, damaged, unsupported, hostile."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from audiocraft_mlx import CheckpointError, DownloadError
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.encodec import InterleavedStereoCodec

from .conftest import add_to_hub_cache
from .torch_files import Opcodes, write_torch_file


def arrays(value: Any) -> Any:
    """A saved object with NumPy arrays in place of its tensors."""
    if isinstance(value, dict):
        return {name: arrays(item) for name, item in value.items()}
    return np.array(value.load()) if hasattr(value, "load") else value


@pytest.fixture(scope="session")
def mono_package(goldens: Path) -> dict[str, Any]:
    return arrays(read_torch_file(goldens / "goldens" / "mono" / "state_dict.bin"))


@pytest.fixture
def package(mono_package: dict[str, Any]) -> dict[str, Any]:
    """The content of a release's `state_dict.bin`, to be changed and saved again."""
    return deepcopy(mono_package)


@pytest.fixture
def release(goldens: Path, hub_cache: Path, tmp_path: Path) -> Path:
    """A copy of a release folder in audiocraft's format."""
    return Path(shutil.copytree(goldens / "goldens" / "mono", tmp_path / "release"))


@pytest.fixture
def published(transformers_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a folder in transformers' format."""
    return Path(shutil.copytree(transformers_folder("mono"), tmp_path / "published", symlinks=True))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(folder: Path) -> str:
    """The one-line error message of loading `folder`."""
    with pytest.raises(CheckpointError) as failure:
        load(str(folder))
    message = str(failure.value)
    assert len(message.splitlines()) == 1
    return message


def weights_of(bundle: ModelBundle) -> dict[str, np.ndarray]:
    codec = bundle.codec.mono if isinstance(bundle.codec, InterleavedStereoCodec) else bundle.codec
    parts = {"lm": bundle.lm, "codec": codec, "t5": bundle.text_conditioner.t5}
    if bundle.text_conditioner.output_proj is not None:
        parts["proj"] = bundle.text_conditioner.output_proj
    return {
        f"{part}.{name}": np.array(value)
        for part, module in parts.items()
        for name, value in dict(tree_flatten(module.parameters())).items()
    }


# Supported checkpoints


def test_both_formats_and_all_files_of_one_model_give_the_same_weights(
    goldens: Path, hub_cache: Path, transformers_folder: Callable[[str], Path]
) -> None:
    for model in ("mono", "stereo"):
        released = weights_of(load(str(goldens / "goldens" / model)))
        for name in (model, f"{model}-bin"):
            other = weights_of(load(str(transformers_folder(name))))
            assert other.keys() == released.keys()
            for key, value in released.items():
                # The stereo one is saved in half precision, its codec too.
                rtol, atol = (1e-6, 1e-6) if model == "mono" else (2e-3, 1e-3)
                np.testing.assert_allclose(other[key], value, rtol, atol, err_msg=key)


def test_loading_leaves_nothing_uncomputed(published: Path, tmp_path: Path) -> None:
    load(str(published))
    graph = tmp_path / "graph.dot"
    mx.export_to_dot(str(graph), *mx.random.state)
    assert len(graph.read_text().splitlines()) < 10  # 28 lines for each layer that has random weights


def test_a_release_file_is_preferred_where_a_folder_has_both(release: Path, published: Path) -> None:
    for file in published.iterdir():
        shutil.copy(file, release / file.name)
    edit_json(release / "config.json", lambda config: config.update(model_type="bert"))
    assert load(str(release)).max_duration == 30.0


def test_a_codec_with_its_own_weights(
    release: Path, goldens: Path, package: dict[str, Any], hub_cache: Path
) -> None:
    shutil.copy(goldens / "goldens" / "audiogen" / "compression_state_dict.bin", release)
    model = MusicGen.get_pretrained(str(release))
    assert model.sample_rate == 16000
    model.set_generation_params(duration=0.2)
    assert model.generate(["a dog barks"]).shape == (1, 1, 3200)


def test_without_a_codec_file_the_configuration_names_the_codec(release: Path) -> None:
    with_file = weights_of(load(str(release)))
    (release / "compression_state_dict.bin").unlink()
    without = weights_of(load(str(release)))
    assert without.keys() == with_file.keys()
    for key, value in with_file.items():
        np.testing.assert_array_equal(without[key], value)


def test_the_first_releases_lack_keys_of_later_ones(release: Path, package: dict[str, Any]) -> None:
    # Neither 'version' nor 'exported', and keys that no longer exist.
    del package["version"], package["exported"]
    config = package["xp.cfg"]
    for gone in ("  n_q: 4\n", "  kv_repeat: 1\n", "      normalize_text: false\n"):
        assert gone in config
        config = config.replace(gone, "")
    package["xp.cfg"] = config + "\nsomething_old:\n  unknown: ${nowhere}\n"
    write_torch_file(release / "state_dict.bin", package)
    assert load(str(release)).lm.config.num_codebooks == 4


def test_a_file_in_torchs_legacy_form(release: Path, package: dict[str, Any]) -> None:
    before = weights_of(load(str(release)))
    write_torch_file(release / "state_dict.bin", package, legacy=True)
    for key, value in weights_of(load(str(release))).items():
        np.testing.assert_array_equal(value, before[key])


def test_a_config_without_keys_that_transformers_has_defaults_for(published: Path) -> None:
    def drop(config: dict[str, Any]) -> None:
        for part, key in (
            ("decoder", "audio_channels"),
            ("decoder", "num_codebooks"),
            ("text_encoder", "relative_attention_num_buckets"),
            ("audio_encoder", "pad_mode"),
            ("audio_encoder", "num_lstm_layers"),
        ):
            del config[part][key]

    edit_json(published / "config.json", drop)
    assert load(str(published)).lm.config.num_codebooks == 4


def test_a_folder_without_a_tokenizer_uses_the_one_of_t5_base(published: Path, hub_cache: Path) -> None:
    (published / "tokenizer.json").unlink()
    tokens, _ = load(str(published)).text_conditioner.tokenize(["happy rock"])
    assert tokens.shape == (1, 3)


def test_a_models_own_sampling_defaults(published: Path) -> None:
    def own(config: dict[str, Any]) -> None:
        config.update(top_k=20, temperature=0.8, guidance_scale=1.5, do_sample=True, top_p=1.0)

    edit_json(published / "generation_config.json", own)
    bundle = load(str(published))
    assert bundle.sampling == SamplingParams(top_k=20, temperature=0.8)
    assert bundle.guidance == GuidanceParams(1.5)
    (published / "generation_config.json").unlink()
    bundle = load(str(published))
    assert bundle.sampling == SamplingParams()
    assert bundle.max_duration == 30.0


@pytest.mark.parametrize("max_length", [256, 404, 1500, 10**6, 0, None])
def test_the_length_that_was_last_generated_is_not_the_trained_one(published: Path, max_length: Any) -> None:
    edit_json(published / "generation_config.json", lambda config: config.update(max_length=max_length))
    assert load(str(published)).max_duration == 30.0


def test_a_configuration_may_name_the_trained_length(published: Path) -> None:
    edit_json(published / "config.json", lambda config: config.update(max_duration=8.0))
    assert load(str(published)).max_duration == 8.0


@pytest.mark.parametrize("value", ["long", 0, -1, float("inf"), float("nan"), True])
def test_an_invalid_trained_length_is_named(published: Path, value: Any) -> None:
    edit_json(published / "config.json", lambda config: config.update(max_duration=value))
    assert "'max_duration' in its configuration" in refusal(published)


def test_null_in_a_generation_configuration_means_unset(published: Path) -> None:
    keys = ("top_k", "top_p", "temperature", "guidance_scale", "max_length", "do_sample")
    edit_json(published / "generation_config.json", lambda config: config.update(dict.fromkeys(keys)))
    bundle = load(str(published))
    assert (bundle.sampling, bundle.guidance) == (SamplingParams(), GuidanceParams())
    assert bundle.max_duration == 30.0


def test_half_precision_files_are_read_in_single_precision_on_a_cpu(
    transformers_folder: Callable[[str], Path],
) -> None:
    bundle = load(str(transformers_folder("stereo")))
    expected = mx.float16 if mx.default_device() == mx.gpu else mx.float32
    assert bundle.lm.dtype == expected
    assert bundle.text_conditioner.t5.norm.weight.dtype == mx.float32


# Missing files


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    message = refusal(tmp_path)
    assert "state_dict.bin" in message
    assert "config.json" in message


def test_missing_weights(published: Path) -> None:
    (published / "model.safetensors").unlink()
    assert "no weights" in refusal(published)


def test_a_missing_shard(transformers_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(transformers_folder("mono-bin"), tmp_path / "sharded", symlinks=True))
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in refusal(folder)


def test_a_shard_outside_of_the_folder_is_not_read(
    transformers_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(transformers_folder("mono-bin"), tmp_path / "sharded", symlinks=True))
    shutil.move(folder / "pytorch_model-00002-of-00003.bin", tmp_path / "pytorch_model-00002-of-00003.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace('"pytorch_model-00002', '"../pytorch_model-00002'))
    assert "../pytorch_model-00002-of-00003.bin" in refusal(folder)


def test_a_codec_that_is_not_public(release: Path, package: dict[str, Any]) -> None:
    package["xp.cfg"] = package["xp.cfg"].replace("//pretrained/facebook/encodec_32khz", "//sig/5091833e")
    write_torch_file(release / "state_dict.bin", package)
    (release / "compression_state_dict.bin").unlink()
    message = refusal(release)
    assert "//sig/5091833e" in message
    assert "compression_state_dict.bin" in message


def test_a_text_encoder_that_cannot_be_downloaded(release: Path, package: dict[str, Any]) -> None:
    package["xp.cfg"] = package["xp.cfg"].replace("name: t5-base", "name: t5-somewhere")
    write_torch_file(release / "state_dict.bin", package)
    with pytest.raises(DownloadError, match="t5-somewhere"):
        load(str(release))


# Tensors that don't fit


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("out_norm.bias"), "out_norm.bias is missing"),
        (
            lambda s: s.pop("transformer.layers.1.self_attn.in_proj_weight"),
            "layers.1.self_attn.qkv_proj.weight",
        ),
        (lambda s: s.pop("emb.2.weight"), "embed"),
        (lambda s: s.update({"out_norm.extra": np.zeros(3, np.float16)}), "out_norm.extra is unexpected"),
        (lambda s: s.update({"out_norm.weight": np.zeros(63, np.float16)}), "out_norm.weight has shape [63]"),
        (lambda s: s.update({"emb.2.weight": np.zeros((65, 63), np.float16)}), "emb.2.weight [65, 63]"),
        (
            lambda s: s.update({"linears.3.weight": np.zeros((60, 64), np.float16)}),
            "linears.3.weight [60, 64]",
        ),
        (
            lambda s: s.update({"transformer.layers.0.cross_attention.in_proj_weight": np.zeros((190, 64))}),
            "layers.0.cross_attn",
        ),
        (
            lambda s: s.pop("condition_provider.conditioners.description.output_proj.bias"),
            "bias is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    release: Path, package: dict[str, Any], change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    change(package["best_state"])
    write_torch_file(release / "state_dict.bin", package)
    assert expected in refusal(release)


def test_of_many_wrong_tensors_five_are_named(release: Path, package: dict[str, Any]) -> None:
    for layer in range(3):
        for norm in ("norm1", "norm2", "norm_cross"):
            del package["best_state"][f"transformer.layers.{layer}.{norm}.bias"]
    write_torch_file(release / "state_dict.bin", package)
    message = refusal(release)
    assert message.count("is missing") == 5
    assert "and 4 more" in message


def test_a_value_that_is_no_tensor_among_the_weights(release: Path, package: dict[str, Any]) -> None:
    package["best_state"]["out_norm.bias"] = "hello"
    write_torch_file(release / "state_dict.bin", package)
    assert "out_norm.bias" in refusal(release)


@pytest.mark.parametrize("saved", [[], "text", {"best_state": {}}, {"xp.cfg": "a: 1", "best_state": []}, {}])
def test_a_torch_file_that_is_no_release(release: Path, saved: Any) -> None:
    write_torch_file(release / "state_dict.bin", saved)
    assert "state_dict.bin" in refusal(release)


def test_a_tensor_of_a_wrong_shape_in_safetensors(published: Path) -> None:
    weights = mx.load(str(published / "model.safetensors"))
    weights["decoder.model.decoder.layer_norm.weight"] = mx.zeros(7)
    mx.save_safetensors(str(published / "model.safetensors"), weights)
    assert "out_norm.weight has shape [7]" in refusal(published)


def test_an_unexpected_tensor_in_safetensors(published: Path) -> None:
    weights = mx.load(str(published / "model.safetensors"))
    weights["discriminator.weight"] = mx.zeros(7)
    mx.save_safetensors(str(published / "model.safetensors"), weights)
    assert "discriminator.weight is unexpected" in refusal(published)


# Damaged files


@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
@pytest.mark.parametrize("damage", ["empty", "half", "almost", "random", "page"])
def test_damaged_torch_files(release: Path, name: str, damage: str) -> None:
    path = release / name
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "half": data[: len(data) // 2],
            "almost": data[:-30],
            "random": np.random.default_rng(0).bytes(5000),
            "page": b"<!DOCTYPE html><html><body>404</body></html>",
        }[damage]
    )
    assert name in refusal(release)


@pytest.mark.parametrize("damage", ["empty", "header", "half", "almost", "random"])
def test_damaged_safetensors(published: Path, damage: str) -> None:
    path = published / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "header": data[:100],
            "half": data[: len(data) // 2],
            "almost": data[:-1],
            "random": np.random.default_rng(0).bytes(5000),
        }[damage]
    )
    assert "model.safetensors" in refusal(published)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": ' * 100000, "\udcff"])
def test_damaged_json(published: Path, name: str, text: str) -> None:
    (published / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert name in refusal(published)


def test_a_damaged_tokenizer(published: Path) -> None:
    (published / "tokenizer.json").unlink()
    (published / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(published)


def test_a_pickle_that_would_run_a_program_is_refused_and_not_run(
    release: Path, package: dict[str, Any], tmp_path: Path
) -> None:
    write_torch_file(release / "state_dict.bin", package)
    load(str(release))  # imports what a good file needs
    marker = tmp_path / "ran"
    command = f"touch {marker}".encode()
    package["best_state"]["out_norm.bias"] = Opcodes(
        b"cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R"
    )
    load(str(release))  # imports what a good file needs
    before = set(sys.modules)
    write_torch_file(release / "state_dict.bin", package)
    assert "system" in refusal(release)
    assert not marker.exists()
    assert "posix" in before
    assert not {name for name in set(sys.modules) - before if not name.startswith("audiocraft_mlx")}


# Configurations


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  dim: 64\n", "", "'transformer_lm.dim' in its configuration is missing"),
        ("  dim: 64\n", "  dim: wide\n", "'wide'"),
        ("  dim: 64\n", "  dim: -64\n", "-64"),
        ("  dim: 64\n", "  dim: true\n", "True"),
        ("  num_layers: 3\n", "  num_layers: 4\n", "layers.3."),
        ("  num_heads: 4\n", "  num_heads: 5\n", "num_heads"),
        ("  xpos: false\n", "  xpos: true\n", "xpos"),
        ("  norm_first: true\n", "  norm_first: false\n", "norm_first"),
        ("  past_context: null\n", "  past_context: 100\n", "past_context"),
        ("  layer_scale: null\n", "  layer_scale: 0.1\n", "layer_scale"),
        ("  kv_repeat: 1\n", "  kv_repeat: 2\n", "kv_repeat"),
        ("  qk_layer_norm: false\n", "  qk_layer_norm: true\n", "qk_layer_norm"),
        ("  activation: gelu\n", "  activation: relu\n", "activation"),
        ("  positional_embedding: sin\n", "  positional_embedding: learned\n", "learned"),
        ("lm_model: transformer_lm\n", "lm_model: transformer_lm_other\n", "lm_model"),
        ("lm_model: transformer_lm\n", "lm_model: transformer_lm_magnet\n", "causal"),
        ("  modeling: delay\n", "  modeling: unroll\n", "unroll"),
        (
            "    - 0\n    - 1\n    - 2\n    - 3\n    flatten_first",
            "    - 0\n    - 1\n    flatten_first",
            "delays",
        ),
        ("    flatten_first: 0\n", "    flatten_first: 2\n", "flatten_first"),
        ("    model: t5\n", "    model: clap\n", "clap"),
        ("  description:\n    model: t5\n", "  self_wav:\n    model: clap\n", "clap"),
        ("  description:\n    model: t5\n", "  self_wav:\n    model: style\n", "conditioners.description"),
        ("      finetune: false\n", "      finetune: true\n", "finetune"),
        ("    normalize_text: false\n", "    normalize_text: true\n", "normalize_text"),
        ("  cross:\n  - description\n", "  cross: []\n", "cross"),
        ("  prepend: []\n", "  prepend:\n  - description\n", "prepend"),
        ("  card: 64\n", "  card: ${nowhere.at.all}\n", "card"),
        ("lm_model: transformer_lm\n", "lm_model: [\n", "YAML"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(
    release: Path, package: dict[str, Any], old: str, new: str, expected: str
) -> None:
    assert old in package["xp.cfg"], "the test's own configuration has changed"
    package["xp.cfg"] = package["xp.cfg"].replace(old, new)
    write_torch_file(release / "state_dict.bin", package)
    assert expected in refusal(release)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("model_type",), "bert", "bert"),
        (("model_type",), "musicgen_melody", "audio_enc_to_dec_proj"),
        (("decoder",), None, "'decoder' in its configuration is missing"),
        (("decoder", "hidden_size"), "x", "hidden_size"),
        (("decoder", "num_attention_heads"), 7, "num_attention_heads"),
        (("decoder", "activation_function"), "relu", "activation_function"),
        (("decoder", "scale_embedding"), True, "scale_embedding"),
        (("decoder", "vocab_size"), 32, "32"),
        (("decoder", "audio_channels"), 3, "audio_channels"),
        (("text_encoder", "model_type"), "bert", "text_encoder.model_type"),
        (("text_encoder", "feed_forward_proj"), "gated-gelu", "feed_forward_proj"),
        (("text_encoder", "num_layers"), 3, "layers.2."),
        (("audio_encoder", "use_causal_conv"), True, "use_causal_conv"),
        (("audio_encoder", "pad_mode"), "circular", "pad_mode"),
        (("audio_encoder", "upsampling_ratios"), [], "upsampling_ratios"),
        (("audio_encoder", "upsampling_ratios"), [8, 5, 4, 2], "shape"),
        (("audio_encoder", "target_bandwidths"), [], "target_bandwidths"),
        (("audio_encoder", "target_bandwidths"), [0.1], "codebook"),
        (("audio_encoder", "target_bandwidths"), [0.6], "codebook.embed is unexpected"),
        (("audio_encoder", "num_lstm_layers"), 3, "lstm"),
    ],
)
def test_unsupported_transformers_configurations_are_refused_by_name(
    published: Path, path: tuple[str, ...], value: Any, expected: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        if value is None:
            del config[path[-1]]
        else:
            config[path[-1]] = value

    edit_json(published / "config.json", change)
    assert expected in refusal(published)


@pytest.mark.parametrize(
    "change",
    [{"top_k": -1}, {"temperature": "hot"}, {"guidance_scale": "x"}, {"top_p": 2}, {"do_sample": 1}],
)
def test_invalid_sampling_defaults(published: Path, change: dict[str, Any]) -> None:
    edit_json(published / "generation_config.json", lambda config: config.update(change))
    message = refusal(published)
    assert "generation_config.json" in message


def test_a_codec_for_other_codes(release: Path, goldens: Path, hub_cache: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(goldens / "goldens" / "encodec_32khz", tmp_path / "codec"))
    edit_json(other / "config.json", lambda config: config.update(codebook_size=32, target_bandwidths=[1.0]))
    weights = mx.load(str(other / "model.safetensors"))
    for name in [name for name in weights if ".codebook." in name and weights[name].shape[0] == 64]:
        weights[name] = weights[name][:32]
    mx.save_safetensors(str(other / "model.safetensors"), weights)
    add_to_hub_cache(hub_cache, "someone/small-codec", other)
    write_torch_file(release / "compression_state_dict.bin", {"pretrained": "someone/small-codec"})
    message = refusal(release)
    assert "don't fit" in message
    assert "4 of 32" in message


# Text encoders and codecs that a release only names


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache without anything, in place of the one of all tests, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "empty"


@pytest.fixture
def cloned(release: Path, published: Path, goldens: Path) -> Path:
    """A whole repository, in both layouts, as `git clone` leaves it; its codec is only named."""
    for file in published.iterdir():
        shutil.copy(file, release / file.name)
    write_torch_file(release / "compression_state_dict.bin", {"pretrained": "facebook/encodec_32khz"})
    return release


def test_a_whole_repository_needs_nothing_else(cloned: Path, empty_cache: Path) -> None:
    bundle = load(str(cloned))
    assert bundle.text_conditioner.t5.config.num_layers == 2
    assert bundle.max_duration == 30.0


def test_a_whole_repository_in_the_cache_needs_nothing_else(cloned: Path, empty_cache: Path) -> None:
    add_to_hub_cache(empty_cache, "facebook/musicgen-small", cloned)
    assert load("small").source_repo == "facebook/musicgen-small"


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_text_encoder_of_which_the_cache_has_only_a_part_is_no_text_encoder(
    cloned: Path, empty_cache: Path, goldens: Path, lacking: str
) -> None:
    snapshot = add_to_hub_cache(empty_cache, "t5-base", goldens / "goldens" / "t5")
    (snapshot / lacking).unlink()
    assert load(str(cloned)).max_duration == 30.0


def test_a_layout_that_lacks_its_weights_does_not_serve(cloned: Path, empty_cache: Path) -> None:
    (cloned / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="t5-base is not in the cache"):
        load(str(cloned))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("model.safetensors", lambda data: LFS_POINTER, "model.safetensors is a git-lfs pointer"),
        ("tokenizer.json", lambda data: LFS_POINTER, "tokenizer.json is a git-lfs pointer"),
        ("model.safetensors", lambda data: data[: len(data) // 2], "not a complete safetensors file"),
        ("tokenizer.json", lambda data: None, "has no tokenizer.json"),
        ("tokenizer.json", lambda data: b"{}", "tokenizer.json is not a readable tokenizer"),
        ("config.json", lambda data: b"{", "config.json is not a readable JSON file"),
    ],
)
def test_when_both_layouts_fail_both_reasons_are_told(
    cloned: Path,
    empty_cache: Path,
    file: str,
    change: Callable[[bytes], bytes | None],
    expected: str,
) -> None:
    changed = change((cloned / file).read_bytes())
    (cloned / file).unlink()
    if changed is not None:
        (cloned / file).write_bytes(changed)
    with pytest.raises(DownloadError) as failure:
        load(str(cloned))
    message = str(failure.value)
    assert message.startswith("t5-base is not in the cache")
    assert "transformers' layout" in message
    assert expected in message
    assert message.isprintable()


def test_a_damaged_file_is_named_though_another_layout_would_serve(cloned: Path, empty_cache: Path) -> None:
    (cloned / "state_dict.bin").write_bytes(b"PK\x03\x04")
    assert "state_dict.bin" in refusal(cloned)


@pytest.mark.parametrize("named", ["t5-base", "google-t5/t5-base", "t5-large", "google-t5/t5-large"])
def test_both_names_of_a_text_encoder_serve(
    release: Path, package: dict[str, Any], empty_cache: Path, goldens: Path, named: str
) -> None:
    size = named.rpartition("/")[2]
    other = size if named != size else f"google-t5/{size}"
    add_to_hub_cache(empty_cache, other, goldens / "goldens" / "t5")
    add_to_hub_cache(empty_cache, "facebook/encodec_32khz", goldens / "goldens" / "encodec_32khz")
    package["xp.cfg"] = package["xp.cfg"].replace("name: t5-base", f"name: {named}")
    write_torch_file(release / "state_dict.bin", package)
    assert load(str(release)).text_conditioner.t5.config.num_layers == 2


def test_both_names_of_t5_base_serve_for_a_tokenizer(
    published: Path, empty_cache: Path, goldens: Path
) -> None:
    add_to_hub_cache(empty_cache, "google-t5/t5-base", goldens / "goldens" / "t5")
    (published / "tokenizer.json").unlink()
    assert load(str(published)).max_duration == 30.0


# What fine-tuning leaves behind


def compiled(state: dict[str, Any]) -> dict[str, Any]:
    return {f"_orig_mod.{name}": value for name, value in state.items()}


def lora(state: dict[str, Any]) -> dict[str, Any]:
    names = [f"base_model.model.{name.removesuffix('.weight')}" for name in state if "linear1" in name]
    return {f"{name}.lora_{part}.weight": np.zeros((4, 4), np.float32) for name in names for part in "AB"}


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (
            lambda p: p["best_state"],
            "is a bare state dict, without the configuration",
            "-m BASE --weights FILE",
        ),
        (lambda p: {"model": p["best_state"]}, "training checkpoint", "'model'"),
        (lambda p: {"state_dict": p["best_state"], "epoch": 3}, "training checkpoint", "'state_dict'"),
        (lambda p: p | {"best_state": compiled(p["best_state"])}, "'_orig_mod.'", "torch.compile"),
        (
            lambda p: p | {"best_state": {f"module.{n}": v for n, v in p["best_state"].items()}},
            "'module.'",
            "remove",
        ),
        (lambda p: compiled(p["best_state"]), "bare state dict", "-m BASE --weights FILE"),
        (lambda p: lora(p["best_state"]), "is a LoRA adapter", "merge_and_unload"),
        (lambda p: {"model": lora(p["best_state"])}, "is a LoRA adapter", "merge_and_unload"),
        (lambda p: p | {"best_state": lora(p["best_state"])}, "is a LoRA adapter", "merge_and_unload"),
        (lambda p: [1], "holds a list", "'best_state'"),
        (lambda p: {"xp.cfg": {"a": 1}, "best_state": {}}, "'xp.cfg'", "YAML"),
    ],
)
def test_a_file_of_a_fine_tuning_is_named_with_its_remedy(
    release: Path, package: dict[str, Any], change: Callable[[dict[str, Any]], Any], what: str, remedy: str
) -> None:
    write_torch_file(release / "state_dict.bin", change(package))
    message = refusal(release)
    assert message.startswith(str(release / "state_dict.bin"))
    assert what in message
    assert remedy in message


def test_names_of_a_compiled_model_in_safetensors_are_explained(published: Path) -> None:
    weights = mx.load(str(published / "model.safetensors"))
    renamed = {name.replace("decoder.model.", "decoder._orig_mod.model."): weights[name] for name in weights}
    mx.eval(renamed)
    mx.save_safetensors(str(published / "model.safetensors"), renamed)
    message = refusal(published)
    assert "'_orig_mod.'" in message
    assert "torch.compile" in message


@pytest.mark.parametrize(
    "name", ["/home/somebody/t5", "./t5", "../runs/t5-base", "no such name", "a/b/c", "~/t5"]
)
def test_a_path_that_only_the_file_names_is_explained(
    release: Path, package: dict[str, Any], name: str
) -> None:
    package["xp.cfg"] = package["xp.cfg"].replace("name: t5-base", f"name: {name}")
    write_torch_file(release / "state_dict.bin", package)
    message = refusal(release)
    assert message.startswith(str(release / "state_dict.bin"))
    assert f"names {name!r} as its text encoder" in message
    assert "conditioners.description.t5.name" in message
    assert "t5-base" in message


def test_a_codec_path_that_only_the_file_names_is_explained(release: Path) -> None:
    write_torch_file(release / "compression_state_dict.bin", {"pretrained": "/home/somebody/codec"})
    message = refusal(release)
    assert message.startswith(str(release / "compression_state_dict.bin"))
    assert "names '/home/somebody/codec' as its codec" in message


def test_a_text_encoder_that_was_trained_too_is_explained(release: Path, package: dict[str, Any]) -> None:
    package["xp.cfg"] = package["xp.cfg"].replace("      finetune: false\n", "      finetune: true\n")
    write_torch_file(release / "state_dict.bin", package)
    message = refusal(release)
    assert "'conditioners.description.t5.finetune' in its configuration is true" in message
    assert "its text encoder was trained" in message
    assert "finetune: false" in message


def test_an_adapter_as_the_weights_of_a_model_is_named(published: Path) -> None:
    mx.save_safetensors(
        str(published / "model.safetensors"),
        {name: mx.array(value) for name, value in lora({"decoder.linear1.weight": None}).items()},
    )
    message = refusal(published)
    assert "is a LoRA adapter" in message
    assert "merge_and_unload" in message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["lm_final.pt"], ["lm_final.pt", "state_dict.bin"]),
        (["lm.th", "history.json"], ["lm.th", "-m FILE", "-m BASE --weights FILE"]),
        (["model.ckpt"], ["model.ckpt"]),
        (
            ["checkpoint-500/config.json", "checkpoint-500/model.safetensors"],
            ["give the folder", "checkpoint-500"],
        ),
        (["model.safetensors"], ["model.safetensors", "config.json"]),
    ],
)
def test_a_folder_of_a_fine_tuning_is_named_with_its_remedy(
    tmp_path: Path, files: list[str], words: list[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    message = refusal(tmp_path)
    assert "neither state_dict.bin" in message
    for word in words:
        assert word in message
