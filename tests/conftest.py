"""What all tests share: the goldens, and a Hub cache that has what the goldens' checkpoints name."""

from __future__ import annotations

import atexit
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

# huggingface_hub reads these when it is imported. Tests never look at the user's cache, nor at the network.
_HF_HOME = Path(tempfile.mkdtemp(prefix="musicgen-mlx-hf-"))
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(HF_HOME=str(_HF_HOME), HF_HUB_OFFLINE="1")
# Small products: a BLAS' threads would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_name, None)


@pytest.fixture
def eighth_merged_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the steps that several sequences take together the eighth raises `MemoryError`."""
    from audiocraft_mlx.decoding.continuous_batch import MergedSteps

    take, taken = MergedSteps.take, []

    def failing(merged: MergedSteps, steps: list[object]) -> None:
        taken.append(steps)
        if len(taken) == 8:
            raise MemoryError("no more")
        take(merged, steps)

    monkeypatch.setattr(MergedSteps, "take", failing)


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pack_goldens.py` packs: `goldens/`, `goldens_hf/` and so on."""
    given = os.environ.get("MUSICGEN_MLX_GOLDENS")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("goldens")
    for archive in ("goldens.tar.xz", "goldens_control.tar.xz"):
        path = Path(__file__).with_name(archive)
        with lzma.open(path) as stream, tarfile.open(fileobj=stream) as tar:
            tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def hub_cache(goldens: Path) -> Path:
    """A Hub cache with the text encoders, the codec and MERT, which the release files name."""
    cache = _HF_HOME / "hub"
    for text_encoder in ("t5-base", "t5-large"):
        add_to_hub_cache(cache, text_encoder, goldens / "goldens" / "t5")
    add_to_hub_cache(cache, "m-a-p/MERT-v1-95M", goldens / "goldens" / "mert")
    add_to_hub_cache(cache, "facebook/encodec_32khz", goldens / "goldens" / "encodec_32khz")
    return cache


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """How models are loaded and used in a module: in this machine's way, then in a GPU's, but in float32."""
    if request.param == "cpu":
        yield request.param
        return
    # Here, since they must not be imported before the variables above are set.
    from audiocraft_mlx.checkpoints import bundle, load
    from audiocraft_mlx.ops.device import gpu_branch

    with gpu_branch(), pytest.MonkeyPatch.context() as patch:
        for module in (bundle, load):
            patch.setattr(module, "lm_dtype", lambda: mx.float32)
        yield request.param


@pytest.fixture(scope="session")
def separator(goldens: Path) -> Iterator[None]:
    """The golden's small HTDemucs separates sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSICGEN_MLX_DEMUCS", str(goldens / "goldens" / "htdemucs" / "955717e8.safetensors"))
        yield


def add_to_hub_cache(cache: Path, repository: str, files: Path) -> Path:
    """Lay `files` out as if they had been downloaded; the folder that they are in."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    if not snapshot.exists():
        shutil.copytree(files, snapshot)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture(scope="session")
def transformers_folder(goldens: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function: the folder of a model in transformers' format, with its tokenizer, as it is published."""
    made: dict[str, Path] = {}

    def folder(model: str) -> Path:
        if model not in made:
            made[model] = tmp_path_factory.mktemp("transformers") / model
            shutil.copytree(goldens / "goldens_hf" / model, made[model])
            (made[model] / "tokenizer.json").symlink_to(goldens / "goldens" / "t5" / "tokenizer.json")
        return made[model]

    return folder


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, codes as int32."""
    with np.load(path) as file:
        return {
            name: value.astype(np.int32) if value.dtype.kind == "i" else value for name, value in file.items()
        }
