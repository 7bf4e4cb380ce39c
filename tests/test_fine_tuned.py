"""Checkpoints that trainings leave: as models of their own, and as weights of the model they began with."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from omegaconf import OmegaConf

from audiocraft_mlx import CheckpointError, UsageError
from audiocraft_mlx.checkpoints import mlx_format
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file
from audiocraft_mlx.cli.convert import main as convert
from audiocraft_mlx.models.musicgen import MusicGen

from .conftest import add_to_hub_cache
from .torch_files import Opcodes, Pickled, arrays, write_torch_file

State = dict[str, np.ndarray]
T5_PREFIX = "condition_provider.conditioners.description.t5."


@pytest.fixture(scope="session")
def packages(goldens: Path) -> dict[str, Any]:
    return {
        name: arrays(read_torch_file(goldens / "goldens" / name / "state_dict.bin"))
        for name in ("mono", "melody", "style")
    }


def trained(state: State, seed: int = 0) -> State:
    """Another state of the same shapes."""
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(value + 0.1 * random.standard_normal(value.shape), np.float32)
        if value.dtype.kind == "f"
        else value
        for name, value in state.items()
    }


def config_of(package: dict[str, Any], protocol: int = 2, **changes: Any) -> Pickled:
    """The configuration as a training saves it."""
    config = OmegaConf.create(package["xp.cfg"])
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return Pickled(config, protocol)


def training(package: dict[str, Any], states: dict[str, Any], protocol: int = 2) -> dict[str, Any]:
    """What audiocraft's training saves as `checkpoint.th`: `states`, and what no model needs."""
    history = [{"train": {"ce": 1.5, "epoch": 1}, "valid": defaultdict(dict, {"ppl": 4.0})}]
    return {
        "history": Pickled([*history, argparse.Namespace(sets={1, 2}, path=PurePosixPath("/x").parts)]),
        "xp.cfg": config_of(package, protocol),
        "xp.sig": "01234567",
        "optimizer": {
            "state": {0: {"step": np.zeros((), np.float32), "exp_avg": np.zeros(3, np.float32)}},
            "param_groups": [{"lr": 1.0, "betas": (0.9, 0.95), "params": [0]}],
        },
        "fsdp_best_state": {},
        **states,
    }


def weights_of(bundle: ModelBundle) -> dict[str, np.ndarray]:
    parts = {"lm": bundle.lm, "t5": bundle.text_conditioner.t5, "codec": bundle.mono_codec}
    if bundle.text_conditioner.output_proj is not None:
        parts["proj"] = bundle.text_conditioner.output_proj
    if bundle.audio_conditioner is not None:
        conditioner: Any = bundle.audio_conditioner
        parts["audio"] = conditioner.encoder if hasattr(conditioner, "encoder") else conditioner.output_proj
    return {
        f"{part}.{name}": np.array(value)
        for part, module in parts.items()
        for name, value in dict(tree_flatten(module.parameters())).items()
    }


def check_equal(found: ModelBundle, expected: ModelBundle) -> None:
    one, other = weights_of(found), weights_of(expected)
    assert one.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_array_equal(one[name], value, err_msg=name)


@pytest.fixture
def released(goldens: Path, hub_cache: Path, tmp_path: Path, packages: dict[str, Any]) -> Callable[..., Path]:
    """A function: the folder of a release in audiocraft's format, with a state of its own if one is given."""

    def folder(model: str = "mono", state: State | None = None) -> Path:
        path = tmp_path / f"{model}-{'released' if state is None else 'tuned'}"
        if not path.exists():
            shutil.copytree(goldens / "goldens" / model, path)
            if state is not None:
                write_torch_file(path / "state_dict.bin", {**packages[model], "best_state": state})
        return path

    return folder


def refusal(*arguments: Any, **options: Any) -> str:
    """The one-line error message of loading."""
    with pytest.raises((CheckpointError, UsageError)) as failure:
        load(*arguments, **options)
    message = str(failure.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


# audiocraft's training as a model


@pytest.mark.parametrize("model", ["mono", "melody", "style"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_training_checkpoint_is_a_model(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, model: str, protocol: int
) -> None:
    state = trained(packages[model]["best_state"])
    folder = tmp_path / "xp"
    folder.mkdir()
    saved = training(
        packages[model],
        {"model": packages[model]["best_state"], "best_state": {"model": state}, "ema": None},
        protocol,
    )
    write_torch_file(folder / "checkpoint.th", saved)
    bundle = load(str(folder))
    check_equal(bundle, load(str(released(model, state))))
    check_equal(load(str(folder / "checkpoint.th")), bundle)
    assert bundle.source_repo is None
    assert bundle.max_duration == 30.0


def test_a_training_checkpoint_generates(packages: dict[str, Any], hub_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_20.th"
    write_torch_file(path, training(packages["mono"], {"model": packages["mono"]["best_state"]}))
    model = MusicGen.get_pretrained(str(path))
    model.set_generation_params(duration=0.1, seed=0)
    assert np.isfinite(np.array(model.generate(["happy rock"]))).all()


PLACES: dict[str, Callable[[State], dict[str, Any]]] = {
    "fsdp_best_state": lambda state: {"fsdp_best_state": {"model": state}},
    "best_state": lambda state: {"best_state": {"model": state}},
    "ema": lambda state: {"ema": {"state": Default({"model": state}), "count": {"model": 3}}},
    "model": lambda state: {"model": state},
}


class Default(dict):
    """Is saved as a `defaultdict(dict)`."""


@pytest.mark.parametrize("first", range(4))
def test_the_state_is_chosen_as_audiocrafts_export_does(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, first: int
) -> None:
    """Each state that is there goes before those behind it; an empty one doesn't count."""
    states = {}
    for index, name in enumerate(PLACES):
        if index >= first:
            states |= PLACES[name](trained(packages["mono"]["best_state"], index))
        elif name != "ema":
            states |= {name: {}}
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, training(packages["mono"], states))
    expected = released(state=trained(packages["mono"]["best_state"], first))
    check_equal(load(str(path)), load(str(expected)))


def test_a_moving_average_is_read_from_its_defaultdict(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    state = trained(packages["mono"]["best_state"])
    path = tmp_path / "checkpoint.th"
    empty = Opcodes(b"ccollections\ndefaultdict\nc__builtin__\ndict\n\x85R")
    write_torch_file(
        path, training(packages["mono"], {"ema": {"state": {"model": state}, "other": empty}, "model": {}})
    )
    check_equal(load(str(path)), load(str(released(state=state))))


@pytest.mark.parametrize("as_file", [False, True])
def test_the_file_of_the_trainer_on_replicate(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, as_file: bool
) -> None:
    state = trained(packages["mono"]["best_state"])
    path = tmp_path / "trained_model.tar"
    write_torch_file(path, {"xp.cfg": config_of(packages["mono"]), "model": state})
    check_equal(load(str(path if as_file else tmp_path)), load(str(released(state=state))))


@pytest.mark.parametrize("name", ["state_dict.bin", "checkpoint.th"])
def test_a_training_checkpoint_may_have_its_configuration_as_text_and_the_name_of_a_release(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, name: str
) -> None:
    state = trained(packages["mono"]["best_state"])
    folder = tmp_path / "exported"
    folder.mkdir()
    saved = {"xp.cfg": packages["mono"]["xp.cfg"], "best_state": {"model": state}, "history": []}
    write_torch_file(folder / name, saved)
    check_equal(load(str(folder)), load(str(released(state=state))))


def test_the_codec_beside_a_training_checkpoint_is_its_codec(
    packages: dict[str, Any], goldens: Path, hub_cache: Path, tmp_path: Path
) -> None:
    write_torch_file(
        tmp_path / "checkpoint.th", training(packages["mono"], {"model": packages["mono"]["best_state"]})
    )
    assert load(str(tmp_path / "checkpoint.th")).codec.sample_rate == 32000
    shutil.copy(goldens / "goldens" / "audiogen" / "compression_state_dict.bin", tmp_path)
    for path in (tmp_path, tmp_path / "checkpoint.th"):
        assert load(str(path)).codec.sample_rate == 16000


def test_a_training_checkpoint_of_a_codec_is_read(
    released: Callable[..., Path], goldens: Path, packages: dict[str, Any], tmp_path: Path
) -> None:
    codec = arrays(read_torch_file(goldens / "goldens" / "audiogen" / "compression_state_dict.bin"))
    folder = released()
    shutil.copy(goldens / "goldens" / "audiogen" / "compression_state_dict.bin", folder)
    before = load(str(folder))
    saved = {"xp.cfg": config_of(codec), "best_state": {"model": codec["best_state"]}, "adv_losses": {}}
    write_torch_file(folder / "compression_state_dict.bin", saved)
    check_equal(load(str(folder)), before)


def test_references_in_a_pickled_configuration_are_to_itself(
    packages: dict[str, Any], hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    path = tmp_path / "checkpoint.th"
    state = packages["mono"]["best_state"]

    def save(dim: str) -> None:
        config = config_of(packages["mono"], width=64, transformer_lm__dim=dim)
        write_torch_file(path, {"xp.cfg": config, "model": state})

    save("${width}")
    assert load(str(path)).lm.config.dim == 64
    save("${oc.env:HF_TOKEN}")
    message = refusal(str(path))
    assert "transformer_lm.dim" in message
    assert "canary" not in message


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_in_the_names_of_a_training_are_taken_out(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, wrapper: str
) -> None:
    state = trained(packages["mono"]["best_state"])
    wrapped = {f"{wrapper}{name}": value for name, value in state.items()}
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, training(packages["mono"], {"best_state": {"model": wrapped}}))
    check_equal(load(str(path)), load(str(released(state=state))))


# A text encoder that was trained too


def t5_state(goldens: Path) -> State:
    weights = mx.load(str(goldens / "goldens" / "t5" / "model.safetensors"))
    return {
        f"{T5_PREFIX}{name}": np.array(value.astype(mx.float32))
        for name, value in weights.items()
        if name == "shared.weight" or name.startswith("encoder.")
    }


@pytest.fixture
def cache_without_t5_weights(goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    add_to_hub_cache(cache, "facebook/encodec_32khz", goldens / "goldens" / "encodec_32khz")
    snapshot = add_to_hub_cache(cache, "t5-base", goldens / "goldens" / "t5")
    (snapshot / "model.safetensors").unlink()


@pytest.mark.parametrize("finetune", [True, False])
def test_a_text_encoder_that_was_trained_too_is_the_files(
    cache_without_t5_weights: None, packages: dict[str, Any], goldens: Path, tmp_path: Path, finetune: bool
) -> None:
    t5 = trained(t5_state(goldens))
    config = config_of(packages["mono"], conditioners__description__t5__finetune=finetune)
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, {"xp.cfg": config, "model": {**packages["mono"]["best_state"], **t5}})
    found = weights_of(load(str(path)))
    np.testing.assert_array_equal(found["t5.embed.weight"], t5[f"{T5_PREFIX}shared.weight"])


def test_a_trained_text_encoder_must_be_whole(
    packages: dict[str, Any], goldens: Path, hub_cache: Path, tmp_path: Path
) -> None:
    t5 = t5_state(goldens)
    del t5[f"{T5_PREFIX}encoder.final_layer_norm.weight"]
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, training(packages["mono"], {"model": {**packages["mono"]["best_state"], **t5}}))
    assert "norm.weight is missing" in refusal(str(path))


# Files that can't be a model by themselves


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state, "is a bare state dict, without the configuration"),
        (lambda state: {"state_dict": state, "epoch": 3}, "whose tensors are in 'state_dict', without"),
        (lambda state: {"model": state}, "whose tensors are in 'model', without the configuration"),
        (lambda state: {"best_state": {"model": state}}, "whose tensors are in 'best_state.model', without"),
        (lambda state: {"xp.cfg": 3, "model": state}, "without the configuration ('xp.cfg')"),
        (
            lambda state: {"xp.cfg": Opcodes(b"cx\ny\n"), "model": state},
            "without the configuration ('xp.cfg')",
        ),
    ],
)
@pytest.mark.parametrize("name", ["lm_final.pt", "checkpoint.th"])
def test_a_file_without_a_configuration_needs_its_base(
    packages: dict[str, Any], tmp_path: Path, change: Callable[[State], Any], what: str, name: str
) -> None:
    path = tmp_path / name
    write_torch_file(path, change(packages["mono"]["best_state"]))
    message = refusal(str(path))
    assert message.startswith(f"{path} {what.partition(' ')[0]}" if what.startswith("is") else str(path))
    assert what in message
    assert "give the model that it was trained from: -m BASE --weights FILE" in message


def test_a_training_without_weights_is_named(packages: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, training(packages["mono"], {"best_state": {}, "model": {}}))
    assert "is not an audiocraft release file" in refusal(str(path))


@pytest.mark.parametrize("key", ["xp.cfg", "model", "best_state"])
def test_unknown_objects_are_refused_where_the_model_needs_something(
    packages: dict[str, Any], tmp_path: Path, key: str
) -> None:
    path = tmp_path / "checkpoint.th"
    saved = training(packages["mono"], {"model": packages["mono"]["best_state"]})
    write_torch_file(path, {**saved, key: {"a": Pickled(argparse.Namespace(b=1))}})
    assert "asks to run argparse.Namespace" in refusal(str(path))


def test_code_anywhere_in_a_training_is_refused_and_not_run(packages: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    command = f"touch {marker}".encode()
    code = Opcodes(b"cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R")
    path = tmp_path / "checkpoint.th"
    saved = training(packages["mono"], {"model": packages["mono"]["best_state"]})
    write_torch_file(path, {**saved, "history": [code]})
    assert "asks to run posix.system" in refusal(str(path))
    assert not marker.exists()


def test_a_configuration_of_excessive_size_is_refused(packages: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.th"
    config = config_of(packages["mono"], note="x" * 2**17)
    write_torch_file(path, {"xp.cfg": config, "model": packages["mono"]["best_state"]})
    assert "xp.cfg is not one that audiocraft writes" in refusal(str(path))


def test_a_file_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.th").touch()
    assert "'v1'" in refusal(str(tmp_path / "checkpoint.th"), "v1")


def test_safetensors_in_place_of_a_model_need_their_base(tmp_path: Path) -> None:
    (tmp_path / "tuned.safetensors").touch()
    assert "-m BASE --weights FILE" in refusal(str(tmp_path / "tuned.safetensors"))


def test_a_folder_with_other_files_of_a_training_says_how_to_give_them(tmp_path: Path) -> None:
    (tmp_path / "lm_final.pt").touch()
    message = refusal(str(tmp_path))
    assert "its lm_final.pt may be" in message
    assert "-m FILE" in message
    assert "-m BASE --weights FILE" in message


# Weights in place of those of the model that they were trained from


def transformers_names(tensors: dict[str, mx.array], lm_only: bool) -> dict[str, mx.array]:
    if not lm_only:
        return tensors
    return {
        name.removeprefix("decoder."): value for name, value in tensors.items() if name.startswith("decoder.")
    }


SHAPES: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "lightning": lambda state: {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "callbacks": Pickled([argparse.Namespace(a=1)]),
        "epoch": 3,
    },
    "replicate": lambda state: {"xp.cfg": Pickled(OmegaConf.create({"a": 1})), "model": state},
    "checkpoint": lambda state: {"best_state": {"model": state}, "model": {}, "optimizer": {}},
    "release": lambda state: {"xp.cfg": "a: 1", "best_state": state},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_in_every_shape_take_the_place_of_the_base_models(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, shape: str
) -> None:
    state = trained(packages["mono"]["best_state"])
    path = tmp_path / "trained.pt"
    write_torch_file(path, SHAPES[shape](state))
    bundle = load(str(released()), weights=path)
    check_equal(bundle, load(str(released(state=state))))
    assert bundle.weights_file == "trained.pt"


@pytest.mark.parametrize("base", ["transformers", "converted"])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_by_audiocrafts_names_fit_a_base_in_every_format(
    released: Callable[..., Path],
    transformers_folder: Callable[[str], Path],
    packages: dict[str, Any],
    tmp_path: Path,
    base: str,
    legacy: bool,
) -> None:
    state = trained(packages["mono"]["best_state"])
    write_torch_file(tmp_path / "trained.pt", state, legacy)
    folder = transformers_folder("mono")
    if base == "converted":
        folder = tmp_path / "converted"
        mlx_format.save_model(load(str(transformers_folder("mono")), lazy=True), folder, mx.float32)
    bundle = load(str(folder), weights=tmp_path / "trained.pt")
    found, expected = weights_of(bundle), weights_of(load(str(released(state=state))))
    for name, value in expected.items():
        if name.startswith(("lm.", "proj.")):
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("lm_only", [False, True])
@pytest.mark.parametrize("model", ["mono", "melody"])
def test_weights_by_transformers_names_fit_a_base_in_audiocrafts_format(
    released: Callable[..., Path],
    transformers_folder: Callable[[str], Path],
    tmp_path: Path,
    model: str,
    lm_only: bool,
) -> None:
    base = transformers_folder(model)
    tensors = {
        name: value.astype(mx.float32) * 1.5
        for name, value in mx.load(str(base / "model.safetensors")).items()
    }
    path = tmp_path / "trained.safetensors"
    mx.save_safetensors(str(path), transformers_names(tensors, lm_only))
    before = weights_of(load(str(released(model))))
    found = weights_of(load(str(released(model)), weights=path))
    for name, value in before.items():
        part = name.partition(".")[0]
        changed = part == "lm" or (not lm_only and part in ("proj", "audio", "t5"))
        assert np.array_equal(found[name], value) != (changed and bool(np.any(value))), name


@pytest.mark.parametrize("model", ["melody", "style"])
def test_weights_of_a_condition_on_audio_are_taken_too(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, model: str
) -> None:
    state = trained(packages[model]["best_state"])
    write_torch_file(tmp_path / "trained.pt", state)
    bundle = load(str(released(model)), weights=tmp_path / "trained.pt")
    check_equal(bundle, load(str(released(model, state))))


def test_a_trained_text_encoder_takes_the_place_of_the_bases(
    released: Callable[..., Path], packages: dict[str, Any], goldens: Path, tmp_path: Path
) -> None:
    t5 = trained(t5_state(goldens))
    write_torch_file(tmp_path / "trained.pt", {**packages["mono"]["best_state"], **t5})
    found = weights_of(load(str(released()), weights=tmp_path / "trained.pt"))
    np.testing.assert_array_equal(found["t5.embed.weight"], t5[f"{T5_PREFIX}shared.weight"])


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_weights_may_be_of_any_precision(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path, dtype: str
) -> None:
    kind = getattr(mx, dtype)
    state = {name: mx.array(value).astype(kind) for name, value in packages["mono"]["best_state"].items()}
    saved = {
        name: value if kind == mx.bfloat16 else np.array(value)  # NumPy has no bfloat16
        for name, value in state.items()
    }
    write_torch_file(tmp_path / "trained.pt", saved)
    found = weights_of(load(str(released()), weights=tmp_path / "trained.pt"))
    np.testing.assert_array_equal(
        found["lm.out_norm.weight"], np.array(state["out_norm.weight"].astype(mx.float32))
    )


def test_weights_without_the_projections_keep_the_bases(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    state = trained(packages["mono"]["best_state"])
    lm = {name: value for name, value in state.items() if not name.startswith("condition_provider.")}
    write_torch_file(tmp_path / "trained.pt", lm)
    before, found = (
        weights_of(load(str(released()))),
        weights_of(load(str(released()), weights=tmp_path / "trained.pt")),
    )
    np.testing.assert_array_equal(found["proj.weight"], before["proj.weight"])
    assert not np.array_equal(found["lm.out_norm.weight"], before["lm.out_norm.weight"])


def test_weights_are_quantized_when_they_are_in_their_place(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    state = trained(packages["mono"]["best_state"])
    write_torch_file(tmp_path / "trained.pt", state)
    bundle = load(str(released()), quantize_to=8, weights=tmp_path / "trained.pt")
    check_equal(bundle, load(str(released(state=state)), quantize_to=8))


def test_a_quantized_base_is_refused_with_what_to_do(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "quantized"
    assert convert([str(released()), "-o", str(folder), "-q", "8"]) == 0
    write_torch_file(tmp_path / "trained.pt", packages["mono"]["best_state"])
    message = refusal(str(folder), weights=tmp_path / "trained.pt")
    assert message.startswith(f"{folder} is quantized")
    assert "give the model that it was quantized from" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("out_norm.bias"), "out_norm.bias is missing"),
        (lambda s: s.update({"extra.weight": np.zeros(3, np.float32)}), "extra.weight is unexpected"),
        (lambda s: s.update({"out_norm.weight": np.zeros(63, np.float32)}), "out_norm.weight has shape [63]"),
        (lambda s: s.update({"out_norm.weight": np.zeros(64, np.int32)}), "out_norm.weight is of type int32"),
        (lambda s: s.update({"out_norm.weight": 3}), "'out_norm.weight' in its state dict is not a tensor"),
        (
            lambda s: s.pop("condition_provider.conditioners.description.output_proj.bias"),
            "bias is missing",
        ),
        (
            lambda s: s.update({f"{T5_PREFIX}shared.weight": np.zeros((3, 3), np.float32)}),
            "is missing",
        ),
        (
            lambda s: s.update(
                {"condition_provider.conditioners.self_wav.output_proj.bias": np.zeros(3, np.float32)}
            ),
            "has weights of a condition on audio",
        ),
        (
            lambda s: s.update({"_orig_mod.out_norm.bias": np.zeros(64, np.float32)}),
            "has the tensor out_norm.bias twice",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    released: Callable[..., Path],
    packages: dict[str, Any],
    tmp_path: Path,
    change: Callable[[State], Any],
    expected: str,
) -> None:
    state = {**packages["mono"]["best_state"]}
    change(state)
    path = tmp_path / "trained.pt"
    write_torch_file(path, state)
    message = refusal(str(released()), weights=path)
    assert message.startswith(str(path))
    assert expected in message


def test_weights_of_another_model_name_both(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "trained.pt"
    write_torch_file(path, packages["melody"]["best_state"])
    message = refusal(str(released()), weights=path)
    assert message.startswith(str(path))
    assert f"the base must be the model that it was trained from, not {released()}" in message


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"a": 1}, "has no weights of a model"),
        ([1], "has no weights of a model"),
        ({"model": {"encoder.weight": np.zeros(3, np.float32)}}, "but encoder.weight"),
        (
            {"base_model.model.linear1.lora_A.weight": np.zeros((2, 2), np.float32)},
            "is a LoRA adapter",
        ),
        (
            {
                "decoder.lm_heads.0.weight": np.zeros((2, 2), np.float32),
                "discriminator.weight": np.zeros(2, np.float32),
            },
            "has discriminator.weight, which belongs to no part of a model",
        ),
    ],
)
def test_a_file_that_has_no_weights_of_a_model_is_named(
    released: Callable[..., Path], tmp_path: Path, saved: Any, expected: str
) -> None:
    path = tmp_path / "trained.pt"
    write_torch_file(path, saved)
    message = refusal(str(released()), weights=path)
    assert message.startswith(str(path))
    assert expected in message


def test_what_we_have_written_is_named_with_the_option_that_takes_it(
    released: Callable[..., Path], tmp_path: Path
) -> None:
    base = str(released())
    ours = tmp_path / "ours"
    mlx_format.save_model(load(base, lazy=True), ours, mx.float32)
    message = refusal(base, weights=ours / "lm.safetensors")
    assert message.endswith(f"belongs to a model of musicgen-mlx; give its folder, {ours}, to -m")
    path = tmp_path / "adapters.safetensors"
    mx.save_safetensors(str(path), {"lm.embed.weight": mx.zeros(2)})
    message = refusal(base, weights=path)
    assert message.endswith(f"a checkpoint of musicgen-mlx-train; give its folder, {tmp_path}, to --lora")


def test_an_adapter_in_safetensors_is_named(released: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    mx.save_safetensors(str(path), {"base_model.model.decoder.fc1.lora_A.weight": mx.zeros((2, 2))})
    assert "is a LoRA adapter" in refusal(str(released()), weights=path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".", "is a folder; give the file"),
        ("nothing.pt", "there is no such file of weights"),
        ("x" * 300, "x"),
    ],
)
def test_a_path_that_is_no_file_is_named(
    released: Callable[..., Path], tmp_path: Path, name: str, expected: str
) -> None:
    assert expected in refusal(str(released()), weights=tmp_path / name)


def test_the_weights_file_is_looked_at_before_a_model_is_downloaded(tmp_path: Path) -> None:
    assert "there is no such file" in refusal("nobody/model", weights=tmp_path / "nothing.pt")


# Commands


def test_python_takes_weights(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    state = trained(packages["mono"]["best_state"])
    write_torch_file(tmp_path / "trained.pt", state)
    models = [
        MusicGen.get_pretrained(str(released()), weights=str(tmp_path / "trained.pt")),
        MusicGen.get_pretrained(str(released(state=state))),
        MusicGen.get_pretrained(str(released())),
    ]
    outputs = []
    for model in models:
        model.set_generation_params(duration=0.2, seed=0)
        outputs.append(np.array(model.generate(["happy rock"])))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_a_converted_model_names_the_weights_file(
    released: Callable[..., Path], packages: dict[str, Any], tmp_path: Path
) -> None:
    state = trained(packages["mono"]["best_state"])
    write_torch_file(tmp_path / "my_trained.pt", state)
    folder, again = tmp_path / "converted", tmp_path / "again"
    words = [str(released()), "--weights", str(tmp_path / "my_trained.pt"), "--dtype", "float32"]
    assert convert([*words, "-o", str(folder)]) == 0
    check_equal(load(str(folder)), load(str(released(state=state))))
    assert convert([str(folder), "-q", "8", "-o", str(again)]) == 0
    assert quantization_of(load(str(again)).lm) is not None
    for place in (folder, again):
        assert json.loads((place / "config.json").read_text())["weights_file"] == "my_trained.pt"
        card = (place / "README.md").read_text()
        assert "those of the file `my_trained.pt`" in card
        assert str(tmp_path) not in card


def test_the_card_of_weights_that_were_trained_from_a_release_keeps_its_licence() -> None:
    from audiocraft_mlx.checkpoints.model_card import model_card

    card = model_card("mine", "facebook/musicgen-small", None, mx.float16, "trained.pt")
    assert "base_model: facebook/musicgen-small" in card
    assert "license: cc-by-nc-4.0" in card
    assert "`trained.pt`" in card
    assert "license" not in model_card("mine", "demo", None, mx.float16, "trained.pt").split("---")[1]
