"""Reading PyTorch's files: their values are exact, and no code in them is run."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from omegaconf import (
    BooleanNode,
    DictConfig,
    FloatNode,
    IntegerNode,
    OmegaConf,
    StringNode,
    UnionNode,
)

from audiocraft_mlx.checkpoints.inert_objects import GlobalRef
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
from audiocraft_mlx.errors import CheckpointError

from . import fuzz_torch_pickle
from .torch_files import Opcodes, Parameter, pickled, write_torch_file, write_torch_zip

GRID = np.arange(30, dtype=np.float32).reshape(6, 5)
PROTOCOL = b"\x80\x02"
LEGACY_HEADER = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": True})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state_dict.bin"


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def reread(request: pytest.FixtureRequest, path: Path) -> Callable[[object], object]:
    """Writes an object in one of the two forms and reads it again."""

    def write_and_read(obj: object) -> object:
        write_torch_file(path, obj, legacy=request.param)
        return read_torch_file(path)

    return write_and_read


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def tensor_code(
    *,
    storage: bytes = b"ctorch\nFloatStorage\n",
    key: str = "0",
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    """The opcodes of one tensor, by default a valid one: a vector of 4 float32."""

    def body(obj: object) -> bytes:
        return pickled(obj)[2:-1]

    reference = b"(" + text("storage") + storage + text(key) + text("cpu") + body(count) + b"tQ"
    numbers = body(offset) + body(shape) + body(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + numbers + b"\x89NtR"


def read_code(path: Path, code: bytes) -> object:
    """The object read from a zip file of these opcodes, with 16 bytes as the storage "0"."""
    write_torch_zip(path, PROTOCOL + code + b".", {"0": struct.pack("<4f", 1, 2, 3, 4)})
    return read_torch_file(path)


def refusal(path: Path, code: bytes) -> str:
    """The error message for a zip file of this pickle; it must be refused in a legacy file too."""
    with pytest.raises(CheckpointError) as in_zip:
        read_code(path, code)
    path.write_bytes(
        LEGACY_HEADER + PROTOCOL + code + b"." + pickled(["0"]) + struct.pack("<q", 4) + bytes(16)
    )
    with pytest.raises(CheckpointError):
        read_torch_file(path)
    message = str(in_zip.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# Supported files


def test_plain_values_are_unchanged(reread: Callable) -> None:
    values = [
        None,
        True,
        False,
        0,
        255,
        256,
        -1,
        2**31 - 1,
        2**70,
        -(2**70),
        1.5,
        "",
        "é",
        (),
        (1,),
        (1, (2, 3)),
        [],
    ]
    nest = {"values": values, "fraction": Fraction(39, 5), 7: {"deep": [{"er": 1}]}}
    assert reread(nest) == nest


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_each_element_type_is_loaded_exactly(reread: Callable, dtype: str) -> None:
    array = np.array([[0, 1, 2], [100, 101, 127]]).astype(dtype)
    tensor = reread({"x": array})["x"]
    assert tensor.shape == (2, 3)
    assert tensor.dtype == tensor.load().dtype
    loaded = np.array(tensor.load())
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


def test_large_integers_keep_all_their_bits(reread: Callable) -> None:
    array = np.array([2**62 + 1, -(2**62) - 1])
    assert reread(array).load().tolist() == array.tolist()


def test_bfloat16_is_loaded_exactly(reread: Callable) -> None:
    array = mx.array([1.0, -2.5, 3e38, 1e-38]).astype(mx.bfloat16)
    tensor = reread(array)
    assert tensor.load().dtype == tensor.dtype == mx.bfloat16
    assert mx.array_equal(tensor.load(), array)


def test_float64_becomes_float32(reread: Callable) -> None:
    tensor = reread(np.array([0.1, 1e300]))
    assert tensor.dtype == tensor.load().dtype == mx.float32
    assert tensor.load().tolist() == [float(np.float32(0.1)), float("inf")]


@pytest.mark.parametrize(
    "view",
    [GRID.T, GRID[1:4], GRID[:, 3], GRID[1::2, ::3], GRID.reshape(2, 3, 5).transpose(2, 0, 1), GRID[5, 4]],
    ids=["transposed", "rows", "column", "steps", "permuted", "last element"],
)
def test_views_are_loaded_with_their_strides(reread: Callable, view: np.ndarray) -> None:
    tensor = reread(np.asarray(view))
    assert tensor.shape == view.shape
    np.testing.assert_array_equal(np.array(tensor.load()), view)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_keep_their_shape(reread: Callable, shape: tuple[int, ...]) -> None:
    tensor = reread(np.full(shape, 3.5, np.float16))
    assert tensor.shape == tensor.load().shape == shape
    np.testing.assert_array_equal(np.array(tensor.load()), np.full(shape, 3.5, np.float16))


def test_an_empty_tensor_of_excessive_shape_is_empty(path: Path) -> None:
    shape = (0, 2**31 - 1, 2**31 - 1, 2**31 - 1)
    assert read_code(path, tensor_code(shape=shape, strides=(1, 1, 1, 1))).load().size == 0


def test_tensors_may_share_a_storage(reread: Callable, path: Path) -> None:
    nest = reread({"whole": GRID, "part": GRID[2:], "same": GRID, "other": GRID + 1})
    assert nest["part"].offset == nest["whole"].offset + 2 * 5 * 4
    assert nest["same"] == nest["whole"]
    assert nest["other"].load()[0, 0].item() == 1


def test_parameters_and_ordered_dicts_are_tensors_and_dicts(reread: Callable) -> None:
    nest = reread(OrderedDict(weight=Parameter(GRID)))
    assert type(nest) is dict
    np.testing.assert_array_equal(np.array(nest["weight"].load()), GRID)


def test_many_entries_keep_their_order_and_names(reread: Callable) -> None:
    nest = {f"layers.{i}.weight": np.full(2, i, np.int32) for i in range(300)}
    read = reread(nest)
    assert list(read) == list(nest)
    assert all(read[name].load().tolist() == array.tolist() for name, array in nest.items())


def test_a_tensor_with_attributes_is_that_tensor(path: Path) -> None:
    rebuild, arguments = tensor_code().split(b"(", 1)
    code = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + rebuild + b"ctorch\nTensor\n(" + arguments[:-1] + b"}tR"
    )
    assert read_code(path, code).load().tolist() == [1, 2, 3, 4]


def test_a_parameter_with_attributes_is_its_tensor(path: Path) -> None:
    code = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor_code() + b"\x88N}tR"
    assert read_code(path, code).load().tolist() == [1, 2, 3, 4]


def test_the_attributes_of_a_module_state_are_ignored(path: Path) -> None:
    code = b"ccollections\nOrderedDict\n)R" + text("a") + b"K\x01s}" + text("_metadata") + b"}sb"
    assert read_code(path, code) == {"a": 1}


def test_a_class_that_is_only_referenced_stays_a_name(reread: Callable) -> None:
    modules = set(sys.modules)
    nest = reread({"klass": Opcodes(b"cdemucs.htdemucs\nHTDemucs\n"), "dtype": Opcodes(b"ctorch\nfloat16\n")})
    assert nest == {"klass": GlobalRef("demucs.htdemucs.HTDemucs"), "dtype": GlobalRef("torch.float16")}
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (b"ctorch\nSize\nK\x02K\x03\x86\x85R", (2, 3)),
        (b"ctorch\ndevice\n" + text("cuda") + b"K\x00\x86R", "cuda"),
        (b"cfractions\nFraction\n" + text("39/5") + b"\x85R", Fraction(39, 5)),
    ],
)
def test_small_objects_of_the_header_are_rebuilt(path: Path, code: bytes, value: object) -> None:
    assert read_code(path, code) == value


def test_the_archive_may_have_any_name_and_alignment(path: Path) -> None:
    write_torch_zip(
        path, PROTOCOL + tensor_code() + b".", {"0": struct.pack("<4f", 1, 2, 3, 4)}, prefix="x" * 99
    )
    tensor = read_torch_file(path)
    assert tensor.offset % 64 == 0
    assert tensor.load().tolist() == [1, 2, 3, 4]


def test_only_the_bytes_of_a_tensor_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torch_file(path, {"all": GRID, "part": GRID[4:, 1]})
    counts = []
    fromfile = np.fromfile

    def counting(file: Path, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        counts.append(count)
        return fromfile(file, dtype, count, offset=offset)

    monkeypatch.setattr(np, "fromfile", counting)
    nest = read_torch_file(path)
    assert counts == []
    nest["part"].load()
    assert counts == [6]  # two elements, and those between them


# Later protocols, by Python's own pickler


class TorchPickler(pickle._Pickler):
    """Saves arrays as torch.save does, in any protocol; `torch` here are stand-ins with its names."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, np.ndarray):
            self.storages.append(obj)
            return (
                "storage",
                sys.modules["torch"].FloatStorage,
                str(len(self.storages) - 1),
                "cpu",
                obj.size,
            )
        return None

    def reducer_override(self, obj: object) -> object:
        if isinstance(obj, Parameter):
            shape = obj.data.shape
            strides = tuple(stride // obj.data.itemsize for stride in obj.data.strides)
            rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (obj.data, 0, shape, strides, False, OrderedDict())
        return NotImplemented


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, member in (("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")):
        module = ModuleType(name)
        setattr(module, member, type(member, (), {"__module__": name}))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_protocol_is_read(path: Path, fake_torch: None, protocol: int, legacy: bool) -> None:
    values = {"text": "é" * 300, "numbers": [0, 2**40, -1.5, None, True], "bytes": [b"ab", b"c" * 300], 3: ()}
    nest = {"best_state": OrderedDict(weight=Parameter(GRID), more=Parameter(GRID + 1)), "values": values}
    file = io.BytesIO()
    pickler = TorchPickler(file, protocol)
    if protocol == 2:
        del values["bytes"]  # a call of _codecs.encode
    pickler.dump(nest)
    storages = {str(i): array.tobytes() for i, array in enumerate(pickler.storages)}
    if legacy:
        header = b"".join(
            pickle.dumps(value, protocol)
            for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
        )
        data = b"".join(struct.pack("<q", 30) + storage for storage in storages.values())
        path.write_bytes(header + file.getvalue() + pickle.dumps(list(storages), protocol) + data)
    else:
        write_torch_zip(path, file.getvalue(), storages)
    read = read_torch_file(path)
    assert read["values"] == values
    np.testing.assert_array_equal(np.array(read["best_state"]["weight"].load()), GRID)
    np.testing.assert_array_equal(np.array(read["best_state"]["more"].load()), GRID + 1)


# Configurations as objects of OmegaConf, and what else a training leaves in its file

CONFIG = {
    "dim": 64,
    "nested": {"list": [1, 2.5, None, True, "x", [], {}], "reference": "${dim}", "unset": "???"},
    "null": None,
    "list": "${nested.list}",
    3: {"four": [{"five": "${oc.env:HOME}"}]},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_configuration_of_omegaconf_is_the_dict_that_it_stands_for(path: Path, protocol: int) -> None:
    config = OmegaConf.create(CONFIG)
    saved = {"xp.cfg": config, "list": OmegaConf.create([1, {"a": [2]}]), "again": (config, [config])}
    write_torch_zip(path, pickle.dumps(saved, protocol), {})
    read = read_torch_file(path)
    assert read == {"xp.cfg": CONFIG, "list": [1, {"a": [2]}], "again": (CONFIG, [CONFIG])}
    assert type(read["xp.cfg"]) is dict
    assert type(read["xp.cfg"]["nested"]["list"]) is list


def test_typed_nodes_of_omegaconf_are_their_values(path: Path) -> None:
    config = OmegaConf.create({})
    values = {
        "string": StringNode("a"),
        "integer": IntegerNode(3),
        "float": FloatNode(0.5),
        "boolean": BooleanNode(True),
        "null": StringNode(None),
        "union": UnionNode(1, ref_type=int | str),
    }
    for key, node in values.items():
        config._set_item_impl(key, node)
    with pytest.MonkeyPatch.context() as patch:
        # A type of `typing` is more than a name in a pickle.
        patch.setattr(config._get_node("union")._metadata, "ref_type", Any)
        write_torch_zip(path, pickle.dumps(config, 4), {})
    expected = {"string": "a", "integer": 3, "float": 0.5, "boolean": True, "null": None, "union": 1}
    assert read_torch_file(path) == expected


@pytest.mark.parametrize("config", [None, "???", "${elsewhere}"])
def test_a_configuration_without_content_is_what_stands_in_its_place(path: Path, config: Any) -> None:
    write_torch_zip(path, pickle.dumps({"xp.cfg": DictConfig(config)}, 2), {})
    assert read_torch_file(path) == {"xp.cfg": config}


def test_nothing_is_imported_for_a_configuration(path: Path) -> None:
    write_torch_zip(path, pickle.dumps({"xp.cfg": OmegaConf.create(CONFIG)}, 2), {})
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom pathlib import Path\n"
            "from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file\n"
            "read_torch_file(Path(sys.argv[1]))\nprint('omegaconf' in sys.modules)",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout == "False\n"


DICT_CONFIG = b"comegaconf.dictconfig\nDictConfig\n)\x81"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (DICT_CONFIG, "without its content"),
        (DICT_CONFIG + b"}b", "without its content"),
        (DICT_CONFIG + b"]b", "whose attributes are no dict"),
        (DICT_CONFIG + b"Nb", "whose attributes are no dict"),
        (DICT_CONFIG + b"}}\x86b", "whose attributes are no dict"),
        (DICT_CONFIG + b"}" + text("_content") + b"]sb", "whose content is of another type"),
        (DICT_CONFIG + b"}" + text("_content") + b"K\x01sb", "whose content is of another type"),
        (b"comegaconf.nodes\nAnyNode\n)\x81}" + text("_content") + b"}sb", "without its content"),
        (DICT_CONFIG + b"q\x00}" + text("_content") + b"}" + text("a") + b"h\x00ssb", "circular"),
        (b"comegaconf.base\nUnionNode\n)\x81q\x00}" + text("_content") + b"h\x00sb", "circular"),
        (DICT_CONFIG + text("a") + b"K\x01s", "isn't there"),
        (DICT_CONFIG + b"K\x01a", "isn't there"),
        (b"comegaconf.dictconfig\nDictConfig\n}b", "asks to change omegaconf.dictconfig.DictConfig;"),
        (b"comegaconf.dictconfig\nDictConfig\n}\x85R", "asks to run omegaconf.dictconfig.DictConfig;"),
        (b"comegaconf.base\nContainerMetadata\n)\x81}b", "asks to run omegaconf.base.ContainerMetadata;"),
        (b"comegaconf.omegaconf\nOmegaConf\n)\x81}b", "asks to run omegaconf.omegaconf.OmegaConf;"),
        # By its dotted name a class of OmegaConf.
        (b"comegaconf\nnodes.x\n)\x81}b", "without its content"),
        (b"ccollections\ndefaultdict\nK\x01\x85R", "wrong arguments"),
    ],
)
def test_a_configuration_that_omegaconf_never_writes_is_refused(path: Path, code: bytes, words: str) -> None:
    assert words in refusal(path, b"}" + text("xp.cfg") + code + b"s")


@pytest.mark.parametrize("shared", [20, 200])
def test_shared_parts_of_a_configuration_do_not_multiply(path: Path, shared: int) -> None:
    """Each level holds the one below it twice."""
    level = b"comegaconf.listconfig\nListConfig\n)\x81}" + text("_content") + b"](h\x00h\x00esbq\x00"
    start = time.perf_counter()
    assert "circular or nested" in refusal(path, b"Nq\x00" + level * shared)
    assert time.perf_counter() - start < 2


def unknown_objects() -> dict[str, bytes]:
    """What programs save beside the weights of a training, and that has a class of its own."""
    encode = b"c_codecs\nencode\n" + text("x") + text("latin1") + b"\x86R"
    dtype = b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R" + b"(K\x03" + text("<") + b"NNNtb"
    sharded = b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n"
    layout = b"ctorch.serialization\n_get_layout\n" + text("torch.strided") + b"\x85R"
    group = b"c__builtin__\ngetattr\n" + sharded + text("ProcessGroupState") + b"\x86R)\x81}b"
    enum = b"ctorch.distributed._shard.sharded_tensor.metadata\nMEM_FORMAT_ENCODING\nK\x00\x85R"
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n"
    return {
        "a process' part of a tensor": rebuild + sharded + b"(" + layout + b"t(" + group + enum + b"ttR",
        "a number of NumPy": b"cnumpy.core.multiarray\nscalar\n" + dtype + encode + b"\x86R",
        "a set": b"c__builtin__\nset\n](K\x01K\x02e\x85R",
        "a path": b"cpathlib\nPosixPath\n" + text("/") + text("tmp") + b"\x86\x85R",
        "an object": b"cargparse\nNamespace\n)\x81}" + text("a") + b"K\x01sb",
        "a dict": b"clightning\nAttributeDict\n)\x81" + text("a") + b"K\x01s(" + text("b") + b"K\x01u",
        "a list": b"clightning\nAttributeList\n)\x81K\x01a(K\x01K\x02e",
    }


@pytest.mark.parametrize("kind", unknown_objects())
def test_unknown_objects_are_left_out_where_they_are_not_needed(path: Path, kind: str) -> None:
    code = unknown_objects()[kind]
    body = b"}" + text("state") + tensor_code() + b"s" + text("history") + b"](K\x01" + code + b"es"
    modules = set(sys.modules)
    refusal(path, body)
    write_torch_zip(path, PROTOCOL + body + b".", {"0": struct.pack("<4f", 1, 2, 3, 4)})
    read = read_torch_file(path, needed=("state",))
    assert read["state"].load().tolist() == [1, 2, 3, 4]
    assert isinstance(read["history"], GlobalRef)
    with pytest.raises(CheckpointError, match="asks to run"):
        read_torch_file(path, needed=("state", "history"))
    assert set(sys.modules) == modules


# Attacks


@pytest.mark.parametrize(
    "attack", ["REDUCE", "INST", "NEWOBJ_EX", "BUILD", "eval in a list", "getattr of a class that is known"]
)
def test_a_function_is_refused_also_where_nothing_is_needed(path: Path, attack: str) -> None:
    code = b"}" + text("history") + attacks(b"true")[attack] + b"s"
    write_torch_zip(path, PROTOCOL + code + b".", {})
    with pytest.raises(CheckpointError):
        read_torch_file(path, needed=())


@pytest.mark.parametrize("kind", ["opcodes", "parts"])
def test_a_large_file_may_have_more_opcodes_but_not_any_number(path: Path, kind: str) -> None:
    def write(items: int, megabytes: int) -> None:
        code = b"](" + b"N" * items + b"e" if kind == "opcodes" else b"](" + b")" * items + b"e"
        write_torch_zip(path, PROTOCOL + code + b".", {"0": b""})
        data = bytearray(path.read_bytes())
        end = data.index(b"PK\x01\x02")
        (directory,) = struct.unpack("<I", data[-6:-2])
        data[-6:-2] = struct.pack("<I", directory + megabytes * 2**20)
        with path.open("wb") as file:  # a hole before the directory
            file.write(data[:end])
            file.seek(end + megabytes * 2**20)
            file.write(data[end:])

    write(150_000, 0)
    with pytest.raises(CheckpointError, match="too long"):
        read_torch_file(path)
    write(150_000, 100)
    assert len(read_torch_file(path)) == 150_000
    write(700_000, 1000)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="too long"):
        read_torch_file(path)
    assert time.perf_counter() - start < 3


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


def attacks(command: bytes) -> dict[str, bytes]:
    argument = text(command.decode())
    extension = b"\x82\x01"
    return {
        "REDUCE": b"cposix\nsystem\n" + argument + b"\x85R",
        "os.system": b"cos\nsystem\n" + argument + b"\x85R",
        "INST": b"(" + argument + b"iposix\nsystem\n",
        "OBJ": b"(cposix\nsystem\n" + argument + b"o",
        "NEWOBJ": b"csubprocess\nPopen\n" + argument + b"\x85\x81",
        "NEWOBJ_EX": b"csubprocess\nPopen\n" + argument + b"\x85}\x92",
        "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + argument + b"\x85R",
        "BUILD": b"csubprocess\nPopen\n}" + text("__setstate__") + b"cposix\nsystem\nsb" + argument + b"b",
        "EXT": extension + argument + b"\x85R",
        "eval in a list": b"]cbuiltins\neval\n" + text("open('x')") + b"\x85Ra",
        "eval in arguments": b"ctorch._utils\n_rebuild_parameter\n(cbuiltins\neval\n"
        + argument
        + b"\x85RNNtR",
        "eval in the rebuilder": b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\neval\nctorch\nTensor\n"
        + argument
        + b"\x85}tR",
        "persistent id": tensor_code(storage=b"cposix\nsystem\n" + argument + b"\x85R"),
        "storage type": tensor_code(storage=b"cposix\nsystem\n"),
        "getattr": b"cbuiltins\ngetattr\n(cos\npath\n" + text("join") + b"tR",
        "getattr of a class that is known": b"cbuiltins\ngetattr\n("
        + b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n"
        + text("__init__")
        + b"tR",
    }


@pytest.mark.parametrize("attack", attacks(b""))
def test_no_code_in_a_file_is_run(path: Path, marker: Path, attack: str) -> None:
    code = attacks(f"touch {marker}".encode())[attack]
    modules = set(sys.modules)
    refusal(path, b"}" + text("best_state") + code + b"s")
    assert not marker.exists()
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("REDUCE", "asks to run posix.system; a model file never needs that, refusing it"),
        ("NEWOBJ", "asks to run subprocess.Popen;"),
        ("BUILD", "asks to change subprocess.Popen;"),
        ("STACK_GLOBAL", "asks to run posix.system;"),
        ("INST", "uses the pickle opcode INST;"),
        ("storage type", "asks for storage of the type posix.system;"),
        ("eval in a list", "asks to run builtins.eval;"),
    ],
)
def test_an_error_names_the_refused_function(path: Path, attack: str, words: str) -> None:
    assert words in refusal(path, attacks(b"true")[attack])


def test_an_unprintable_name_cannot_break_the_line_of_a_message(path: Path) -> None:
    message = refusal(path, b"ca\x1b[31m\rb\\n\nc\xe2\x80\xa8" + b"d" * 5000 + b"\n)R")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300


# Inconsistent files


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 5},
        {"count": -1},
        {"count": 2**62, "shape": (2**62,)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**80},
        {"shape": (5,)},
        {"shape": (-4,)},
        {"shape": (2**70,)},
        {"shape": (True,)},
        {"shape": ("4",)},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"strides": (1, 1)},
        {"shape": (0, 2**40), "strides": (1, 1)},
        {"shape": (2**31 - 1,), "strides": (0,)},
        {"shape": (2, 2, 2), "strides": (1, 1, 1)},
        {"shape": (1,) * 9, "strides": (1,) * 9},
        {"key": "1"},
        {"key": "../data.pkl"},
        {"storage": b"ctorch\nDoubleStorage\n"},
        {"storage": b"ctorch\nQInt8Storage\n"},
        {"storage": b"N"},
    ],
    ids=str,
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(path: Path, wrong: dict) -> None:
    assert read_code(path, tensor_code()).shape == (4,)
    refusal(path, tensor_code(**wrong))


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"0",
        b"h\x00",
        b"j\xff\xff\xff\xff",
        b"t",
        b"K",
        b"X\xff\xff\xff\x7fa",
        b"X\x01\x00\x00\x00\xff",
        b"cposix\nsystem",
        b"\xff",
        b"Na",
        b"]a",
        b"}Ns",
        b"}(Nu",
        b"}(NNu",
        b"}" + text("a\nb") + b"Ns",
        b"}" + text("a" * 2000) + b"Ns",
        b"}" + b"\x8a\x09" + b"\xff" * 8 + b"\x00Ns",
        b"}]Ns",
        b"NQ",
        b"\x94",
        b"\x93",
        text("a") + b"\x93",
        b"N" + text("a") + b"\x93",
        b"\x8d" + b"\xff" * 8 + b"a",
        b"\x8c\x05a",
        b"B\xff\xff\xff\xff",
        b"\x95\x00",
        b"(tQ",
        b"N)R",
        b"ccollections\nOrderedDict\nNR",
        b"ccollections\nOrderedDict\n]\x85R",
        b"cfractions\nFraction\nK\x01K\x00\x86R",
        b"cfractions\nFraction\n" + text("1e999999999") + b"\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + b"NK\x04tQ",
    ],
    ids=repr,
)
def test_an_invalid_pickle_is_refused(path: Path, code: bytes) -> None:
    refusal(path, code)


@pytest.mark.parametrize(
    "code",
    [
        b"(" * 200_000,
        b"N" + b"q\x00" * 200_000,
        b"]" * 9_000 + b"a" * 8_999,
        b"N" + b"\x85" * 9_000,
        b"]q\x00h\x00a",
        b"}q\x00" + text("a") + b"h\x00s",
        b"]q\x00(" + b"N" * 9_000 + b"h\x00e",
        b")q\x00" + b"h\x00h\x00\x86q\x00" * 200,
        b")q\x00" + b"h\x00h\x00\x86q\x00" * 20,
        b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b"Ns",
        tensor_code() + b"q\x00" + b"h\x00" * 200_000,
    ],
    ids=[
        "marks",
        "memo",
        "deep",
        "deep tuple",
        "circular list",
        "circular dict",
        "wide circle",
        "billion laughs",
        "fewer laughs",
        "key",
        "long",
    ],
)
def test_a_pickle_made_to_exhaust_memory_is_refused(path: Path, code: bytes) -> None:
    refusal(path, code)


def test_a_pickle_of_excessive_size_is_refused_unread(path: Path) -> None:
    size = 17 * 2**20
    write_torch_zip(path, PROTOCOL + b"X" + struct.pack("<I", size) + bytes(size) + b".", {})
    with pytest.raises(CheckpointError, match="too long"):
        read_torch_file(path)


# Archives


def archive_bytes(path: Path) -> bytearray:
    write_torch_file(path, {"x": GRID})
    return bytearray(path.read_bytes())


def check_damaged(path: Path, data: bytes, match: str) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        read_torch_file(path)


def test_a_compressed_archive_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled({"x": 1}))
    with pytest.raises(CheckpointError, match="has compressed"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(1))
        archive.writestr("a/data.pkl", pickled(2))
    with pytest.raises(CheckpointError, match="same name"):
        read_torch_file(path)


def test_an_archive_of_another_program_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    with pytest.raises(CheckpointError, match="not one of PyTorch's"):
        read_torch_file(path)


def test_a_big_endian_archive_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(1))
        archive.writestr("a/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(path)


def test_a_changed_byte_in_the_pickle_is_noticed(path: Path) -> None:
    data = archive_bytes(path)
    data[data.index(PROTOCOL) + 10] ^= 1
    check_damaged(path, data, "checksum")


def test_a_record_without_its_header_is_refused(path: Path) -> None:
    data = archive_bytes(path)
    data[data.index(b"PK\x03\x04", 4)] = 0
    check_damaged(path, data, "has no header")


def test_a_record_that_begins_past_the_end_is_refused(path: Path) -> None:
    data = archive_bytes(path)
    data[28:30] = b"\xff\xff"  # the padding of the first record, the pickle
    check_damaged(path, data, "reaches past the end")


def test_a_record_that_begins_before_the_file_is_refused(path: Path) -> None:
    data = archive_bytes(path)
    (directory,) = struct.unpack("<I", data[-6:-2])
    data[-6:-2] = struct.pack("<I", directory + 10)  # shifts all records by 10 bytes to the front
    check_damaged(path, data, "lies outside the file")


def test_records_longer_than_the_file_are_refused(path: Path) -> None:
    data = archive_bytes(path)
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 10**9, 10**9)
    check_damaged(path, data, "longer than the file")


def test_a_directory_of_excessive_length_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(1))
        archive.filelist[0].comment = bytes(60_000)
        archive.filelist.extend([archive.filelist[0]] * 40)
    with pytest.raises(CheckpointError, match="directory is too long"):
        read_torch_file(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_truncated_anywhere_is_refused(path: Path, legacy: bool) -> None:
    write_torch_file(path, {"x": GRID[:2], "y": np.ones(3, np.int64)}, legacy)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        check_damaged(path, data[:length], "download it again")


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ([], []),
        (["0", "0"], [4, 4]),
        (["1"], [4]),
        (["0", "1"], [4, 4]),
        (["0"], [5]),
        (["0"], [-1]),
        ("0", [4]),
    ],
    ids=str,
)
def test_storages_that_do_not_fit_a_legacy_pickle_are_refused(path: Path, keys: list, counts: list) -> None:
    body = LEGACY_HEADER + PROTOCOL + tensor_code() + b"."
    path.write_bytes(body + pickled(["0"]) + struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert read_torch_file(path).load().tolist() == [1, 2, 3, 4]
    check_damaged(
        path, body + pickled(keys) + b"".join(struct.pack("<q", n) + bytes(16) for n in counts), "damaged"
    )


def test_a_legacy_storage_described_in_two_ways_is_refused(path: Path) -> None:
    code = tensor_code() + tensor_code(storage=b"ctorch\nIntStorage\n") + b"\x86."
    data = LEGACY_HEADER + PROTOCOL + code + pickled(["0"]) + struct.pack("<q", 4) + bytes(16)
    check_damaged(path, data, "described in two ways")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (pickled({"a": 1}), "not one of PyTorch's"),
        (pickled(0x1950A86A20F9469CFC6C) + pickled(1002), "unknown version"),
        (pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": False}), "big-endian"),
    ],
)
def test_a_legacy_file_with_another_header_is_refused(path: Path, start: bytes, words: str) -> None:
    check_damaged(path, start + pickled({}) + pickled([]), words)


# Files of other types


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty; delete it and download it again"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"<html>\n", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a git-lfs pointer"),
        (struct.pack("<Q", 16) + b'{"a":{}}        ', "is a safetensors file; rename it"),
        (b"\x00\x01\x02\x03" * 99, "is not a file saved by PyTorch"),
        (b"PK\x03\x04" + b"a" * 99, "perhaps the file was cut short"),
    ],
    ids=["empty", "html", "short html", "git-lfs", "safetensors", "random", "zip"],
)
def test_the_type_of_another_file_is_named(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_torch_file(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_or_a_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_torch_file(path)


def test_a_file_that_changed_after_reading_is_noticed(path: Path) -> None:
    write_torch_file(path, {"x": GRID})
    tensor: LazyTensor = read_torch_file(path)["x"]
    path.write_bytes(path.read_bytes()[: tensor.offset + 8])
    with pytest.raises(CheckpointError, match="shorter"):
        tensor.load()
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        tensor.load()


def test_mutated_files_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where an input that breaks a rule would be saved
    outcomes = fuzz_torch_pickle.fuzz(runs=2000, seed=1)
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 100
