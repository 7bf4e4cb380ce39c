"""Files that PyTorch saves after a training are read as `torch.load` reads them, and are the same model."""

from __future__ import annotations

import shutil
import socket
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from transformers import MusicgenForConditionalGeneration

from audiocraft_mlx import CheckpointError
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file

PROTOCOLS = [2, 4]


class Named(torch.nn.Module):
    """A module with these parameters, whose state dict has their names."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            module: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(value))


@pytest.fixture(scope="module")
def package(goldens: Path) -> dict[str, Any]:
    path = goldens / "goldens" / "mono" / "state_dict.bin"
    loaded: dict[str, Any] = torch.load(path, weights_only=False)
    return loaded


@pytest.fixture
def network(package: dict[str, Any]) -> Named:
    """The language model and its conditioners, with weights that a training has changed."""
    torch.manual_seed(0)
    return Named(
        {
            name: value.float() + 0.1 * torch.randn(value.shape)
            for name, value in package["best_state"].items()
        }
    )


@pytest.fixture
def expected(
    goldens: Path, hub_cache: Path, package: dict[str, Any], network: Named, tmp_path: Path
) -> dict[str, np.ndarray]:
    """The weights of the release that has this network's."""
    folder = Path(shutil.copytree(goldens / "goldens" / "mono", tmp_path / "expected"))
    torch.save({**package, "best_state": network.state_dict()}, folder / "state_dict.bin")
    return weights_of(load(str(folder)))


def weights_of(bundle: ModelBundle) -> dict[str, np.ndarray]:
    modules = {"lm": bundle.lm, "t5": bundle.text_conditioner.t5, "proj": bundle.text_conditioner.output_proj}
    return {
        f"{part}.{name}": np.array(value)
        for part, module in modules.items()
        for name, value in dict(tree_flatten(module.parameters())).items()
    }


def check_equal(bundle: ModelBundle, expected: dict[str, np.ndarray]) -> None:
    found = weights_of(bundle)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def training(package: dict[str, Any], network: Named) -> dict[str, Any]:
    """What audiocraft's solver saves, after one step of AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    loss = sum(parameter.square().sum() for parameter in network.parameters())
    loss.backward()
    optimizer.step()
    scheduler.step()
    config = OmegaConf.create(package["xp.cfg"])
    assert isinstance(config, DictConfig)
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    average: dict[str, Any] = defaultdict(dict)
    average["model"] = zeros
    return {
        "history": [
            {"train": {"ce": np.float64(1.5), "grad_norm": float("nan")}, "valid": {"ppl": torch.tensor(4.0)}}
        ],
        "xp.cfg": config,
        "xp.sig": "01234567",
        "best_state": {"model": network.state_dict()},
        "fsdp_best_state": {},
        "ema": {"state": average, "count": {"model": 3}},
        "model": zeros,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("legacy", [False, True])
def test_audiocrafts_training_checkpoint(
    package: dict[str, Any],
    network: Named,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    protocol: int,
    legacy: bool,
) -> None:
    path = tmp_path / "checkpoint.th"
    saved = training(package, network)
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    check_equal(load(str(path)), expected)
    check_equal(load(str(tmp_path)), expected)
    read = read_torch_file(path, needed=("xp.cfg",))
    assert isinstance(read, dict)
    assert read.keys() == saved.keys()
    assert read["xp.cfg"] == OmegaConf.to_container(saved["xp.cfg"])
    moment = read["optimizer"]["state"][0]["exp_avg"]
    assert isinstance(moment, LazyTensor)
    np.testing.assert_array_equal(
        np.array(moment.load()), saved["optimizer"]["state"][0]["exp_avg"].detach().numpy()
    )


def test_half_precision_best_states(
    package: dict[str, Any], network: Named, hub_cache: Path, tmp_path: Path
) -> None:
    """As under autocast."""
    saved = training(package, network)
    state = {name: value.half() for name, value in saved["best_state"]["model"].items()}
    torch.save({**saved, "best_state": {"model": state}}, tmp_path / "checkpoint.th")
    found = weights_of(load(str(tmp_path)))
    np.testing.assert_array_equal(found["lm.out_norm.weight"], state["out_norm.weight"].float().numpy())


def test_the_file_of_replicates_trainer(
    package: dict[str, Any], network: Named, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    saved = {"xp.cfg": OmegaConf.create(package["xp.cfg"]), "model": network.state_dict()}
    torch.save(saved, tmp_path / "trained_model.tar")
    check_equal(load(str(tmp_path / "trained_model.tar")), expected)


def shard(rank: int, port: int, path: Path, state: dict[str, torch.Tensor], config: DictConfig) -> None:
    """What a process of two does at the end of a training with FSDP; the first one saves its state."""
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    network = FullyShardedDataParallel(
        torch.nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=True
    )
    with FullyShardedDataParallel.state_dict_type(network, StateDictType.LOCAL_STATE_DICT):
        part = network.state_dict()
    if rank == 0:
        full = {"model": state}
        saved = {"best_state": {"model": part}, "fsdp_best_state": full, "model": part, "xp.cfg": config}
        torch.save(saved, path)
        torch.save({**saved, "fsdp_best_state": {}}, path.with_name("parts.th"))
    distributed.barrier()
    distributed.destroy_process_group()


def test_the_first_file_of_a_training_with_fsdp_has_the_whole_best_state(
    package: dict[str, Any], network: Named, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "checkpoint.th"
    state = {name: value.clone() for name, value in network.state_dict().items()}
    config = OmegaConf.create(package["xp.cfg"])
    torch.multiprocessing.spawn(shard, (port, path, state, config), nprocs=2)
    check_equal(load(str(path)), expected)
    with pytest.raises(CheckpointError, match="for its 'best_state'"):
        load(str(tmp_path / "parts.th"))


WRAPPED: dict[str, Callable[[torch.nn.Module], Any]] = {
    "bare": lambda network: network.state_dict(),
    "compiled": lambda network: torch.compile(network).state_dict(),
    "parallel": lambda network: torch.nn.DataParallel(network).state_dict(),
    "compiled and parallel": lambda network: torch.nn.DataParallel(torch.compile(network)).state_dict(),
    "lightning": lambda network: {
        "state_dict": {f"model.{name}": value for name, value in network.state_dict().items()},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0), "dirpath": Path("/tmp")}},
        "hyper_parameters": OmegaConf.create({"lr": 1e-4}),
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_weights_as_trainings_leave_them(
    goldens: Path, network: Named, expected: dict[str, np.ndarray], tmp_path: Path, kind: str, protocol: int
) -> None:
    path = tmp_path / "lm_final.pt"
    torch.save(WRAPPED[kind](network), path, pickle_protocol=protocol)
    check_equal(load(str(goldens / "goldens" / "mono"), weights=path), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["model", "decoder"])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_weights_of_transformers(
    goldens: Path,
    hub_cache: Path,
    transformers_folder: Callable[[str], Path],
    tmp_path: Path,
    dtype: torch.dtype,
    part: str,
    kind: str,
) -> None:
    folder = tmp_path / "tuned"
    theirs = MusicgenForConditionalGeneration.from_pretrained(transformers_folder("mono"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = theirs.to(dtype)
    theirs.save_pretrained(folder)
    shutil.copy(transformers_folder("mono") / "tokenizer.json", folder)
    module = theirs if part == "model" else theirs.decoder
    path = tmp_path / f"tuned.{'pt' if kind == 'torch' else 'safetensors'}"
    if kind == "torch":
        torch.save(module.state_dict(), path)
    else:
        save_file({name: value.clone() for name, value in module.state_dict().items()}, path)
    found = weights_of(load(str(goldens / "goldens" / "mono"), weights=path))
    whole = weights_of(load(str(folder)))
    for name, value in whole.items():
        if part == "model" or name.startswith("lm."):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert mx.default_device() == mx.cpu
