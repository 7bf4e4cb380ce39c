"""`read_torch_file` reads files of `torch.save` as `torch.load` does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
MLX_DTYPES = {
    torch.float64: mx.float32,  # GPUs have no float64
    torch.float32: mx.float32,
    torch.float16: mx.float16,
    torch.bfloat16: mx.bfloat16,
    torch.int64: mx.int64,
    torch.int32: mx.int32,
    torch.int16: mx.int16,
    torch.int8: mx.int8,
    torch.uint8: mx.uint8,
    torch.bool: mx.bool_,
}


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """A function that saves an object with torch, in the zip or legacy form, and returns the file."""

    def save(saved: Any) -> Path:
        path = tmp_path / "saved.bin"
        torch.save(saved, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save


def ramp(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Distinct values, with negative ones where the dtype has them."""
    torch.manual_seed(0)
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max, shape, dtype=dtype)
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def check(read: Any, loaded: Any) -> None:
    """Compare our object with torch's: bits, types and keys must be equal."""
    match loaded:
        case torch.Tensor():
            assert isinstance(read, LazyTensor)
            array = read.load()
            assert array.dtype == MLX_DTYPES[loaded.dtype]
            assert array.shape == tuple(loaded.shape)
            if loaded.dtype == torch.bfloat16:
                array, loaded = array.view(mx.uint16), loaded.detach().contiguous().view(torch.uint16)
            elif loaded.dtype == torch.float64:
                loaded = loaded.float()
            np.testing.assert_array_equal(np.array(array), loaded.detach().numpy())
        case dict():
            assert isinstance(read, dict)
            assert list(read) == list(loaded)
            for key, value in loaded.items():
                check(read[key], value)
        case list() | tuple():
            assert type(read) is (tuple if isinstance(loaded, tuple) else list)
            assert len(read) == len(loaded)
            for item, value in zip(read, loaded, strict=True):
                check(item, value)
        case _:
            assert (type(read), read) == (type(loaded), loaded)


def check_equal(path: Path) -> None:
    check(read_torch_file(path), torch.load(path, weights_only=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(save: Callable[[Any], Path], dtype: torch.dtype) -> None:
    check_equal(save(ramp(dtype, 7, 5)))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool], ids=str
)
def test_views_of_every_kind(save: Callable[[Any], Path], dtype: torch.dtype) -> None:
    base = ramp(dtype, 6, 8, 4)
    check_equal(
        save(
            {
                "contiguous": base,
                "transposed": base.transpose(0, 2),
                "permuted": base.permute(1, 2, 0),
                "row": base[3],
                "column": base[:, 2],
                "sliced": base[1:4, 2:7:2, 1],
                "steps": base[::3, ::2, ::4],
                "diagonal": torch.diagonal(base, dim1=0, dim2=1),
                "expanded": base[:1].expand(6, 8, 4),
                "element": base[5, 7, 3],
                "empty slice": base[2:2],
                "flat": base.reshape(-1)[17:],
            }
        )
    )


def test_several_storages_and_tensors_that_share_one(save: Callable[[Any], Path]) -> None:
    shared = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    other = torch.arange(10)
    check_equal(save([shared, other, shared.T, {"again": shared, "part": other[3:]}, shared[0]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scalars_and_empty_tensors(save: Callable[[Any], Path], dtype: torch.dtype) -> None:
    check_equal(
        save(
            {
                "scalar": ramp(dtype),
                "single": ramp(dtype, 1),
                "empty": torch.empty(0, dtype=dtype),
                "empty rows": torch.empty(0, 3, dtype=dtype),
                "empty columns": torch.empty(3, 0, 2, dtype=dtype),
            }
        )
    )


def test_parameters_and_buffers(save: Callable[[Any], Path]) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5)),
        torch.nn.BatchNorm1d(4),
        torch.nn.LSTM(4, 4, num_layers=2),
    )
    check_equal(
        save(
            {
                "state": module.state_dict(),
                "parameters": dict(module.named_parameters()),
                "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
                "buffer": torch.nn.Buffer(torch.randn(2, 2)),
            }
        )
    )


def test_a_release_package(save: Callable[[Any], Path]) -> None:
    check_equal(
        save(
            {
                "best_state": OrderedDict(
                    (f"layer.{i}.weight", ramp(torch.float16, 3, 4)) for i in range(300)
                ),
                "xp.cfg": "device: cpu\nname: 'ünïcode ♫'\n",
                "version": "1.4.0a2",
                "exported": True,
                "history": [],
                "nested": {"none": None, "numbers": [0, -1, 255, 256, 65536, 2**40, -(2**70), 0.5, -1e300]},
                "tuples": ((), (1,), (1, "two"), (1, 2, 3), (1, 2, 3, 4)),
                "rate": Fraction(44100, 32000),
                "size": tuple(torch.Size([2, 3])),
                7: "an integer key",
            }
        )
    )


def test_other_pickle_protocols(tmp_path: Path) -> None:
    for protocol in (2, 3):
        path = tmp_path / f"{protocol}.bin"
        torch.save({"a": ramp(torch.float16, 3, 2)}, path, pickle_protocol=protocol)
        check_equal(path)
