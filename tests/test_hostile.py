"""Hostile checkpoints: nothing leaks, crashes, hangs or takes the machine's memory; each is one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors import safe_open
from tokenizers import Tokenizer

from audiocraft_mlx import CheckpointError, UsageError
from audiocraft_mlx.checkpoints import audiocraft, mlx_format, transformers
from audiocraft_mlx.checkpoints import tokenizer as tokenizer_module
from audiocraft_mlx.checkpoints.build import read_tensors
from audiocraft_mlx.checkpoints.demucs import load_htdemucs
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_files import resolve_model
from audiocraft_mlx.checkpoints.tokenizer import read_tokenizer
from audiocraft_mlx.checkpoints.torch_pickle import LazyTensor, read_torch_file
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection, Range
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.mert import MERT, MERTConfig

from . import fuzz_checkpoints, fuzz_inputs, fuzzing
from .torch_files import Opcodes, arrays, write_torch_file

SECRET = "hf_canary_in_the_environment"


@pytest.fixture(autouse=True)
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture(scope="session")
def packages(goldens: Path) -> dict[str, Any]:
    names = {
        "mono": "mono/state_dict.bin",
        "style": "style/state_dict.bin",
        "codec": "audiogen/compression_state_dict.bin",
    }
    return {key: arrays(read_torch_file(goldens / "goldens" / name)) for key, name in names.items()}


@pytest.fixture
def release(goldens: Path, hub_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(goldens / "goldens" / "mono", tmp_path / "release"))


@pytest.fixture
def published(transformers_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(transformers_folder("mono"), tmp_path / "published", symlinks=True))


@pytest.fixture
def converted(published: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    mlx_format.save_model(load(str(published), lazy=True), folder, mx.float32)
    return folder


def refusal(folder: Path | str, seconds: float = 5.0) -> str:
    """The message of loading `folder`: one printable line without a variable of the environment, soon."""
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as failure:
        load(str(folder))
    message = str(failure.value)
    assert message.isprintable()
    assert len(message) < 1500
    assert SECRET not in message
    assert time.perf_counter() - start < seconds
    return message


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    if path.is_symlink():
        path.unlink()
    path.write_text(json.dumps(value))


def with_config(package: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    assert old in package["xp.cfg"], "the test's own configuration has changed"
    return {**package, "xp.cfg": package["xp.cfg"].replace(old, new, 1)}


# References in xp.cfg


RESOLVERS = [
    "${oc.env:HF_TOKEN}",
    "me/${oc.env:HF_TOKEN}",
    "${oc.env:NOPE,${oc.env:HF_TOKEN}}",
    "${oc.decode:${oc.env:HF_TOKEN}}",
    "${oc.dict.keys:transformer_lm}",
    "${hidden}",
    "${${inner}}",
    "${a.b",
    "${.name}",
]


@pytest.mark.parametrize("value", RESOLVERS)
def test_no_resolver_is_known_for_the_name_of_a_text_encoder(
    release: Path, packages: dict[str, Any], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(audiocraft, "resolve_part", lambda name, needed: asked.append(name))
    text = f"hidden: '${{oc.env:HF_TOKEN}}'\ninner: hidden\n{packages['mono']['xp.cfg']}"
    package = with_config({**packages["mono"], "xp.cfg": text}, "name: t5-base", f"name: '{value}'")
    write_torch_file(release / "state_dict.bin", package)
    message = refusal(release)
    assert "conditioners.description.t5.name" in message
    assert asked == []


@pytest.mark.parametrize(
    "read",
    [
        lambda config: config.string("k"),
        lambda config: config.integer("k"),
        lambda config: config.number("k"),
        lambda config: config.boolean("k"),
        lambda config: config.strings("k"),
        lambda config: config.integers("k"),
        lambda config: config.section("k"),
        lambda config: config.require("k", "x"),
        lambda config: config.choice("k", ("x",)),
        lambda config: "k" in config,
        lambda config: config.strings("list"),
        lambda config: config.require("mapping", {"k": "x"}),
        lambda config: config.section("mapping").string("k"),
    ],
)
def test_no_resolver_is_known_wherever_a_value_is_read(read: Callable[[ConfigSection], Any]) -> None:
    text = "k: ${oc.env:HF_TOKEN}\nlist: ['${oc.env:HF_TOKEN}']\nmapping: {k: '${oc.env:HF_TOKEN}'}\n"
    config = ConfigSection.from_yaml(text, "a file")
    with pytest.raises(CheckpointError, match=r"oc\.env:HF_TOKEN") as failure:
        read(config)
    assert SECRET not in str(failure.value)


def test_plain_references_inside_the_file_are_resolved() -> None:
    text = (
        "a: {b: 3, c: '${a.b}', d: 1.5, s: '${x.y}/z'}\nx: {y: t5, l: ['${a.c}', 4]}\nm: ${a}\nn: ${x.l.1}\n"
    )
    config = ConfigSection.from_yaml(text + "p: '$5'\nunset: ???\nbad: '${oc.env:HF_TOKEN}'\n", "a file")
    assert config.section("a").integer("c") == 3
    assert config.section("m").number("d") == 1.5
    assert config.section("a").string("s") == "t5/z"
    assert config.section("x").integers("l") == (3, 4)
    assert config.integer("n") == 4
    assert config.string("p") == "$5"
    assert config.integer("unset", 7) == 7
    with pytest.raises(CheckpointError, match="'unset' in its configuration is missing"):
        config.integer("unset")


@pytest.mark.parametrize(
    "text",
    [
        "a0: xx\n" + "".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'\n" for i in range(1, 40)) + "k: ${a39}\n",
        "k: ${k}\n",
        "k: ${l}\nl: ${k}\n",
        "k: ${l.m}\nl: ${k}\n",
        "".join(f"a{i}: ${{a{i + 1}}}\n" for i in range(500)) + "a500: 1\nk: ${a0}\n",
        "a: " + "x" * 1000 + "\nk: '" + "${a}" * 50 + "'\n",
    ],
)
def test_references_are_bounded(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"'k'.*circular or too many"):
        ConfigSection.from_yaml(text, "a file").string("k")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        "a: &a {b: *a}\n",
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "[" * 400 + "]" * 400,
        "a: " + "9" * 5000,
        "a: '" + "${" * 5000 + "'\nb: [",
        'a: "' + "\\x24{" * 5000 + '"\n',
        "a: " + "x" * 10**6,
        "a: !!python/object/apply:os.system [true]",
    ],
)
def test_yaml_that_takes_long_or_much_is_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"a file: xp\.cfg") as failure:
        ConfigSection.from_yaml(text, "a file")
    assert str(failure.value).isprintable()
    assert time.perf_counter() - start < 1


def test_deep_interpolations_are_plain_text_until_they_are_read() -> None:
    start = time.perf_counter()
    config = ConfigSection.from_yaml("a: '" + "${" * 20000 + "'\nb: 1\n", "a file")
    assert config.integer("b") == 1
    with pytest.raises(CheckpointError, match="'a'"):
        config.string("a")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "value", ["\x1b[31m\nred", "\ud800", "x" * 10**6, 10**4000, [[1] * 10**5], -(10**400)]
)
def test_a_value_in_a_message_is_short_and_printable(value: Any) -> None:
    config = ConfigSection({"k": value, "\x1b[31m\n": 1}, "a file")
    for read in (config.boolean, config.integer, config.number, config.integers, config.numbers, config.name):
        with pytest.raises(CheckpointError) as failure:
            read("k")
        assert str(failure.value).isprintable()
        assert len(str(failure.value)) < 300
    assert str(config.error("\x1b[31m\n", "is unknown")).isprintable()


# Token ids


def tokenizer_of(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit_json(folder / "tokenizer.json", change)


def special(ids: list[int]) -> Callable[[dict[str, Any]], None]:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["post_processor"]["special_tokens"]["</s>"]["ids"] = ids

    return change


def bigger_vocabulary(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"] += [[f"word{i}", -20.0] for i in range(100)]


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def replace_by(text: str, times: int) -> Callable[[dict[str, Any]], None]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": text}
    return lambda tokenizer: tokenizer.update(normalizer={"type": "Sequence", "normalizers": [step] * times})


def repeated_template(pieces: int, ids: int, of_pairs: bool = False) -> Callable[[dict[str, Any]], None]:
    """A post-processor that adds `pieces` times a special token that stands for `ids` tokens."""

    def change(tokenizer: dict[str, Any]) -> None:
        processor = tokenizer["post_processor"]
        kind = "pair" if of_pairs else "single"
        processor[kind] = processor[kind][:-1] + [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * pieces
        processor["special_tokens"]["</s>"].update(ids=[1] * ids, tokens=[""] * ids)

    return change


def in_a_sequence(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def wrapped(tokenizer: dict[str, Any]) -> None:
        plain = deepcopy(tokenizer["post_processor"])
        change(tokenizer)
        processors = [plain, {"type": "Sequence", "processors": [tokenizer["post_processor"]]}]
        tokenizer["post_processor"] = {"type": "Sequence", "processors": processors}

    return wrapped


def doubling_templates(tokenizer: dict[str, Any]) -> None:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    double = {**tokenizer["post_processor"], "single": [text, text], "pair": []}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [double] * 40}


def normalized_by(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    sequence = {"type": "Sequence", "normalizers": list(steps)}
    return lambda tokenizer: tokenizer.update(normalizer=sequence)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (repeated_template(7000, 7000), "49000000 tokens of no text"),
        (repeated_template(5, 5), "25 tokens of no text"),
        (repeated_template(7000, 7000, of_pairs=True), "tokens of no text"),
        (in_a_sequence(repeated_template(7000, 7000)), "tokens of no text"),
        (doubling_templates, "readable"),
        (lambda t: t["post_processor"]["single"].insert(0, t["post_processor"]["single"][0]), "readable"),
        # Of a character beyond ASCII, or a space, each makes two more bytes.
        (normalized_by(*[{"type": "ByteLevel"}] * 30), "readable"),
        (
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{**BYTE_LEVEL, "add_prefix_space": True}] * 30,
                }
            ),
            "readable",
        ),
        # U+FDFA has 18 characters in the form NFKC.
        (
            normalized_by(
                *[
                    {"type": "Replace", "pattern": {"Regex": "."}, "content": "\ufdfa"},
                    {"type": "NFKC"},
                ]
                * 6
            ),
            "readable",
        ),
        (normalized_by({"type": "Prepend", "prepend": "b" * 5_000_000}), "readable"),
        (normalized_by(*[{"type": "Strip", "strip_left": True, "strip_right": True}] * 100_000), "readable"),
    ],
)
def test_a_tokenizer_that_multiplies_is_refused_before_it_runs(
    published: Path,
    change: Callable[[dict[str, Any]], None],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer_of(published, change)
    run: list[str] = []

    class Watching:
        from_file = staticmethod(lambda path: Watched(Tokenizer.from_file(path)))

    class Watched:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self.tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            if name.startswith("encode"):
                run.append(name)
            return getattr(self.tokenizer, name)

    monkeypatch.setattr(tokenizer_module, "Tokenizer", Watching)
    message = refusal(published)
    assert run == []
    assert "tokenizer.json" in message
    assert expected in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (special([99_999_999]), "has token 99999999, that has 32128 embeddings"),
        (special([2**32 - 1]), "has token 4294967295"),
        (special([32128]), "has token 32128"),
        (special([1] * 1000), "1000 tokens of no text"),
        (special([]), "0 tokens of no text"),
        (lambda t: t["post_processor"].update(single=[]), "0 tokens of no text, and 0 of 100 characters"),
        (bigger_vocabulary, "has token 32199, that has 32128 embeddings"),
        (replace_by("a" * 100, 3), "readable"),
        (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "readable"),
        (lambda t: t["model"].update(unk_id=None, vocab=t["model"]["vocab"][:9]), "readable"),
        (lambda t: t["model"].update(unk_id=10**6), "readable"),
        (lambda t: t["model"].update(vocab=[]), "readable"),
        (lambda t: t.pop("model"), "readable"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_text_encoder(
    published: Path,
    change: Callable[[dict[str, Any]], None],
    expected: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tokenizer_of(published, change)
    message = refusal(published)
    assert "tokenizer.json" in message
    assert expected in message
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_does_not_fit_in_audiocrafts_and_our_own_format(
    release: Path, converted: Path, hub_cache: Path
) -> None:
    snapshot = next((hub_cache / "models--t5-base" / "snapshots").iterdir())
    kept = (snapshot / "tokenizer.json").read_text()
    try:
        tokenizer_of(snapshot, special([99_999_999]))
        assert "has token 99999999" in refusal(release)
    finally:
        (snapshot / "tokenizer.json").write_text(kept)
    tokenizer_of(converted, special([99_999_999]))
    assert "has token 99999999" in refusal(converted)


def test_a_token_without_an_embedding_is_an_error_where_it_enters(published: Path) -> None:
    conditioner = load(str(published)).text_conditioner

    class Encoding:
        ids = (5, 32128)

    class Tokenizer:
        no_padding = no_truncation = staticmethod(lambda: None)

        def encode_batch(self, texts: list[str]) -> list[Encoding]:
            return [Encoding()] * len(texts)

    class Panicking(Tokenizer):
        def encode_batch(self, texts: list[str]) -> list[Encoding]:
            raise BaseException("panicked")

    for kind, message in ((Tokenizer, "gives token 32128"), (Panicking, "fails on a prompt")):
        hostile = TextConditioner(kind(), conditioner.t5, conditioner.output_proj)
        with pytest.raises(CheckpointError, match=message):
            hostile.encode(["a piano"])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (np.full((1, 4, 3), 64), "codes from 0 to 63"),
        (np.full((1, 4, 3), -1), "codes from 0 to 63"),
        (np.full((1, 4, 3), 2**40), "codes from 0 to 63"),
        (mx.full((1, 4, 3), 64), "codes from 0 to 63"),
        (np.full((1, 4, 3), 1.0), "integers, not float64"),
        (np.full((1, 4, 3), True), "integers, not bool"),
        (np.full((1, 3, 3), 1), r"shape \[batch, 4, frames\]"),
        (np.full((0, 4, 3), 1), r"shape \[batch, 4, frames\]"),
    ],
)
def test_codes_from_a_caller_have_entries_in_the_tables(published: Path, codes: Any, expected: str) -> None:
    model = MusicGen.get_pretrained(str(published))
    with pytest.raises(UsageError, match=expected):
        model.generate_audio(codes)
    inputs = replace(model.prepare_inputs(["a piano"], [0]), prompt=codes)
    with pytest.raises(UsageError, match=expected):
        model.generate_stream(inputs, model.make_params(duration=1.0))


def test_numpy_codes_are_codes(published: Path) -> None:
    model = MusicGen.get_pretrained(str(published))
    codes = np.random.default_rng(0).integers(0, 64, (2, 4, 5))
    for kind in (np.int64, np.uint8, np.int16):
        audio = model.generate_audio(codes.astype(kind))
        np.testing.assert_array_equal(audio, model.generate_audio(mx.array(codes)))


# Many names of one tensor


def under_many_names(state: dict[str, Any], pattern: str, count: int, elements: int) -> dict[str, Any]:
    """A state dict with one tensor of that size under that many more names.

    As short as a pickle has it: each but the first is a reference to it.
    """
    place = struct.pack("<I", 10**6)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    # The first of these keys also stores the value before it, which is on top of the stack.
    others = {
        Opcodes((b"r" + place if i == 1 else b"") + text(pattern.format(i))): Opcodes(b"j" + place)
        for i in range(1, count)
    }
    first = {pattern.format(0): np.zeros(elements, np.float32)}
    return {**state, **first, **others}


LIMITED = """
import resource, sys
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.errors import MusicGenError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load(sys.argv[1], weights=sys.argv[2] if len(sys.argv) > 2 else None)
    print("loaded")
except MusicGenError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def in_a_process(folder: Path, *weights: Path) -> tuple[str, int]:
    """What loading `folder` says in a process of its own, and by how many MB its memory grows (Linux).

    `weights` is one file, or none.
    """
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), *map(str, weights)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stderr == ""
    message, megabytes = process.stdout.splitlines()
    return message, int(megabytes)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("unknown.{}", "is unexpected"),
        # Dropped, so that the strict loader doesn't see them.
        ("transformer.layers.{}.self_attn.rope.frequencies", "elements, the network"),
    ],
)
def test_one_tensor_under_many_names(
    release: Path, packages: dict[str, Any], pattern: str, expected: str
) -> None:
    state = under_many_names(packages["mono"]["best_state"], pattern, 25_000, 2**21)
    write_torch_file(release / "state_dict.bin", {**packages["mono"], "best_state": state})
    assert (release / "state_dict.bin").stat().st_size < 20 * 2**20
    start = time.perf_counter()
    message, megabytes = in_a_process(release)
    assert expected in message
    assert megabytes < 300  # all of them have 200 GB
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("as_weights", [False, True])
def test_one_tensor_under_many_names_of_a_training(
    release: Path, packages: dict[str, Any], tmp_path: Path, as_weights: bool
) -> None:
    pattern = "transformer.layers.{}.self_attn.rope.frequencies"
    state = under_many_names(packages["mono"]["best_state"], pattern, 25_000, 2**21)
    path = tmp_path / "run" / "checkpoint.th"
    path.parent.mkdir()
    write_torch_file(path, {"xp.cfg": packages["mono"]["xp.cfg"], "model": state})
    assert path.stat().st_size < 20 * 2**20
    start = time.perf_counter()
    message, megabytes = in_a_process(release, path) if as_weights else in_a_process(path)
    assert "elements, the network" in message
    assert megabytes < 300
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("value", RESOLVERS)
def test_no_resolver_is_known_in_a_configuration_of_a_training(
    packages: dict[str, Any], tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(audiocraft, "resolve_part", lambda name, needed: asked.append(name))
    config = OmegaConf.create(packages["mono"]["xp.cfg"])
    config.hidden, config.inner = "${oc.env:HF_TOKEN}", "hidden"
    plain = OmegaConf.to_container(config)
    plain["conditioners"]["description"]["t5"]["name"] = value  # OmegaConf itself refuses some of them
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, {"xp.cfg": plain, "model": packages["mono"]["best_state"]})
    assert "conditioners.description.t5.name" in refusal(path)
    assert asked == []


@pytest.mark.parametrize("levels", [3, 40])
def test_references_of_a_training_that_multiply_are_refused(
    packages: dict[str, Any], tmp_path: Path, levels: int
) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.create(packages["mono"]["xp.cfg"]))
    config |= {f"a{i}": f"${{a{i + 1}}}${{a{i + 1}}}" for i in range(levels)} | {f"a{levels}": "t5"}
    config["conditioners"]["description"]["t5"]["name"] = "${a0}"
    config["transformer_lm"]["dim"] = "${transformer_lm.dim}"
    path = tmp_path / "checkpoint.th"
    write_torch_file(path, {"xp.cfg": config, "model": packages["mono"]["best_state"]})
    assert "circular or too many" in refusal(path)
    config["transformer_lm"]["dim"] = 64
    write_torch_file(path, {"xp.cfg": config, "model": packages["mono"]["best_state"]})
    if levels > 3:
        assert "circular or too many" in refusal(path)
    else:
        t5 = ConfigSection.from_mapping(config, "a file").section("conditioners").section("description")
        assert t5.section("t5").name("name") == "t5" * 8


def test_what_several_names_share_is_loaded_once(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = read_torch_file(goldens / "goldens" / "mono" / "state_dict.bin")
    tensor = package["best_state"]["out_norm.bias"]
    loads: list[LazyTensor] = []
    load_tensor = LazyTensor.load
    monkeypatch.setattr(LazyTensor, "load", lambda self: loads.append(self) or load_tensor(self))
    weights = read_tensors({"a": tensor, "b": tensor, "c": mx.zeros(3)})
    assert len(loads) == 1
    assert weights["a"] is weights["b"]


def test_unexpected_tensors_are_refused_before_any_is_read(
    release: Path, packages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {**packages["mono"]["best_state"], "unknown": np.zeros(3, np.float32)}
    write_torch_file(release / "state_dict.bin", {**packages["mono"], "best_state": state})
    monkeypatch.setattr(LazyTensor, "load", lambda self: pytest.fail("a tensor was read"))
    assert "unknown is unexpected" in refusal(release)


def test_names_of_tensors_in_messages_are_printable(published: Path) -> None:
    weights = dict(mx.load(str(published / "model.safetensors")))
    mx.eval(weights)
    weights["decoder.\x1b[31m\n" + "x" * 900] = mx.zeros(1)
    mx.save_safetensors(str(published / "model.safetensors"), weights)
    assert "is unexpected" in refusal(published)


# Numbers in configurations


HUGE = [2_000_000_000, 10**400, 0, -1, float("inf"), float("nan"), 1e-300, True, [], [2**31 - 1], [[]]]
HUGE += [1e300, 2**31, 0.5, None, "x", {}, [float("inf")], [-1]]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  num_layers: 3\n", "  num_layers: 2000000000\n", "'transformer_lm.num_layers'"),
        ("  num_layers: 3\n", "  num_layers: 0\n", "'transformer_lm.num_layers'"),
        ("  dim: 64\n", "  dim: 2\n", "'transformer_lm.dim'"),
        ("  dim: 64\n", "  dim: 2147483647\n", "'transformer_lm.dim'"),
        ("  n_q: 4\n", "  n_q: 2000000000\n", "'transformer_lm.n_q'"),
        ("  card: 64\n", "  card: 2000000000\n", "'transformer_lm.card'"),
        ("  num_heads: 4\n", "  num_heads: 2000000000\n", "'transformer_lm.num_heads'"),
        (
            "    - 3\n    flatten_first",
            "    - 300000000\n    flatten_first",
            "'codebooks_pattern.delay.delays'",
        ),
        (
            "    - 0\n    - 1\n    - 2\n    - 3\n    fl",
            "    - 1\n    - 1\n    - 2\n    - 3\n    fl",
            "from 0",
        ),
        *(
            ("  hidden_scale: 4\n", f"  hidden_scale: {value}\n", "'transformer_lm.hidden_scale'")
            for value in (".inf", "-.inf", ".nan", "1e300", "1.0e+300", "-1", "0", "1.0e-09", "9" * 400)
        ),
        *(
            ("  segment_duration: 30\n", f"  segment_duration: {value}\n", "'dataset.segment_duration'")
            for value in (".inf", ".nan", "0", "-1", "1.0e-09", "1000000", "1.0e+300")
        ),
    ],
)
def test_numbers_of_xp_cfg_have_ranges(
    release: Path, packages: dict[str, Any], old: str, new: str, expected: str
) -> None:
    write_torch_file(release / "state_dict.bin", with_config(packages["mono"], old, new))
    assert expected in refusal(release)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("      ds_factor: 15\n", "      ds_factor: 2000000000\n", "ds_factor"),
        ("      n_q_out: 6\n", "      n_q_out: 2000000000\n", "n_q_out"),
        ("      bins: 64\n", "      bins: 2000000000\n", "bins"),
        ("      eval_q: 3\n", "      eval_q: 2000000000\n", "eval_q"),
        ("      length: 3.0\n", "      length: .inf\n", "length"),
    ],
)
def test_numbers_of_a_style_have_ranges(
    release: Path, packages: dict[str, Any], old: str, new: str, expected: str
) -> None:
    write_torch_file(release / "state_dict.bin", with_config(packages["style"], old, new))
    assert expected in refusal(release)


@pytest.mark.parametrize(
    "name", ["transformer.layers.x", "transformer.layers.", "transformer.layers.999999999.a"]
)
def test_the_layers_of_a_style_are_counted_safely(release: Path, packages: dict[str, Any], name: str) -> None:
    state = packages["style"]["best_state"]
    prefix = "condition_provider.conditioners.self_wav."
    package = {**packages["style"], "best_state": {**state, prefix + name: np.zeros(1, np.float32)}}
    write_torch_file(release / "state_dict.bin", package)
    assert "is unexpected" in refusal(release)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  n_filters: 4\n", "  n_filters: 1\n", "seanet.compress"),
        ("  n_filters: 4\n", "  n_filters: 65536\n", "seanet.n_filters"),
        ("  compress: 2\n", "  compress: 8\n", "seanet.compress"),
        ("  compress: 2\n", "  compress: 2000000000\n", "seanet.compress"),
        ("  dimension: 16\n", "  dimension: 2000000000\n", "seanet.dimension"),
        ("  lstm: 2\n", "  lstm: 2000000000\n", "seanet.lstm"),
        ("  n_residual_layers: 1\n", "  n_residual_layers: 2000000000\n", "seanet.n_residual_layers"),
        ("  dilation_base: 2\n", "  dilation_base: 2000000000\n", "seanet.dilation_base"),
        ("  kernel_size: 7\n", "  kernel_size: 2000000000\n", "seanet.kernel_size"),
        ("  bins: 64\n", "  bins: 2000000000\n", "rvq.bins"),
        ("  n_q: 4\n", "  n_q: 2000000000\n", "rvq.n_q"),
    ],
)
def test_numbers_of_a_codec_have_ranges(
    release: Path, packages: dict[str, Any], old: str, new: str, expected: str
) -> None:
    write_torch_file(release / "compression_state_dict.bin", with_config(packages["codec"], old, new))
    assert expected in refusal(release)


def number_paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of all numbers, and of all lists of numbers, in a configuration."""
    paths = []
    for key, item in value.items():
        if isinstance(item, dict):
            paths += number_paths(item, (*path, key))
        elif isinstance(item, (int, float)) or (isinstance(item, list) and item and item[0] != str(item[0])):
            paths.append((*path, key))
    return paths


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    """Reading it takes most of the time that loading these models takes."""
    tokenizer = read_tokenizer(resolve_model(str(published)), 32128)
    for module in (transformers, mlx_format):
        monkeypatch.setattr(module, "read_tokenizer", lambda files, vocab_size: tokenizer)


def check_all_numbers(folder: Path, name: str = "config.json", seconds: float = 5.0) -> None:
    """Load `folder` with each number of a JSON file replaced: it is loaded, or refused by one line."""
    original = json.loads((folder / name).read_text())
    for path in number_paths(original):
        for wrong in HUGE:
            config = deepcopy(original)
            place = config
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            (folder / name).write_text(json.dumps(config))
            start = time.perf_counter()
            message = ""
            try:
                load(str(folder), lazy=True)
            except CheckpointError as error:
                message = str(error)
            assert message.isprintable()
            assert len(message) < 1500
            assert time.perf_counter() - start < seconds, (path, wrong)
    (folder / name).write_text(json.dumps(original))


@pytest.mark.usefixtures("one_tokenizer")
def test_every_number_of_transformers_config(published: Path) -> None:
    check_all_numbers(published)


@pytest.mark.usefixtures("one_tokenizer")
def test_every_number_of_a_generation_config(published: Path) -> None:
    check_all_numbers(published, "generation_config.json")


@pytest.mark.usefixtures("one_tokenizer")
def test_every_number_of_our_own_format(converted: Path) -> None:
    check_all_numbers(converted)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("decoder", "num_hidden_layers"), 2_000_000_000, "decoder.num_hidden_layers"),
        (("decoder", "ffn_dim"), 2**31 - 1, "decoder.ffn_dim"),
        (("text_encoder", "vocab_size"), 2**31 - 1, "text_encoder.vocab_size"),
        (("text_encoder", "d_kv"), 2**31 - 1, "text_encoder.d_kv"),
        (("text_encoder", "layer_norm_epsilon"), 0, "text_encoder.layer_norm_epsilon"),
        (("text_encoder", "layer_norm_epsilon"), 1e-300, "text_encoder.layer_norm_epsilon"),
        (("audio_encoder", "compress"), 1000, "audio_encoder.compress"),
        (("audio_encoder", "num_filters"), 1, "audio_encoder.compress"),
        (("audio_encoder", "target_bandwidths"), [float("inf")], "audio_encoder.target_bandwidths"),
        (("audio_encoder", "target_bandwidths"), [float("nan")], "audio_encoder.target_bandwidths"),
        (("audio_encoder", "target_bandwidths"), [1e4], "audio_encoder.target_bandwidths"),
        (("audio_encoder", "upsampling_ratios"), [256] * 8, "audio_encoder.upsampling_ratios"),
        (("audio_encoder", "dilation_growth_rate"), 10**9, "audio_encoder.dilation_growth_rate"),
        (("decoder", "num_codebooks"), 300, "decoder.num_codebooks"),
    ],
)
def test_numbers_of_transformers_have_ranges(
    published: Path, path: tuple[str, str], value: Any, expected: str
) -> None:
    edit_json(published / "config.json", lambda config: config[path[0]].update({path[1]: value}))
    assert expected in refusal(published)


def test_a_stereo_model_has_two_codebooks_for_each_of_the_codecs(published: Path) -> None:
    weights = dict(mx.load(str(published / "model.safetensors")))
    mx.eval(weights)
    for key in ("decoder.model.decoder.embed_tokens", "decoder.lm_heads"):
        weights[f"{key}.4.weight"] = weights[f"{key}.3.weight"]
    mx.save_safetensors(str(published / "model.safetensors"), weights)
    edit_json(
        published / "config.json", lambda config: config["decoder"].update(num_codebooks=5, audio_channels=2)
    )
    assert "5 codebooks of 64 codes don't fit" in refusal(published)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"conv_kernel": [2**31 - 1] * 7}, "conv_kernel"),
        ({"conv_stride": [4096] * 7}, "conv_stride"),
        ({"conv_dim": [2**31 - 1] * 7}, "conv_dim"),
        ({"conv_dim": [0] * 7}, "conv_dim"),
        ({"conv_dim": []}, "conv_dim"),
        ({"conv_dim": [16] * 10**6}, "conv_dim"),
        ({"conv_kernel": [4000] * 7}, "conv_kernel"),
        ({"num_conv_pos_embedding_groups": 7}, "num_conv_pos_embedding_groups"),
        ({"num_conv_pos_embeddings": 2**31 - 1}, "num_conv_pos_embeddings"),
        ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"sample_rate": 1}, "sample_rate"),
    ],
)
def test_numbers_of_mert_have_ranges(goldens: Path, change: dict[str, Any], expected: str) -> None:
    config = json.loads((goldens / "goldens" / "mert" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=expected) as failure:
        MERTConfig.from_transformers(ConfigSection({**config, **change}, "mert"))
    assert len(str(failure.value)) < 300


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"t_layers": 2_000_000_000}, "t_layers"),
        ({"segment": 1e9}, "segment"),
        ({"segment": float("inf")}, "segment"),
        ({"samplerate": 1}, "samplerate"),
        ({"channels": 2_000_000_000}, "channels"),
        ({"bottom_channels": 2_000_000_000}, "bottom_channels"),
        ({"t_hidden_scale": float("inf")}, "t_hidden_scale"),
        ({"t_hidden_scale": -1.0}, "t_hidden_scale"),
        ({"t_max_period": 0.0}, "t_max_period"),
        ({"freq_emb": float("nan")}, "freq_emb"),
        ({"dconv_depth": 2_000_000_000}, "dconv_depth"),
        ({"sources": ["drums", "../../vocals", "other", "bass"]}, "sources"),
        ({"sources": ["drums", "drums", "other", "vocals"]}, "sources"),
        ({"sources": ["drums", "bass", "guitar", "piano"]}, "sources.*lacks vocals and other"),
        ({"sources": ["vocals", "other"] * 1000}, "sources"),
    ],
)
def test_numbers_and_names_of_htdemucs_are_checked(
    goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
) -> None:
    original = goldens / "goldens" / "htdemucs" / "955717e8.safetensors"
    with safe_open(original, framework="numpy") as file:
        metadata = dict(file.metadata())
    metadata["kwargs"] = json.dumps({**json.loads(metadata["kwargs"]), **change})
    path = tmp_path / "htdemucs.safetensors"
    mx.save_safetensors(str(path), dict(mx.load(str(original))), metadata=metadata)
    monkeypatch.setenv("MUSICGEN_MLX_DEMUCS", str(path))
    with pytest.raises(CheckpointError, match=expected) as failure:
        load_htdemucs()
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 500


def with_number(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = deepcopy(config)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def refused(read: Callable[[], object]) -> str:
    """The message of the refusal, or nothing."""
    try:
        read()
    except CheckpointError as error:
        return str(error)
    return ""


def test_every_number_of_mert(goldens: Path) -> None:
    config = json.loads((goldens / "goldens" / "mert" / "config.json").read_text())

    def build(changed: dict[str, Any]) -> MERT:
        return MERT(MERTConfig.from_transformers(ConfigSection(changed, "mert")))

    for path in number_paths(config):
        for wrong in HUGE:
            message = refused(partial(build, with_number(config, path, wrong)))
            assert message.isprintable()
            assert len(message) < 300


def test_every_number_of_htdemucs(goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = goldens / "goldens" / "htdemucs" / "955717e8.safetensors"
    with safe_open(original, framework="numpy") as file:
        metadata = dict(file.metadata())
    kwargs = json.loads(metadata["kwargs"])
    weights = dict(mx.load(str(original)))
    mx.eval(weights)
    path = tmp_path / "htdemucs.safetensors"
    monkeypatch.setenv("MUSICGEN_MLX_DEMUCS", str(path))
    for number in number_paths(kwargs):
        for wrong in HUGE:
            changed = {**metadata, "kwargs": json.dumps(with_number(kwargs, number, wrong))}
            # Without its tensors, which take most of the time: it is always refused.
            mx.save_safetensors(str(path), {"x": mx.zeros(1)}, metadata=changed)
            message = refused(load_htdemucs)
            assert message
            assert message.isprintable()
            assert len(message) < 1000
    name = next(name for name in weights if weights[name].ndim == 3)
    for kind in (mx.int32, mx.bool_):
        mx.save_safetensors(str(path), {**weights, name: weights[name].astype(kind)}, metadata=metadata)
        assert "is of type" in refused(load_htdemucs)


def test_a_range_names_both_ends() -> None:
    assert str(Range(1, 2**31 - 1)) == "from 1 to 2147483647"
    assert 2**31 not in Range(1, 2**31 - 1)
    assert float("nan") not in Range(float("-inf"), float("inf"))


# The codec's tensors


def wrong(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        (found,) = [key for key in state if key.endswith(name)]
        changed = change(state[found])
        if changed is None:
            del state[found]
        else:
            state[found] = changed

    return apply


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            wrong("encoder.model.0.conv.conv.weight_g", lambda g: np.array(g.reshape(-1)[0])),
            "weight_g has shape []",
        ),
        (wrong("encoder.model.0.conv.conv.weight_g", lambda g: g.reshape(-1)), "weight_g has shape [4]"),
        (
            wrong("encoder.model.0.conv.conv.weight_g", lambda g: g.astype(np.int32)),
            "weight_g is of type int32",
        ),
        (wrong("encoder.model.0.conv.conv.weight_v", lambda v: v[0]), "weight_v has shape"),
        (
            wrong("encoder.model.0.conv.conv.weight_v", lambda v: v.astype(np.int64)),
            "weight_v is of type int64",
        ),
        (wrong("encoder.model.0.conv.conv.weight_v", lambda v: None), "weight_g is unexpected"),
        (wrong("encoder.model.0.conv.conv.weight_g", lambda g: None), "weight_v is unexpected"),
        (wrong("encoder.model.13.lstm.bias_hh_l0", lambda b: None), "lstm.bias_hh_l0 is missing"),
        (wrong("encoder.model.13.lstm.bias_ih_l0", lambda b: None), "bias"),
        (wrong("encoder.model.13.lstm.bias_hh_l0", lambda b: b[:1]), "lstm.bias_hh_l0 has shape [1]"),
        (
            wrong("encoder.model.13.lstm.bias_hh_l0", lambda b: np.array(b.reshape(-1)[0])),
            "bias_hh_l0 has shape []",
        ),
        (
            wrong("encoder.model.13.lstm.bias_hh_l0", lambda b: b.astype(np.int8)),
            "bias_hh_l0 is of type int8",
        ),
        (
            wrong("vq.layers.0._codebook.embed", lambda e: e[:, :, None]),
            "codebook.embed has shape [64, 16, 1]",
        ),
        (wrong("vq.layers.0._codebook.embed", lambda e: np.concatenate([e, e])), "different shapes"),
    ],
)
def test_the_codecs_tensors_are_checked_by_name(
    release: Path, packages: dict[str, Any], change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    package = {**packages["codec"], "best_state": dict(packages["codec"]["best_state"])}
    change(package["best_state"])
    write_torch_file(release / "compression_state_dict.bin", package)
    message = refusal(release)
    assert expected in message
    assert "compression_state_dict.bin" in message


# Types of tensors


def one_of_each_kind(names: Iterable[str]) -> list[str]:
    """Of names that differ by numbers only, the last one, without the statistics of the codec's training."""
    kinds = {re.sub(r"[0-9]+", "", name): name for name in names}
    return [name for name in kinds.values() if not name.endswith((".inited", ".cluster_size", ".embed_avg"))]


@pytest.mark.usefixtures("one_tokenizer")
@pytest.mark.parametrize("kind", [mx.int32, mx.bool_, mx.uint8], ids=str)
def test_integers_are_no_weights_in_transformers_format(published: Path, kind: mx.Dtype) -> None:
    path = published / "model.safetensors"
    original = dict(mx.load(str(path)))
    mx.eval(original)
    path.unlink()
    names = one_of_each_kind(original)
    assert "decoder.lm_heads.3.weight" in names
    for name in names:
        mx.save_safetensors(str(path), {**original, name: original[name].astype(kind)})
        with pytest.raises(CheckpointError, match=r"is of type (int32|bool|uint8) instead of float32"):
            load(str(published), lazy=True)


@pytest.mark.usefixtures("one_tokenizer")
def test_integers_are_no_weights_in_our_own_format(converted: Path) -> None:
    for path in converted.glob("*.safetensors"):
        original = dict(mx.load(str(path)))
        mx.eval(original)
        path.unlink()
        for name in one_of_each_kind(original):
            mx.save_safetensors(str(path), {**original, name: original[name].astype(mx.int32)})
            with pytest.raises(CheckpointError, match="is of type int32"):
                load(str(converted), lazy=True)
        mx.save_safetensors(str(path), original)


@pytest.mark.parametrize(
    ("name", "key"), [("state_dict.bin", "mono"), ("compression_state_dict.bin", "codec")]
)
def test_integers_are_no_weights_in_audiocrafts_format(
    release: Path, packages: dict[str, Any], name: str, key: str
) -> None:
    state = packages[key]["best_state"]
    for tensor in one_of_each_kind(state):
        changed = {**state, tensor: state[tensor].astype(np.int32)}
        write_torch_file(release / name, {**packages[key], "best_state": changed})
        assert "is of type int32 instead of float32" in refusal(release)


@pytest.mark.parametrize("pretrained", ["", "x" * 300, "a\nb", "../..", "nowhere/at-all/x", "\x1b[31m"])
def test_a_codec_that_names_an_impossible_one(release: Path, pretrained: str) -> None:
    write_torch_file(release / "compression_state_dict.bin", {"pretrained": pretrained})
    assert refusal(release)


def test_a_codec_that_names_its_own_folder(release: Path) -> None:
    write_torch_file(release / "compression_state_dict.bin", {"pretrained": str(release)})
    assert "names a codec that names another" in refusal(release)


def test_a_huge_json_file_is_not_read(published: Path) -> None:
    with open(published / "config.json", "ab") as file:
        file.truncate(2**31)
    assert "config.json" in refusal(published)


def test_a_style_whose_pickle_has_code_is_not_run(release: Path, packages: dict[str, Any]) -> None:
    write_torch_file(
        release / "state_dict.bin",
        {**packages["mono"], "xp.cfg": Opcodes(b"cos\ngetenv\nX\x08\x00\x00\x00HF_TOKEN\x85R")},
    )
    assert "getenv" in refusal(release)


def test_mutated_files_of_checkpoints_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where an input that breaks a rule would be saved
    outcomes = fuzzing.fuzz(fuzz_checkpoints.__file__, runs=1000, seed=1, jobs=1)
    assert outcomes["config.json read"] > 10
    for kind in ("xp.cfg", "config.json", "generation_config.json", "tokenizer.json", "safetensors"):
        assert outcomes[f"{kind} refused"] > 10


def test_mutated_files_and_requests_of_users_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = fuzzing.fuzz(fuzz_inputs.__file__, runs=500, seed=1, jobs=1)
    for kind in ("wav", "mp3", "tags", "prompts, CSV", "POST /api/jobs"):
        assert outcomes[f"{kind} read"] > 0
        assert outcomes[f"{kind} refused"] > 0
