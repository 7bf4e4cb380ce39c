"""LoRA adapters of PEFT and mlx-lm, merged into a model, give PEFT's own codes; hostile ones are refused."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.checkpoints.adapter_changes import Change, Place, Replacement, apply_changes
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec, lora_specs
from audiocraft_mlx.checkpoints.model_files import ModelFiles, resolve_model
from audiocraft_mlx.checkpoints.module_patterns import ModulePatterns, PatternError
from audiocraft_mlx.cli import convert
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, UsageError
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.lm import LM
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops.cpu.extension import cpu_extension
from audiocraft_mlx.server.errors import NotFoundError
from audiocraft_mlx.server.models import Models
from audiocraft_mlx.server.schema import JobRequest
from audiocraft_mlx.server.service import Service, rebuild
from audiocraft_mlx.server.settings import Limits, ServerSettings

from .hub_server import HubServer
from .torch_files import write_torch_file

ADAPTERS = ("everything", "rslora", "dora", "patterns_bin", "melody")
PREFIX = "base_model.model."
LAYER = f"{PREFIX}decoder.model.decoder.layers.0"


@pytest.fixture(scope="module")
def reference(goldens: Path) -> dict[str, Any]:
    folder = goldens / "goldens_lora"
    with np.load(folder / "codes.npz") as codes:
        return json.loads((folder / "meta.json").read_text()) | {"codes": dict(codes)}


@pytest.fixture(scope="module")
def base(
    goldens: Path, hub_cache: Path, transformers_folder: Callable[[str], Path], reference: dict[str, Any]
) -> Callable[..., str]:
    """A function: the folder of an adapter's model, in one of the formats."""

    def folder(adapter: str, form: str = "transformers") -> str:
        kind = reference["base"].get(adapter, adapter)
        return str(transformers_folder(kind) if form == "transformers" else goldens / "goldens" / kind)

    return folder


@pytest.fixture
def adapter(goldens: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function: a copy of a golden adapter, with changes of its configuration and of its tensors."""

    def copy(name: str, change: Callable[[dict[str, mx.array]], Any] | None = None, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(goldens / "goldens_lora" / name, folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if change is not None:
            weights = folder / "adapter_model.safetensors"
            tensors = dict(mx.load(str(weights)))
            mx.eval(tensors)
            change(tensors)
            mx.save_safetensors(str(weights), tensors)
        return folder

    return copy


def precise(name: str, *lora: LoraSpec) -> ModelBundle:
    """A model whose weights aren't rounded to halves, merged as they are for a conversion."""
    return load(name, lora=lora, lazy=True)


def greedy(model: MusicGen, prompt: str, frames: int = 50) -> np.ndarray:
    model.set_generation_params(use_sampling=False, duration=frames / model.frame_rate, cfg_coef=3)
    return np.array(model.generate([prompt], return_tokens=True)[1])


def logits(bundle: ModelBundle, codes: np.ndarray) -> np.ndarray:
    """Conditional ones after `codes`, without anything prepended."""
    conditions = bundle.text_conditioner.encode(["happy rock"])
    sequence = mx.array(codes.astype(np.int32))
    if not bundle.lm.config.cross_attention:
        return np.array(bundle.lm(sequence))
    return np.array(bundle.lm(sequence, cache=bundle.lm.make_cache(conditions, codes.shape[2])))


def refusal(kind: type[MusicGenError], model: str, *lora: str | Path) -> str:
    with pytest.raises(kind) as caught:
        load(model, lora=[LoraSpec(str(name)) for name in lora])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


# PEFT's format


@pytest.mark.parametrize("form", ["transformers", "audiocraft"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_greedy_codes_are_those_of_peft(
    goldens: Path, base: Callable[..., str], reference: dict[str, Any], name: str, form: str
) -> None:
    spec = LoraSpec(str(goldens / "goldens_lora" / name))
    model = MusicGen("merged", precise(base(name, form), spec))
    wanted = reference["codes"][name]
    np.testing.assert_array_equal(greedy(model, reference["prompt"]), wanted)
    without = greedy(MusicGen("base", precise(base(name, form))), reference["prompt"])
    assert (without == wanted).mean() < 0.5


@pytest.mark.parametrize("name", ADAPTERS)
def test_halves_that_are_changed_are_the_nearest_halves_and_cost_little(
    goldens: Path, base: Callable[..., str], reference: dict[str, Any], name: str
) -> None:
    folder = str(goldens / "goldens_lora" / name)
    codes = reference["codes"][name]
    exact = precise(base(name), LoraSpec(folder))
    loaded = MusicGen.get_pretrained(base(name), lora=folder)
    wanted, made = logits(exact, codes), logits(loaded._bundle, codes)
    # Measured: 0.02 to 0.05 % of the logits (rms).
    assert np.sqrt(((made - wanted) ** 2).mean()) < 1e-3 * np.sqrt((wanted**2).mean())
    changed = np.array(exact.lm.layers[0].self_attn.qkv_proj.weight)
    assert (changed != changed.astype(np.float16)).any()
    if cpu_extension() is not None:
        weight = loaded.lm.layers[0].self_attn.qkv_proj.weight
        assert weight.dtype == mx.float16
        np.testing.assert_array_equal(np.array(weight), changed.astype(np.float16))


def test_weights_that_were_no_halves_are_not_rounded(
    goldens: Path, base: Callable[..., str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base("rslora"), tmp_path / "wide"))
    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights = {name: value + 1e-6 if value.dtype == mx.float32 else value for name, value in weights.items()}
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    lora = LoraSpec(str(goldens / "goldens_lora" / "rslora"))
    weight = load(str(folder), lora=[lora]).lm.layers[0].self_attn
    if cpu_extension() is not None:
        assert weight.qkv_proj.weight.dtype == mx.float32
        exact = precise(str(folder), lora).lm.layers[0].self_attn.qkv_proj.weight
        np.testing.assert_array_equal(np.array(weight.qkv_proj.weight), np.array(exact))


def test_what_halves_cannot_hold_is_not_rounded(base: Callable[..., str]) -> None:
    bundle = precise(base("rslora"))
    for name, value, dtype in (("linear1", 60000, mx.float16), ("linear2", 70000, mx.float32)):
        layer = bundle.lm.layers[0][name]
        whole = Replacement(mx.full(layer.weight.shape, float(value)))
        apply_changes(
            bundle, [(Change(Place("lm", f"layers.0.{name}.weight"), whole), 1.0)], keep_halves=True
        )
        assert layer.weight.dtype == dtype
        np.testing.assert_array_equal(np.array(layer.weight.astype(mx.float32)), np.float32(value))


@pytest.mark.parametrize("name", ["rslora", "dora"])
def test_the_weight_leads_from_the_model_to_the_adapter(
    goldens: Path, base: Callable[..., str], name: str
) -> None:
    folder = str(goldens / "goldens_lora" / name)

    def qkv(*weights: float) -> np.ndarray:
        bundle = precise(base(name), *(LoraSpec(folder, weight) for weight in weights))
        return np.array(bundle.lm.layers[1].self_attn.qkv_proj.weight)

    without, with_it = qkv(), qkv(1.0)
    assert np.abs(with_it - without).max() > 1e-3
    np.testing.assert_allclose(qkv(0.0), without, atol=1e-7)
    np.testing.assert_allclose(qkv(0.25), without + 0.25 * (with_it - without), atol=1e-6)
    np.testing.assert_allclose(qkv(-1.0), 2 * without - with_it, atol=1e-6)
    if name == "rslora":  # what is only added may be in parts
        np.testing.assert_allclose(qkv(0.25, 0.75), with_it, atol=1e-6)


def test_layers_that_were_trained_as_a_whole_replace_those_of_the_model(
    adapter: Callable[..., Path], base: Callable[..., str]
) -> None:
    rng = np.random.default_rng(0)
    original = {
        f"{network}.{name}": np.array(value)
        for network, module in precise(base("rslora")).networks.items()
        for name, value in flat_parameters(module).items()
    }
    dim = original["lm.out_norm.weight"].shape[0]
    cardinality = original["lm.lm_heads.weight"].shape[0] // 4

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    whole = {
        "decoder.lm_heads.2.weight": noise(cardinality, dim),
        "decoder.model.decoder.layer_norm.bias": noise(dim),
        "decoder.model.decoder.layers.1.self_attn_layer_norm.weight": noise(dim),
        "decoder.model.decoder.embed_tokens.1.base_layer.weight": noise(cardinality + 1, dim),
        "decoder.model.decoder.layers.0.self_attn.k_proj.weight": noise(dim, dim),
        "text_encoder.encoder.final_layer_norm.weight": noise(*original["t5.norm.weight"].shape),
        "text_encoder.encoder.block.1.layer.1.layer_norm.weight": noise(*original["t5.norm.weight"].shape),
        "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": noise(
            *original["t5.relative_bias.weight"].shape
        ),
        "enc_to_dec_proj.bias": noise(dim),
        "audio_encoder.decoder.layers.0.conv.bias": noise(
            *original["codec.decoder.layers.0.conv.bias"].shape
        ),
    }

    def change(tensors: dict[str, mx.array]) -> None:
        tensors.clear()
        tensors.update({PREFIX + name: mx.array(value) for name, value in whole.items()})

    folder = adapter("rslora", change, bias="all", modules_to_save=["lm_heads.2"])
    networks = precise(base("rslora"), LoraSpec(str(folder))).networks
    made = {
        f"{network}.{name}": np.array(value)
        for network, module in networks.items()
        for name, value in flat_parameters(module).items()
    }
    values = list(whole.values())
    heads = original["lm.lm_heads.weight"].copy()
    heads[2 * cardinality : 3 * cardinality] = values[0]
    embed = original["lm.embed.weight"].copy()
    embed[cardinality + 1 : 2 * cardinality + 2] = values[3]
    qkv = original["lm.layers.0.self_attn.qkv_proj.weight"].copy()
    qkv[dim : 2 * dim] = values[4]
    expected = original | {
        "lm.lm_heads.weight": heads,
        "lm.out_norm.bias": values[1],
        "lm.layers.1.norm1.weight": values[2],
        "lm.embed.weight": embed,
        "lm.layers.0.self_attn.qkv_proj.weight": qkv,
        "t5.norm.weight": values[5],
        "t5.layers.1.ff_norm.weight": values[6],
        "t5.relative_bias.weight": values[7],
        "output_proj.bias": values[8],
        "codec.decoder.layers.0.conv.bias": values[9],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(made[name], value, err_msg=name)


def test_half_an_adapter_is_read_too(adapter: Callable[..., Path], base: Callable[..., str]) -> None:
    def halve(tensors: dict[str, mx.array]) -> None:
        tensors.update({name: value.astype(mx.bfloat16) for name, value in tensors.items()})

    folder = adapter("rslora", halve)
    weights = [
        np.array(precise(base("rslora"), LoraSpec(str(path))).lm.layers[0].self_attn.qkv_proj.weight)
        for path in (folder, folder.parent / "rslora")
    ]
    assert weights[0].dtype == np.float32
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-2)


def test_a_checkpoint_of_a_training_is_found_and_the_last_one_taken(
    goldens: Path, base: Callable[..., str], reference: dict[str, Any], tmp_path: Path
) -> None:
    for number, name in ((900, "dora"), (1000, "rslora")):
        shutil.copytree(goldens / "goldens_lora" / name, tmp_path / "run" / f"checkpoint-{number}")
    model = MusicGen("merged", precise(base("rslora"), LoraSpec(str(tmp_path / "run"))))
    np.testing.assert_array_equal(greedy(model, reference["prompt"]), reference["codes"]["rslora"])


# mlx-lm's format


def mlx_lm_folder(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {name: mx.array(value) for name, value in tensors.items()}
    )
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lms_adapters_change_the_layers_that_they_name(
    base: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    rng = np.random.default_rng(1)
    bundle = precise(base("rslora"))
    places = {
        "layers.0.self_attn.qkv_proj": bundle.lm.layers[0].self_attn.qkv_proj,
        "lm.layers.1.linear2": bundle.lm.layers[1].linear2,
        "lm.embed": bundle.lm.embed,
        "t5.layers.0.ff_in": bundle.text_conditioner.t5.layers[0].ff_in,
        "output_proj": bundle.text_conditioner.output_proj,
    }
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    for name, layer in places.items():
        weight = np.array(layer.weight).astype(np.float64)
        rows, columns = weight.shape
        inputs, outputs = (rows, columns) if name == "lm.embed" else (columns, rows)
        a, b = rng.standard_normal((inputs, 3)), rng.standard_normal((3, outputs))
        changed = weight + 2.0 * (a @ b if name == "lm.embed" else (a @ b).T)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a.astype(np.float32), b.astype(np.float32)
        if kind == "dora":
            m = rng.uniform(0.5, 2, rows)
            tensors[f"{name}.m"] = m.astype(np.float32)
            changed *= (m / np.linalg.norm(changed, axis=1))[:, None]
        expected[name] = changed
    parameters = {"rank": 3, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.qkv_proj"]}
    folder = mlx_lm_folder(
        tmp_path / "mlx", tensors, fine_tune_type=kind, num_layers=2, lora_parameters=parameters
    )
    made = precise(base("rslora"), LoraSpec(str(folder)))
    for name, layer in {
        "layers.0.self_attn.qkv_proj": made.lm.layers[0].self_attn.qkv_proj,
        "lm.layers.1.linear2": made.lm.layers[1].linear2,
        "lm.embed": made.lm.embed,
        "t5.layers.0.ff_in": made.text_conditioner.t5.layers[0].ff_in,
        "output_proj": made.text_conditioner.output_proj,
    }.items():
        np.testing.assert_allclose(np.array(layer.weight), expected[name], rtol=1e-4, atol=1e-4)


def test_mlx_lms_fully_trained_layers_replace_those_of_the_model(
    base: Callable[..., str], tmp_path: Path
) -> None:
    norm = np.full(np.array(precise(base("rslora")).lm.out_norm.weight).shape, 0.5, np.float32)
    folder = mlx_lm_folder(tmp_path / "mlx", {"out_norm.weight": norm}, fine_tune_type="full")
    np.testing.assert_array_equal(
        np.array(precise(base("rslora"), LoraSpec(str(folder))).lm.out_norm.weight), norm
    )


def test_mlx_lms_adapter_that_does_not_fit_is_named(base: Callable[..., str], tmp_path: Path) -> None:
    tensors = {"layers.0.linear1.lora_a": np.zeros((7, 8), np.float32), "q.lora_a": np.zeros((1, 8))}
    folder = mlx_lm_folder(tmp_path / "mlx", tensors, model="somebody/base")
    message = refusal(CheckpointError, base("rslora"), folder)
    assert "layers.0.linear1.lora_a has shape [7, 8] instead of [" in message
    assert "layers.0.linear1.lora_b is missing" in message
    assert "q is unexpected" in message
    assert "'somebody/base'" in message


# An adapter in place of a model


def test_an_adapter_alone_takes_the_model_that_it_names(
    adapter: Callable[..., Path], base: Callable[..., str], reference: dict[str, Any]
) -> None:
    folder = adapter("rslora", base_model_name_or_path=base("rslora"))
    # As transformers' trainer leaves them.
    shutil.copy(Path(base("rslora")) / "config.json", folder)
    with pytest.warns(UserWarning, match="is a LoRA adapter; it is merged into its model") as caught:
        bundle = load(str(folder), lazy=True)
    assert len(caught) == 1
    assert base("rslora") in str(caught[0].message)
    model = MusicGen("merged", bundle)
    np.testing.assert_array_equal(greedy(model, reference["prompt"]), reference["codes"]["rslora"])
    assert bundle.lora == (LoraSpec(str(folder)),)


@pytest.mark.parametrize(
    "name", ["/home/somebody/base", "./base", "../runs/base", "a/b/c", "no such name", "base", "~nobody/base"]
)
def test_a_model_on_another_machine_must_be_given(adapter: Callable[..., Path], name: str) -> None:
    folder = adapter("rslora", base_model_name_or_path=name)
    message = refusal(CheckpointError, str(folder))
    assert f"is an adapter of the model {name!r}, which is not here" in message
    assert f"give the model with -m MODEL --lora {folder}" in message


def test_the_model_that_an_adapter_names_may_be_of_a_revision(
    adapter: Callable[..., Path], base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter("rslora", base_model_name_or_path="somebody/base", revision="v2")
    asked: list[tuple[str, str | None]] = []

    def resolve(name: str, revision: str | None = None) -> ModelFiles:
        asked.append((name, revision))
        return resolve_model(base("rslora"))

    monkeypatch.setattr("audiocraft_mlx.checkpoints.adapters.resolve_model", resolve)
    with pytest.warns(UserWarning, match="is merged into its model"):
        load(str(folder), lazy=True)
    assert asked == [("somebody/base", "v2")]


@pytest.mark.parametrize("name", [None, ""])
def test_a_model_that_is_not_named_must_be_given(adapter: Callable[..., Path], name: str | None) -> None:
    message = refusal(CheckpointError, str(adapter("rslora", base_model_name_or_path=name)))
    assert "doesn't name its model (base_model_name_or_path); give the model with -m MODEL" in message


@pytest.mark.parametrize(
    ("weights", "key"),
    [("adapter_model.safetensors", "base_model_name_or_path"), ("adapters.safetensors", "model")],
)
def test_an_empty_configuration_is_refused(
    base: Callable[..., str], tmp_path: Path, weights: str, key: str
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    mx.save_safetensors(str(tmp_path / weights), {"x.lora_a": mx.zeros(1)})
    message = refusal(CheckpointError, str(tmp_path))
    assert f"is an adapter that doesn't name its model ({key}); give the model with -m" in message
    message = refusal(CheckpointError, base("rslora"), tmp_path)
    assert ("'peft_type' in its configuration is missing" in message) == (key != "model")


def test_an_adapter_of_an_adapter_is_refused(adapter: Callable[..., Path]) -> None:
    folder = adapter("rslora")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder)}))
    assert "which is one itself" in refusal(CheckpointError, str(folder))


def test_a_model_that_was_saved_beside_its_adapters_leftovers_is_a_model(
    goldens: Path, base: Callable[..., str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base("rslora"), tmp_path / "merged"))
    config = goldens / "goldens_lora" / "rslora" / "adapter_config.json"
    shutil.copy(config, folder)
    (folder / "checkpoint-1").mkdir()
    shutil.copy(config, folder / "checkpoint-1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(folder), lazy=True).lora == ()


# What doesn't fit, isn't supported, or is hostile


def test_a_model_in_place_of_an_adapter_is_explained(base: Callable[..., str]) -> None:
    message = refusal(CheckpointError, base("rslora"), base("rslora"))
    assert "is no LoRA adapter: it has no adapter_config.json" in message


def test_a_model_of_another_kind_is_named(goldens: Path, base: Callable[..., str]) -> None:
    folder = goldens / "goldens_lora" / "dora"
    message = refusal(CheckpointError, base("melody"), folder)
    assert f"the adapter {folder} doesn't fit the model: " in message
    assert "decoder.model.decoder.layers.0.encoder_attn." in message
    assert "more; give the model that it was trained from, 'facebook/musicgen-small'" in message


def test_a_quantized_model_is_refused_with_what_to_do(
    goldens: Path, base: Callable[..., str], tmp_path: Path
) -> None:
    assert convert.main([base("rslora"), "-o", str(tmp_path / "quantized"), "-q", "8"]) == 0
    message = refusal(UsageError, str(tmp_path / "quantized"), goldens / "goldens_lora" / "rslora")
    assert "is quantized to 8 bits" in message
    assert "give the model that it was quantized from, and quantize it with the adapter: -q 8" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, ["'peft_type'", "'LOHA'"]),
        ({"peft_type": 3}, ["'peft_type'"]),
        ({"init_lora_weights": "pissa"}, ["'init_lora_weights'", "'pissa'", "changed the model"]),
        ({"init_lora_weights": "pissa_niter_16"}, ["'pissa_niter_16'"]),
        ({"init_lora_weights": "olora"}, ["'olora'"]),
        ({"init_lora_weights": "corda"}, ["'corda'"]),
        ({"init_lora_weights": "loftq"}, ["'loftq'"]),
        ({"init_lora_weights": "lora_ga"}, ["'lora_ga'"]),
        ({"init_lora_weights": ["x"]}, ["'init_lora_weights'"]),
        ({"layer_replication": [[0, 1]]}, ["'layer_replication'", "isn't supported"]),
        ({"target_parameters": ["x"]}, ["'target_parameters'"]),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, ["'trainable_token_indices'"]),
        ({"alora_invocation_tokens": [1]}, ["'alora_invocation_tokens'"]),
        ({"use_qalora": True}, ["'use_qalora'"]),
        ({"arrow_config": {"top_k": 1}}, ["'arrow_config'"]),
        ({"velora_config": {"a": 1}}, ["'velora_config'"]),
        ({"kasa_config": {"a": 1}}, ["'kasa_config'"]),
        ({"monteclora_config": {"a": 1}}, ["'monteclora_config'"]),
        ({"use_bdlora": {"a": 1}}, ["'use_bdlora'"]),
        ({"lora_bias": True}, ["'lora_bias'"]),
        ({"fan_in_fan_out": True}, ["'fan_in_fan_out'"]),
        ({"use_a_method_of_tomorrow": True}, ["'use_a_method_of_tomorrow'"]),
        ({"r": 0}, ["'r'", "from 1"]),
        ({"r": -4}, ["'r'"]),
        ({"r": 10**30}, ["'r'"]),
        ({"r": 2.5}, ["'r'"]),
        ({"r": True}, ["'r'"]),
        ({"r": 8}, ["lora_A has shape [4, ", "instead of [8, "]),
        ({"lora_alpha": "x" * 10_000}, ["'lora_alpha'"]),
        ({"lora_alpha": 1e300}, ["'lora_alpha'"]),
        ({"use_rslora": "yes"}, ["'use_rslora'"]),
        ({"use_dora": True}, ["lora_magnitude_vector is missing"]),
        ({"rank_pattern": []}, ["'rank_pattern'", "not a mapping"]),
        ({"rank_pattern": {"q_proj": "x"}}, ["'rank_pattern.q_proj'"]),
        ({"alpha_pattern": {"q_proj": None}}, ["'alpha_pattern.q_proj'"]),
        ({"rank_pattern": {"(a+)+$": 4}}, ["'rank_pattern'", "a repetition in a repetition"]),
        ({"rank_pattern": {"a{1,9999}": 4}}, ["'rank_pattern'", "'{'"]),
        ({"rank_pattern": {"(": 4}}, ["'rank_pattern'", "lacks a ')'"]),
        ({"rank_pattern": {"a*" * 1000: 4}}, ["'rank_pattern'", "too long"]),
        ({"rank_pattern": {r"(?=x)": 4}}, ["'rank_pattern'", "a group of a kind"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else next(iter(value)),
)
def test_a_configuration_that_is_not_supported_is_named(
    adapter: Callable[..., Path], base: Callable[..., str], config: dict[str, Any], words: list[str]
) -> None:
    message = refusal(CheckpointError, base("rslora"), adapter("rslora", **config))
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["[]", "[1, 2]", "null", "{", '"x"', "[" * 100_000, ""])
def test_a_configuration_that_is_no_object_is_refused(
    adapter: Callable[..., Path], base: Callable[..., str], text: str
) -> None:
    folder = adapter("rslora")
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refusal(CheckpointError, base("rslora"), folder)
    assert "adapter_config.json" in refusal(CheckpointError, str(folder))


def test_an_adapter_without_weights_is_named(adapter: Callable[..., Path], base: Callable[..., str]) -> None:
    folder = adapter("rslora")
    (folder / "adapter_model.safetensors").unlink()
    message = refusal(CheckpointError, base("rslora"), folder)
    assert "no weights: none of adapter_model.safetensors, adapter_model.bin" in message


A_NAME, B_NAME = f"{LAYER}.self_attn.q_proj.lora_A.weight", f"{LAYER}.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({A_NAME: t[A_NAME] * float("nan")}), ["q_proj.lora_A", "NaN or infinite"]),
        (lambda t: t.update({B_NAME: mx.full(t[B_NAME].shape, float("inf"))}), ["q_proj.lora_B", "NaN"]),
        (lambda t: t.update({A_NAME: t[A_NAME].astype(mx.int32)}), ["q_proj.lora_A", "int32"]),
        (lambda t: t.update({A_NAME: t[A_NAME][:2]}), ["q_proj.lora_A has shape [2, "]),
        (lambda t: t.update({A_NAME: mx.zeros((4, 100_000))}), ["has shape [4, 100000]"]),
        (lambda t: t.update({A_NAME: mx.zeros((4,))}), ["q_proj.lora_A has shape [4]"]),
        (lambda t: t.update({A_NAME: mx.array(1.0)}), ["q_proj.lora_A has shape []"]),
        (lambda t: t.pop(A_NAME), ["q_proj.lora_A is missing"]),
        (lambda t: t.pop(B_NAME), ["q_proj.lora_B is missing"]),
        (lambda t: t.clear() or t.update({"x": mx.zeros(1)}), ["x is unexpected"]),
        (lambda t: t.update({"../../etc/passwd": mx.zeros(1)}), ["../../etc/passwd is unexpected"]),
        (lambda t: t.update({PREFIX + "\x1b[31m": mx.zeros(1)}), [r"\x1b[31m is unexpected"]),
        (lambda t: t.update({PREFIX + "a" * 900: mx.zeros(1)}), ["aaa... is unexpected"]),
        (
            lambda t: t.update({f"{LAYER}.self_attn.q_proj.lora_B.bias": mx.zeros(64)}),
            ["q_proj.lora_B.bias is of a kind that isn't supported"],
        ),
        (
            lambda t: t.update({f"{LAYER}.self_attn.q_proj.lora_magnitude_vector": mx.zeros(64)}),
            ["q_proj.lora_magnitude_vector is unexpected"],
        ),
        (
            lambda t: t.update({A_NAME.replace("layers.0", "layers.99"): t[A_NAME]}),
            ["layers.99.self_attn.q_proj is unexpected"],
        ),
        (
            lambda t: t.update({f"{PREFIX}audio_encoder.encoder.layers.0.conv.lora_A.weight": t[A_NAME]}),
            ["audio_encoder.encoder.layers.0.conv is unexpected"],
        ),
        (
            lambda t: t.update({f"{PREFIX}decoder.lm_heads.4.lora_A.weight": t[A_NAME]}),
            ["decoder.lm_heads.4 is unexpected"],
        ),
        (
            lambda t: t.update({f"{PREFIX}decoder.lm_heads.0.weight": mx.zeros((3, 5))}),
            ["decoder.lm_heads.0.weight has shape [3, 5] instead of ["],
        ),
        (
            lambda t: t.update({f"{PREFIX}audio_encoder.x.conv.weight": mx.zeros(3)}),
            ["x.conv.weight has shape [3]"],
        ),
        (
            lambda t: t.update({f"{PREFIX}text_encoder.shared.lora_embedding_A": mx.zeros((4, 5))}),
            ["text_encoder.shared is unexpected"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    adapter: Callable[..., Path],
    base: Callable[..., str],
    change: Callable[[dict[str, mx.array]], Any],
    words: list[str],
) -> None:
    message = refusal(CheckpointError, base("rslora"), adapter("rslora", change))
    assert message.isprintable()
    for word in words:
        assert word in message


def test_a_torch_file_with_more_elements_than_bytes_is_refused(
    adapter: Callable[..., Path], base: Callable[..., str]
) -> None:
    folder = adapter("rslora")
    (folder / "adapter_model.safetensors").unlink()
    one = np.zeros((100, 100), np.float32)  # it is in the file once
    write_torch_file(folder / "adapter_model.bin", {f"{PREFIX}{index}.weight": one for index in range(50)})
    message = refusal(CheckpointError, base("rslora"), folder)
    assert "adapter_model.bin has tensors with more elements than the file has bytes" in message


def test_what_is_no_torch_file_is_refused(adapter: Callable[..., Path], base: Callable[..., str]) -> None:
    folder = adapter("rslora")
    (folder / "adapter_model.safetensors").unlink()
    for content in ({}, {"x": 1}, [1], {"x": {"y": np.zeros(1)}}):
        write_torch_file(folder / "adapter_model.bin", content)
        assert "adapter_model.bin" in refusal(CheckpointError, base("rslora"), folder)
    (folder / "adapter_model.bin").write_bytes(b"not a file of torch")
    assert "adapter_model.bin" in refusal(CheckpointError, base("rslora"), folder)


def test_a_damaged_file_is_named(adapter: Callable[..., Path], base: Callable[..., str]) -> None:
    folder = adapter("rslora")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a complete safetensors file" in refusal(CheckpointError, base("rslora"), folder)


# Patterns

NAMES = [
    "decoder.model.decoder.layers.1.fc2",
    "decoder.model.decoder.layers.11.self_attn.q_proj",
    "decoder.model.decoder.embed_tokens.0",
    "text_encoder.encoder.block.0.layer.0.SelfAttention.q",
    "enc_to_dec_proj",
    "q",
]
PATTERNS = [
    "fc2",
    "q_proj",
    "q",
    "proj",
    r"layers\.1\.fc2",
    "layers.1.fc2",
    r"layers\.\d+\.fc2",
    r"layers\.1",
    r".*\.fc[12]",
    r"^decoder\.model\.decoder\.layers\.[0-9]\.fc2",
    r"^fc2",
    r".*self_attn.*",
    r"(q|k|v)_proj",
    r"self_attn\.(q|k|v)_proj",
    r"(decoder|encoder)\..*\.(fc2|q)",
    r"[^.]+\.fc2",
    r"\w+",
    r"(?:a|)q",
    r"q?",
    r"fc2$",
    r".*",
    r"x*",
    r"[a-c_2]+",
    r"[]x]",
    r"SelfAttention\.q|fc2",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_does_in_peft(pattern: str) -> None:
    patterns = ModulePatterns({pattern: 1})
    for name in NAMES:
        wanted = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert (patterns.get(name, 0) == 1) == wanted, name


def test_the_first_pattern_that_matches_counts() -> None:
    name = "decoder.layers.1.fc2"
    assert ModulePatterns({"fc1": 1, ".*fc2": 2, "fc2": 3}).get(name, 0) == 2
    assert ModulePatterns({"fc2": 1, ".*fc2": 2, "layers.1.fc2": 3}).get(name, 0) == 1
    assert ModulePatterns({}).get(name, 7) == 7


@pytest.mark.parametrize(
    "pattern", ["(a|a)*" * 30 + "x", ".*" * 90 + "x", "(a|aa|aaa)*" * 15 + "x", "(a?)*" * 30, "(a|b|ab)*c"]
)
def test_a_pattern_takes_bounded_time(pattern: str) -> None:
    start = time.perf_counter()
    patterns = ModulePatterns({pattern: 1})
    for _ in range(50):
        patterns.get("a" * 60 + "y", 0)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "pattern", ["(a*)*", "a)", "[a", "a**", "\\", r"\b", "(?P<x>a)", "(" * 100, "{", "*"]
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        ModulePatterns({pattern: 1})


# Names and weights


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("mine", "mine", 1.0),
        ("mine@0.5", "mine", 0.5),
        ("mine@-1", "mine", -1.0),
        ("a@b", "a@b", 1.0),
        ("a@b@2", "a@b", 2.0),
        ("hf://me/mine@main", "hf://me/mine@main", 1.0),
        ("a@0.5@1", "a@0.5", 1.0),
    ],
)
def test_the_weight_follows_the_last_at(text: str, name: str, weight: float) -> None:
    spec = LoraSpec.parse(text)
    assert spec == LoraSpec(name, weight)
    assert LoraSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["", " ", "@1", "mine@nan", "mine@inf", "mine@1e9", "mine@-101"])
def test_a_weight_that_is_none_and_an_empty_name_are_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        LoraSpec.parse(text)
    assert main(["piano", "--lora", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith("musicgen-mlx: error: argument --lora: ")
    assert error.count("\n") == 1


def test_python_takes_a_name_a_pair_or_a_list() -> None:
    mine, half = LoraSpec("mine"), LoraSpec("mine", 0.5)
    assert lora_specs(None) == lora_specs([]) == ()
    assert (
        lora_specs("mine") == lora_specs(Path("mine")) == lora_specs(["mine"]) == lora_specs(mine) == (mine,)
    )
    assert lora_specs(("mine", 0.5)) == lora_specs([("mine", 0.5)]) == (half,)
    assert lora_specs(["mine", (Path("mine"), 0.5)]) == lora_specs(("mine", half)) == (mine, half)
    assert lora_specs(("mine", "yours")) == (mine, LoraSpec("yours"))
    for wrong in (3, ["mine", 3], ("mine", None), ("mine", float("nan")), [("mine", "0.5")], {"mine": 1}):
        with pytest.raises(UsageError):
            lora_specs(wrong)  # type: ignore[arg-type]


# The commands


def test_a_clip_names_its_adapters_and_its_command_makes_it_again(
    goldens: Path,
    base: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    adapters = [f"{goldens / 'goldens_lora' / 'rslora'}@0.5", str(goldens / "goldens_lora" / "patterns_bin")]
    options = ["-m", base("rslora"), "-d", "0.2", "--seed", "3", "--no-open"]
    for count in (1, 2):
        lora = [word for name in adapters[:count] for word in ("--lora", name)]
        assert main(["piano", *options, *lora, "-o", "first.wav"]) == 0
        capsys.readouterr()
        assert main(["--info", "first.wav"]) == 0
        lines = capsys.readouterr().out.splitlines()
        named = [line for line in lines if line.startswith("  lora: ")]
        assert named == [f"  lora: {name}" for name in adapters[:count]]
        command = shlex.split(lines[-1].removeprefix("make it again: "))
        given = [word for flag, word in pairwise(command) if flag == "--lora"]
        assert given == adapters[:count]
        assert main([*command[1:], "-o", "second.wav", "--no-open"]) == 0
        assert Path("first.wav").read_bytes() == Path("second.wav").read_bytes()
        assert main(["piano", *options, "-o", "without.wav"]) == 0
        assert Path("first.wav").read_bytes()[-4000:] != Path("without.wav").read_bytes()[-4000:]


def test_an_adapter_alone_is_said_on_standard_error(
    adapter: Callable[..., Path],
    base: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter("rslora", base_model_name_or_path=base("rslora"))
    assert main(["piano", "-m", str(folder), "-d", "0.1", "--no-open"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "adapter" in line]
    assert notes == [
        f"musicgen-mlx: warning: {folder} is a LoRA adapter; it is merged into its model, {base('rslora')}"
    ]


@pytest.mark.parametrize("quantize", [[], ["-q", "8", "--group-size", "32"]])
def test_a_converted_model_has_the_adapter_in_its_weights(
    goldens: Path,
    base: Callable[..., str],
    reference: dict[str, Any],
    tmp_path: Path,
    quantize: list[str],
) -> None:
    folder, lora = tmp_path / "merged", str(goldens / "goldens_lora" / "everything")
    arguments = [base("everything"), "-o", str(folder), "--lora", lora, "--dtype", "float32", *quantize]
    assert convert.main(arguments) == 0
    if not quantize:
        model = MusicGen.get_pretrained(str(folder))
        codes = greedy(model, reference["prompt"])
        np.testing.assert_array_equal(codes, reference["codes"]["everything"])
    card = (folder / "README.md").read_text()
    assert "- everything, weight 1\n" in card
    assert str(goldens) not in card
    assert str(goldens) not in (folder / "config.json").read_text()
    # The next conversion names it, too.
    if not quantize:
        assert convert.main([str(folder), "-o", str(tmp_path / "again")]) == 0
        assert "- everything, weight 1\n" in (tmp_path / "again" / "README.md").read_text()


def test_quantization_comes_after_the_adapter(
    goldens: Path, base: Callable[..., str], tmp_path: Path
) -> None:
    lora = str(goldens / "goldens_lora" / "rslora")
    arguments = [base("rslora"), "-o", str(tmp_path / "a"), "--lora", lora, "--dtype", "float32"]
    assert convert.main(arguments) == 0
    models = [
        MusicGen.get_pretrained(base("rslora"), quantize=8, lora=lora),
        MusicGen.get_pretrained(str(tmp_path / "a"), quantize=8),
    ]
    codes = [greedy(model, "piano", 10) for model in models]
    np.testing.assert_array_equal(*codes)


def test_a_gpus_language_model_is_half_of_what_was_merged_in_float32(
    goldens: Path, base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocraft_mlx.checkpoints.load.lm_dtype", lambda: mx.float16)
    lora = LoraSpec(str(goldens / "goldens_lora" / "rslora"))
    bundle: ModelBundle = load(base("rslora"), lora=[lora])
    lm: LM = bundle.lm
    assert lm.dtype == mx.float16
    wanted = np.array(precise(base("rslora"), lora).lm.embed.weight)
    np.testing.assert_array_equal(np.array(lm.embed.weight), wanted.astype(np.float16))


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goldens: Path) -> Iterator[HubServer]:
    """A fake Hub with one adapter."""
    from huggingface_hub import close_session, constants

    files = sorted((goldens / "goldens_lora" / "rslora").iterdir())
    server = HubServer({"somebody/rslora": {path.name: path.read_bytes() for path in files}})
    close_session()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with server:
        yield server
    close_session()


def test_an_adapter_comes_from_the_hub_and_then_from_its_cache(
    hub: HubServer, base: Callable[..., str], reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MusicGen("merged", precise(base("rslora"), LoraSpec("somebody/rslora")))
    np.testing.assert_array_equal(greedy(model, reference["prompt"]), reference["codes"]["rslora"])
    assert any("adapter_model.safetensors" in request.path for request in hub.requests)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert precise(base("rslora"), LoraSpec("somebody/rslora")).lora == (LoraSpec("somebody/rslora"),)
    assert len(hub.requests) == count


def test_an_adapter_that_is_not_on_the_hub_is_named(hub: HubServer, base: Callable[..., str]) -> None:
    assert "somebody/else" in refusal(CheckpointError, base("rslora"), "somebody/else")


# The server


def test_a_server_lists_its_model_with_each_adapter(goldens: Path, base: Callable[..., str]) -> None:
    folder = goldens / "goldens_lora" / "rslora"
    specs = (LoraSpec(str(folder), 0.5), LoraSpec("somebody/else"))
    options = ModelOptions(base("rslora"), quantize=None)
    models = Models(options, False, lambda listed: None, specs)
    assert models.names[:3] == ("mono", "mono + rslora@0.5", "mono + somebody/else")
    assert models.options("mono + rslora@0.5").lora == specs[:1]
    assert models.options("mono").lora == ()
    assert models.info("mono + rslora@0.5").state == "on disk"
    assert models.load("mono + rslora@0.5")._bundle.lora == specs[:1]
    assert models.known_name(base("rslora"), str(specs[0])) == "mono + rslora@0.5"
    assert models.known_name(base("rslora")) == "mono"
    assert models.known_name(base("rslora"), "other") is None
    for name in (str(folder), "mono + other", "somebody/else", f"mono + {folder}"):
        with pytest.raises(MusicGenError, match="there is no model"):
            models.name_of(name)
    with pytest.raises(UsageError, match="two adapters have the same name"):
        Models(options, False, lambda listed: None, (specs[0], specs[0]))


def test_a_clip_of_a_server_is_that_of_the_command_and_names_the_adapter(
    goldens: Path, base: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = goldens / "goldens_lora" / "rslora"
    spec = LoraSpec(str(folder), 0.5)
    settings = ServerSettings(
        tmp_path / "data", ModelOptions(base("rslora")), limits=Limits(free_bytes=0), lora=(spec,)
    )
    service = Service(settings)
    service.start()
    try:
        with pytest.raises(NotFoundError):
            service.submit(JobRequest(prompt="piano", model=str(folder)), "me")
        job = service.submit(
            JobRequest(prompt="piano", model="mono + rslora@0.5", duration=0.2, seed=3), "me"
        )
        job = asyncio.run(asyncio.wait_for(service.wait(job.id), 60))
        assert job.error is None
        path = service.clip_file(job.clips[0].id)
        recipe = service.read_recipe(path).recipe
        assert recipe is not None
        assert recipe.model == "mono + rslora@0.5"
    finally:
        service.close()
    assert job.command is not None
    assert main([*shlex.split(job.command)[1:], "-o", str(tmp_path / "again.wav"), "--no-open"]) == 0
    assert path.read_bytes() == (tmp_path / "again.wav").read_bytes()
    assert rebuild(tmp_path / "data") == 1
    service = Service(settings)
    try:
        assert service.job(job.id).recipe.model == "mono + rslora@0.5"
    finally:
        service.close()


def test_a_server_may_not_download_an_adapter(base: Callable[..., str]) -> None:
    models = Models(ModelOptions(base("rslora")), False, lambda listed: None, (LoraSpec("somebody/else"),))
    with pytest.raises(DownloadError, match="--allow-downloads"):
        models.load("mono + somebody/else")
