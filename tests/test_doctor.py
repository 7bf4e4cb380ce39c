"""`musicgen-mlx-doctor`: its facts, its verdicts, what it leaves out, and a real run."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import constants

from audiocraft_mlx.checkpoints.bundle import lm_dtype
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.cli.doctor import main
from audiocraft_mlx.doctor import (
    command_facts,
    comparison,
    hub_facts,
    machine_facts,
    program_facts,
    report,
    rounding,
    speed,
    suite,
)
from audiocraft_mlx.doctor.comparison import Bounds, compare, compare_greedy, compare_logits
from audiocraft_mlx.doctor.demo import CPU, FORCED_GPU_BRANCH, DemoModel, Place
from audiocraft_mlx.doctor.demo_checks import DemoChecks
from audiocraft_mlx.doctor.finding import Finding, Verdict, ok, warning, wrong
from audiocraft_mlx.doctor.privacy import redact
from audiocraft_mlx.doctor.suite import Check, Report, Result, run
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.encodec import DecoderStream
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import gpu_branch, on_gpu
from tests.hub_server import HubServer

DOC = Path(__file__).parent.parent / "docs" / "DOCTOR.md"
GB = 10**9
BOUNDS = Bounds(exact=1e-5)
rng = np.random.default_rng(0)


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


# The GPU's branch


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="there is a GPU")
def test_the_branch_of_a_gpu_is_taken_within_the_block_only() -> None:
    assert not on_gpu()
    with gpu_branch():
        assert on_gpu()
        assert lm_dtype() == mx.float16
        assert load("demo").lm.dtype == mx.float16
    assert not on_gpu()
    with pytest.raises(KeyError), gpu_branch():
        raise KeyError
    assert not on_gpu()
    assert lm_dtype() == mx.float32


# The machine


@dataclass
class FakeMachine:
    """A root folder, on a machine of 16 cores and 64 GB."""

    root: Path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 64 * GB // 4096, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.3, 0.2, 0.1))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    fake = FakeMachine(tmp_path)
    fake.write("proc/self/cgroup", "0::/app\n")
    fake.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Test Processor 3000\nflags\t: fpu\n")
    fake.write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {40 * GB // 1024} kB\n")
    return fake


def test_the_processor_is_named_with_its_cores(machine: FakeMachine) -> None:
    finding = machine_facts.processor(machine.root)
    assert (finding.verdict, finding.text) == (Verdict.OK, "Test Processor 3000, 16 cores")


def test_a_container_s_quota_is_shown(machine: FakeMachine) -> None:
    machine.write("sys/fs/cgroup/app/cpu.max", "150000 100000")
    machine.write("sys/fs/cgroup/app/memory.max", str(8 * GB))
    assert machine_facts.processor(machine.root).text == "Test Processor 3000, 2 cores of 16"
    memory = machine_facts.memory(machine.root)
    assert memory.verdict is Verdict.OK
    assert memory.text == "64.0 GB, 40.0 GB free, 8.0 GB of it for this container (cgroup)"
    assert memory.values["usable_bytes"] == 8 * GB


def test_a_processor_without_a_name_has_its_architecture(machine: FakeMachine) -> None:
    (machine.root / "proc/cpuinfo").unlink()
    assert machine_facts.processor(machine.root).text.endswith(", 16 cores")


def test_a_busy_machine_is_a_warning(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (12.0, 0.0, 0.0))
    finding = machine_facts.processor(machine.root)
    assert finding.verdict is Verdict.WARNING
    assert "load 12.0" in finding.text


@pytest.mark.parametrize("kind", ["free", "container", "ulimit"])
def test_little_memory_is_a_warning(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "free":
        machine.write("proc/meminfo", "MemAvailable: 1000000 kB\n")
    elif kind == "container":
        machine.write("sys/fs/cgroup/app/memory.max", str(2 * GB))
    else:
        monkeypatch.setattr(machine_facts, "memory_below_rlimits", lambda: GB)
    finding = machine_facts.memory(machine.root)
    assert finding.verdict is Verdict.WARNING
    assert "-q 4" in finding.advice


def test_a_python_for_intel_on_apple_silicon_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), ""))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert machine_facts.system().verdict is Verdict.WARNING
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert machine_facts.system() == ok(
        "macOS 15.1, arm64", **{**machine_facts.system().values, "architecture": "arm64"}
    )


# This program and MLX


def versions(installed: dict[str, str]) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    return version


def test_another_installed_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_facts.program().values["version"] == program_facts.__version__
    monkeypatch.setattr(program_facts, "version", versions({"musicgen-mlx": "0.0.1"}))
    finding = program_facts.program()
    assert finding.verdict is Verdict.WARNING
    assert "0.0.1 is installed" in finding.text


def test_extras_are_named_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_facts, "version", versions({"av": "18.1", "mutagen": "1.4"}))
    finding = program_facts.extras()
    assert finding.verdict is Verdict.OK
    assert finding.text == "no plot, no play, tags (mutagen 1.4), formats (av 18.1), no serve"
    assert finding.values["play"] is None


def test_a_missing_portaudio_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(program_facts, "version", versions({"sounddevice": "0.5"}))
    finding = program_facts.extras()
    assert finding.verdict is Verdict.WARNING
    assert "PortAudio library not found" in finding.text


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="there is a GPU")
def test_mlx_for_cuda_that_computes_on_the_cpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_facts, "version", versions({"mlx": "0.32", "mlx-cpu": "0.32"}))
    assert program_facts.mlx().verdict is Verdict.OK
    both = {"mlx": "0.32", "mlx-cpu": "0.32", "mlx-cuda-13": "0.32"}
    monkeypatch.setattr(program_facts, "version", versions(both))
    finding = program_facts.mlx()
    assert finding.verdict is Verdict.WARNING
    assert "mlx-cuda-13" in finding.advice


linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() == mx.gpu, reason="the extension is for Linux CPUs"
)


@linux_cpu
def test_why_the_extension_is_not_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extension.ENV_VAR, "none")
    finding = program_facts.native_extension()
    assert (finding.verdict, finding.text) == (Verdict.WARNING, "off: MUSICGEN_MLX_NATIVE=none")


@linux_cpu
@pytest.mark.skipif(extension.load_extension() is None, reason="the extension isn't installed")
def test_an_extension_for_another_mlx_is_said_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_facts.native_extension().values["loaded"] is True
    monkeypatch.setattr(extension.mx, "__version__", "9.9")
    for _ in range(2):
        finding = program_facts.native_extension()
        assert finding.verdict is Verdict.WARNING
        assert "9.9" in finding.text


@linux_cpu
def test_a_slow_blas_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocraft_mlx.ops.cpu.blas.patch_mlx_blas", lambda: None)
    assert program_facts.openblas().verdict is Verdict.WARNING
    monkeypatch.setattr("audiocraft_mlx.ops.cpu.blas.patch_mlx_blas", lambda: "/lib/libscipy_openblas.so")
    assert program_facts.openblas().verdict is Verdict.OK


# Whose commands


class Shell:
    """Folders with console scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.search_path = ""

    def install(self, environment: str, module: str, *commands: str, text: str | None = None) -> Path:
        """Scripts of a Python environment, at the end of the PATH; the environment's Python."""
        bin_folder = self.folder / environment / "bin"
        bin_folder.mkdir(parents=True, exist_ok=True)
        interpreter = bin_folder / "python3"
        if not interpreter.exists():
            interpreter.symlink_to(sys.executable)
        for command in commands:
            script = bin_folder / command
            script.write_text(
                text
                or f"#!{interpreter}\n# -*- coding: utf-8 -*-\nimport re\nimport sys\n"
                f"from {module} import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
            )
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.search_path = os.pathsep.join(filter(None, [self.search_path, str(bin_folder)]))
        return interpreter


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_our_own_commands_are_ours(shell: Shell) -> None:
    interpreter = shell.install("ours", "audiocraft_mlx.cli.generate", *command_facts.COMMANDS)
    finding = command_facts.commands(shell.search_path, interpreter)
    assert finding.verdict is Verdict.OK
    assert finding.values["package"] == "audiocraft_mlx"


def test_a_link_to_our_command_is_ours(shell: Shell) -> None:
    interpreter = shell.install("ours", "audiocraft_mlx.cli.generate", "musicgen-mlx")
    links = shell.folder / "links"
    links.mkdir()
    (links / "musicgen-mlx").symlink_to(interpreter.parent / "musicgen-mlx")
    assert command_facts.commands(str(links), interpreter).verdict is Verdict.OK


def test_another_package_s_command_that_is_found_first_is_wrong(shell: Shell) -> None:
    shell.install("theirs", "mlx_audiocraft.cli", "musicgen-mlx", "audiogen-mlx")
    interpreter = shell.install("ours", "audiocraft_mlx.cli.generate", *command_facts.COMMANDS)
    finding = command_facts.commands(shell.search_path, interpreter)
    assert finding.verdict is Verdict.WRONG
    assert finding.text.startswith("musicgen-mlx and audiogen-mlx are not of this program")
    assert "mlx-audiocraft" in finding.text
    assert f"put {interpreter.parent} before" in finding.advice
    assert f"{interpreter} -m audiocraft_mlx" in finding.advice


def test_another_package_that_replaced_our_command_is_wrong(shell: Shell) -> None:
    interpreter = shell.install("ours", "audiocraft_mlx.cli.generate", *command_facts.COMMANDS)
    shell.install("ours", "mlx_audiocraft.cli", "audiogen-mlx")
    finding = command_facts.commands(shell.search_path, interpreter)
    assert finding.verdict is Verdict.WRONG
    assert finding.text.startswith("audiogen-mlx is not of this program")
    assert f"{interpreter} -m pip uninstall mlx-audiocraft" in finding.advice


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("#!/bin/sh\n'''exec' \"/a path/bin/python3\" \"$0\" \"$@\"\n' '''\nfrom x_y.z import main\n", "x_y"),
        ("#!/usr/bin/python3\n# EASY-INSTALL-ENTRY-SCRIPT: 'mlx-audiocraft==0.1'\n", "mlx_audiocraft"),
        ("#!/usr/bin/python3\nimport sys\nfrom importlib.metadata import distribution\n", ""),
        ("#!/bin/sh\nexec something\n", ""),
        ("\x7fELF\0\0", ""),
    ],
)  # fmt: skip
def test_the_owner_of_a_script_is_what_it_imports(shell: Shell, text: str, package: str) -> None:
    shell.install("other", "", "musicgen-mlx", text=text)
    script = command_facts.find_script("musicgen-mlx", shell.search_path)
    assert script is not None
    assert script.package == package


def test_no_command_and_another_installation_are_warnings(shell: Shell) -> None:
    interpreter = shell.install("ours", "audiocraft_mlx.cli.generate")
    finding = command_facts.commands(shell.search_path, interpreter)
    assert (finding.verdict, finding.text) == (Verdict.WARNING, "no musicgen-mlx on the PATH")
    shell.install("another", "audiocraft_mlx.cli.generate", "musicgen-mlx")
    finding = command_facts.commands(shell.search_path, interpreter)
    assert finding.verdict is Verdict.WARNING
    assert "installed elsewhere" in finding.text


# The Hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_models_in_the_cache_are_counted(cache: Path) -> None:
    assert "none of our models" in hub_facts.cache().text
    blobs = cache / "models--facebook--musicgen-small" / "blobs"
    snapshot = blobs.parent / "snapshots" / "0"
    other = cache / "models--somebody--llama" / "blobs"
    for folder in (blobs, snapshot, other):
        folder.mkdir(parents=True)
        (folder.parent / "refs").mkdir(exist_ok=True)
    (blobs / "a").write_bytes(bytes(3000))
    (snapshot / "state_dict.bin").symlink_to(blobs / "a")
    (other / "b").write_bytes(bytes(500))
    finding = hub_facts.cache()
    assert (finding.values["repositories"], finding.values["bytes"]) == (1, 3000)
    assert finding.values["writable"] is True


def test_a_cache_that_cannot_be_written_is_a_warning(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    finding = hub_facts.cache()
    assert finding.verdict is Verdict.WARNING
    assert "HF_HOME" in finding.advice


def test_a_full_disk_is_a_warning(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=GB))
    assert hub_facts.cache().verdict is Verdict.WARNING


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that makes a URL the Hub's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def use(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        huggingface_hub.close_session()

    yield use
    huggingface_hub.close_session()


def test_a_hub_that_answers_is_ok(online: Callable[[str], None]) -> None:
    with HubServer({hub_facts.PROBE: {"state_dict.bin": b""}}) as server:
        online(server.url)
        finding = hub_facts.hub()
        paths = [request.path for request in server.requests]
        assert f"/api/models/{hub_facts.PROBE}/revision/main" in paths
    assert (finding.verdict, finding.text) == (Verdict.OK, "127.0.0.1 answers")


def test_a_hub_that_refuses_is_a_warning(online: Callable[[str], None]) -> None:
    with HubServer({}) as server:
        online(server.url)
        finding = hub_facts.hub()
    assert finding.verdict is Verdict.WARNING
    assert finding.values["reachable"] is True
    assert "404" in finding.text


def test_a_closed_port_is_a_warning(online: Callable[[str], None]) -> None:
    with HubServer({}) as server:
        port = server.port
    online(f"http://somebody:secret@127.0.0.1:{port}")
    finding = hub_facts.hub()
    assert finding.verdict is Verdict.WARNING
    assert finding.values["reachable"] is False
    assert "secret" not in str(finding)


def test_a_hub_that_says_nothing_is_waited_for_a_moment(
    online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(hub_facts.hub_client, "list_files", lambda *_: waiting.wait(30))
    online("http://127.0.0.1:1")
    finding = hub_facts.hub(timeout=-0.4)
    waiting.set()
    assert finding.verdict is Verdict.WARNING
    assert "no answer" in finding.text


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    finding = hub_facts.hub()
    assert finding.verdict is Verdict.OK
    assert finding.values["reachable"] is None


# Verdicts on numbers


def test_vectors_equal_within_rounding_are_ok() -> None:
    expected = rng.standard_normal((3, 64)).astype(np.float32)
    assert compare(expected, expected, BOUNDS).text == "equal, bit by bit"
    finding = compare(expected, expected * np.float32(1 + 4e-6), BOUNDS)
    assert finding.verdict is Verdict.OK
    assert finding.values["relative_error"] == pytest.approx(4e-6, rel=0.1)


def test_one_wrong_vector_of_many_is_wrong() -> None:
    expected = rng.standard_normal((100, 64)).astype(np.float32)
    actual = expected.copy()
    actual[17] *= 1.001
    finding = compare(expected, actual, BOUNDS)
    assert finding.verdict is Verdict.WRONG
    assert finding.values["relative_error"] == pytest.approx(1e-3, rel=0.1)


def test_zeros_must_be_zeros() -> None:
    zeros = np.zeros((2, 4), np.float32)
    assert compare(zeros, zeros, BOUNDS).verdict is Verdict.OK
    assert compare(zeros, zeros + np.float32(1e-20), BOUNDS).verdict is Verdict.WRONG


def test_nan_and_infinity_are_wrong() -> None:
    expected = rng.standard_normal((4, 8)).astype(np.float32)
    for bad in (np.nan, np.inf):
        actual = expected.copy()
        actual[2, 3] = bad
        for finding in (compare(expected, actual, BOUNDS), compare_logits(expected, actual, BOUNDS)):
            assert finding.verdict is Verdict.WRONG
            assert finding.values["non_finite"] == 1
            assert finding.text == "1 of 32 values are NaN or infinite"
        assert "on the CPU too" in compare(actual, expected, BOUNDS).text


def test_another_shape_is_wrong() -> None:
    assert compare(np.ones((2, 3)), np.ones((2, 4)), BOUNDS).verdict is Verdict.WRONG
    assert compare_logits(np.ones((2, 3)), np.ones((2, 4)), BOUNDS).verdict is Verdict.WRONG


def test_tf32_is_told_from_float32() -> None:
    expected = rng.standard_normal((3, 64)).astype(np.float32)
    actual = expected * np.float32(1 + 1e-3)
    finding = compare(expected, actual, Bounds(1e-5, tf32=1e-2))
    assert (finding.verdict, finding.values["tf32"]) == (Verdict.OK, True)
    assert "TF32" in finding.text
    assert compare(expected, actual, Bounds(1e-5)).verdict is Verdict.WRONG
    assert compare(expected, expected * 2, Bounds(1e-5, tf32=1e-2)).verdict is Verdict.WRONG


def test_a_constant_on_all_logits_changes_no_distribution() -> None:
    expected = rng.standard_normal((3, 64))
    finding = compare_logits(expected, expected + 5, BOUNDS)
    assert finding.verdict is Verdict.OK
    assert finding.values["mean_kl"] == pytest.approx(0, abs=1e-12)


def test_the_kl_divergence_is_that_of_the_distributions() -> None:
    expected, actual = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert comparison.mean_kl(expected, actual) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def greedy_case() -> tuple[np.ndarray, np.ndarray]:
    """Codes `[2, 4]` and logits `[2, 5, 3]` with delays (0, 1), all of whose maxima are clear."""
    codes = np.array([[0, 1, 2, 0], [1, 1, 0, 2]])
    logits = np.zeros((2, 5, 3))
    for k, delay in enumerate((0, 1)):
        for frame in range(4):
            logits[k, frame + delay, codes[k, frame]] = 1.0
    return codes, logits


def test_equal_greedy_codes_are_ok() -> None:
    codes, logits = greedy_case()
    finding = compare_greedy(codes, codes, logits, logits, (0, 1), logits_agree=True)
    assert (finding.verdict, finding.values["agreement"]) == (Verdict.OK, 1.0)


def test_greedy_codes_that_part_at_a_tie_are_ok_and_elsewhere_wrong() -> None:
    codes, logits = greedy_case()
    other = codes.copy()
    other[1, 1], other[0, 3] = 2, 1  # generated at steps 2 and 3
    moved = logits + 1e-4 * rng.standard_normal(logits.shape)
    finding = compare_greedy(codes, other, logits, moved, (0, 1), logits_agree=True)
    assert (finding.verdict, finding.values["first_step"]) == (Verdict.WRONG, 2)
    assert finding.values["agreement"] == 6 / 8
    logits[1, 2, 2] = 1.0 - 1e-5
    tie = compare_greedy(codes, other, logits, moved, (0, 1), logits_agree=True)
    assert (tie.verdict, tie.values["tie"]) == (Verdict.OK, True)
    # Logits that are wrong explain nothing.
    wrong_logits = compare_greedy(codes, other, logits, moved + 1, (0, 1), logits_agree=False)
    assert wrong_logits.verdict is Verdict.WRONG


def test_bounds_grow_with_the_square_root_of_the_roundings() -> None:
    assert rounding.bound(400, rounding.HALF) == pytest.approx(2 * rounding.bound(100, rounding.HALF))
    assert rounding.bound(100, rounding.HALF) == pytest.approx(2**13 * rounding.bound(100, rounding.SINGLE))


def test_sums_of_random_terms_are_within_the_bound_and_use_it() -> None:
    """A product of n terms in two orders: what `rounding.py` says of it."""
    n = 4096
    x = rng.standard_normal((64, n)).astype(np.float32)
    one = np.cumsum(x, axis=1, dtype=np.float32)[:, -1]
    other = np.cumsum(x[:, ::-1], axis=1, dtype=np.float32)[:, -1]
    error = comparison.relative_error(one, other)
    assert 0.05 < error / rounding.bound(n / 2, rounding.SINGLE) < 1


# Speed


@pytest.mark.parametrize(
    ("rate", "on_gpu", "verdict"),
    [
        (20, False, Verdict.OK),
        (2, False, Verdict.WARNING),
        (2, True, Verdict.OK),
        (0.2, True, Verdict.WARNING),
    ],
)
def test_a_small_share_of_the_bandwidth_is_a_warning(rate: float, on_gpu: bool, verdict: Verdict) -> None:
    finding = speed.judge_small(rate, GB, 50 * GB, on_gpu)
    assert finding.verdict is verdict
    assert finding.values["bandwidth_share"] == rate / 50


def test_a_share_above_the_whole_is_said_as_the_limit() -> None:
    finding = speed.judge_small(60, GB, 50 * GB, False)
    assert "at the memory's limit" in finding.text
    assert finding.values["bandwidth_share"] == 1.2


def test_with_little_memory_small_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "memory_size", lambda: 2 * GB)
    finding = speed.small_speed(raiser(AssertionError()))
    assert (finding.verdict, finding.values["measured"]) == (Verdict.WARNING, False)


# The demo model, really computed


def verdicts(checks: DemoChecks, *names: str) -> list[Verdict]:
    work = {
        "text": checks.text_encoder,
        "logits": lambda: checks.logits(half=False),
        "codes": lambda: checks.greedy(half=False),
        "codec": checks.codec,
        "half": lambda: checks.logits(half=True),
        "half codes": lambda: checks.greedy(half=True),
    }
    return [run(Check("", name, work[name])).finding.verdict for name in names]


def faulty(change: Callable[[DemoModel], None]) -> DemoChecks:
    checks = DemoChecks(FORCED_GPU_BRANCH)
    for model in checks._models.values():
        change(model)
    return checks


def scale(array: mx.array, by: float) -> mx.array:
    return array * mx.array(by, array.dtype)


def test_a_fault_of_the_language_model_shows_in_its_own_checks() -> None:
    def change(model: DemoModel) -> None:
        layer = model.bundle.lm.layers[2].linear2
        layer.weight = scale(layer.weight, 1.1)

    checks = faulty(change)
    assert verdicts(checks, "text", "codec") == [Verdict.OK] * 2
    assert verdicts(checks, "logits", "codes", "half") == [Verdict.WRONG] * 3


def test_a_fault_of_the_codec_shows_in_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    step = DecoderStream.step

    def off(self: DecoderStream, codes: mx.array, is_last: bool) -> mx.array | None:
        audio = step(self, codes, is_last)
        return audio if audio is None or not on_gpu() else audio * 1.001

    monkeypatch.setattr(DecoderStream, "step", off)
    checks = DemoChecks(FORCED_GPU_BRANCH)
    assert verdicts(checks, "codec", "text", "logits") == [Verdict.WRONG, Verdict.OK, Verdict.OK]


def test_nan_in_half_precision_shows_there_only() -> None:
    checks = DemoChecks(FORCED_GPU_BRANCH)
    lm = checks._models[True].bundle.lm
    lm.out_norm.weight = scale(lm.out_norm.weight, float("nan"))
    assert verdicts(checks, "half", "half codes") == [Verdict.WRONG] * 2
    assert verdicts(checks, "logits") == [Verdict.OK]


def test_a_device_that_fails_is_wrong_in_all_checks_that_need_it() -> None:
    place = Place("GPU", raiser(RuntimeError("[metal] no such kernel")))
    result = run(Check("", "", DemoChecks(place).codec))
    assert result.finding.verdict is Verdict.WRONG
    assert result.finding.text == "it fails: RuntimeError: [metal] no such kernel"


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="there is a GPU")
def test_the_two_places_take_different_ways() -> None:
    with FORCED_GPU_BRANCH.enter():
        assert on_gpu()
    with CPU.enter():
        assert not on_gpu()
    assert DemoModel(FORCED_GPU_BRANCH, half=True).bundle.lm.dtype == mx.float16
    assert DemoModel(FORCED_GPU_BRANCH).bundle.lm.dtype == mx.float32


# The checks as a whole


def test_what_a_check_raises_is_its_finding() -> None:
    for error, text in (
        (ValueError("one\ntwo"), "it fails: ValueError: one two"),
        (MemoryError(), "it fails: MemoryError: "),
        (CheckpointError("demo: there is no file; reinstall"), "demo: there is no file; reinstall"),
    ):
        result = run(Check("s", "n", raiser(error)))
        assert (result.finding.verdict, result.finding.text) == (Verdict.WRONG, text)
    with pytest.raises(KeyboardInterrupt):
        run(Check("s", "n", raiser(KeyboardInterrupt())))


def fake_checks(*findings: Finding) -> Callable[[], list[Check]]:
    def checks() -> list[Check]:
        return [
            Check(suite.MACHINE, f"check {index}", lambda finding=finding: finding)  # type: ignore[misc]
            for index, finding in enumerate(findings)
        ]

    return checks


@pytest.mark.parametrize(
    ("findings", "status", "end"),
    [
        ([ok("fine")], 0, "Everything is right (0 s)."),
        ([ok("fine"), warning("slow", "hurry")], 0, "Nothing is wrong; 1 warning (0 s)."),
        ([wrong("bad"), warning("slow"), warning("dull")], 1, "1 of 3 checks went wrong; 2 warnings (0 s)."),
    ],
)
def test_the_exit_status_and_the_last_line_say_whether_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    findings: list[Finding],
    status: int,
    end: str,
) -> None:
    monkeypatch.setattr(suite, "all_checks", fake_checks(*findings))
    assert main([]) == status
    output = capsys.readouterr()
    assert end in output.out.splitlines()
    assert output.err == ""


def test_an_interruption_ends_it_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        suite, "all_checks", lambda: [Check(suite.MACHINE, "system", raiser(KeyboardInterrupt()))]
    )
    assert main([]) == 130
    assert capsys.readouterr().err == "musicgen-mlx-doctor: error: interrupted\n"


def test_progress_is_shown_on_a_terminal_and_erased(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "all_checks", fake_checks(ok("fine")))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["--json"]) == 0
    shown = capsys.readouterr().err
    assert "machine: check 0\r" in shown
    assert shown.endswith("\033[K")


# What is printed


def result(finding: Finding, name: str = "memory") -> Result:
    return Result(suite.MACHINE, name, finding, 0.0)


def test_lines_are_short_and_aligned() -> None:
    text = report.line(result(warning("word " * 40, "advice " * 20)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 79
    assert lines[0].startswith("  warning  memory         word")
    assert lines[1].startswith(" " * 26 + "word")
    assert [line.index("->") for line in lines if "->" in line] == [23]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/venv/bin", "~/venv/bin"),
        ("in /home/ann", "in ~"),
        ("/home/annette/x", "~/x"),
        ("/Users/other/x", "~/x"),
        ("/scratch/ann/venv, /scratch/annex", "/scratch/~/venv, /scratch/annex"),
        ("token hf_abcDEF123456", "token <token>"),
        ("https://ann:secret@proxy.example/x", "https://proxy.example/x"),
        ("a plan by ann", "a plan by ann"),
        ("s3cret-of-the-environment", "<token>"),
    ],
)
def test_names_and_tokens_are_left_out(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-the-environment")
    assert redact(text, home=Path("/home/ann"), user="ann") == expected


def test_a_home_that_is_a_link_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "disk" / "somebody").mkdir(parents=True)
    home = tmp_path / "home"
    home.symlink_to(tmp_path / "disk" / "somebody")
    assert redact(f"{tmp_path}/disk/somebody/x and {home}/y", home=home, user="") == "~/x and ~/y"


def test_the_home_is_nowhere_in_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/ann")
    monkeypatch.setenv("HF_HOME", "/data/people/ann/hf")
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:pw@proxy")
    finding = warning("in /data/people/ann/venv", "see /data/people/ann/x", folder="/data/people/ann/y")
    outcome = Report([result(finding)], gpu_branch=True, settings=report.settings())
    for text in (
        report.line(result(finding)),
        report.bug_report(outcome),
        json.dumps(report.as_json(outcome)),
    ):
        assert "ann" not in text
        assert "~" in text
        assert "pw" not in text
    assert "HF_HOME=~/hf" in report.bug_report(outcome)
    assert "HTTPS_PROXY=(set)" in report.bug_report(outcome)


def test_the_block_is_one_fence() -> None:
    outcome = Report([result(wrong("bad ``` fence", "do this"))], gpu_branch=True, settings={})
    block = report.bug_report(outcome)
    assert block.startswith("```text\n")
    assert block.endswith("\n```")
    assert block.count("```") == 2
    assert "memory: WRONG: bad" in block
    assert "GPU's branch" in block


def test_json_has_no_nan() -> None:
    outcome = Report([result(ok("x", share=float("nan"), no=None))], gpu_branch=False, settings={})
    values = report.as_json(outcome)["checks"][0]["values"]
    assert values == {"share": "nan", "no": None}


# The real thing


def documented_values() -> dict[str, set[str]]:
    """From each check to the names in its row of the table of values."""
    text = DOC.read_text(encoding="utf-8").partition("| Check | Its `values` |")[2]
    documented: dict[str, set[str]] = {}
    for line in text.splitlines()[2:]:
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
        if len(cells) == 2:
            for name in cells[0]:
                documented[name] = {value for value in cells[1] if value != "null"}
    documented["logits"] |= documented["text encoder"]
    documented["logits, half"] |= documented["text encoder"]
    return documented


def test_a_real_run_finds_nothing_wrong_and_is_as_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # musicgen-small's shape takes too long for a test.
    monkeypatch.setattr(speed, "SMALL", "demo")
    monkeypatch.setattr(speed, "read_bandwidth", lambda: 1e9)
    assert main(["--json"]) == 0, capsys.readouterr().out
    output = capsys.readouterr()
    assert output.err == ""
    found = json.loads(output.out)
    assert found["verdict"] in ("ok", "warning")
    assert found["gpu_branch"] == (mx.default_device() != mx.gpu)
    assert set(found) == {"version", "verdict", "gpu_branch", "seconds", "environment", "checks"}
    keys = {"section", "name", "verdict", "text", "advice", "seconds", "values"}
    assert all(set(check) == keys for check in found["checks"])
    demo = [check for check in found["checks"] if check["section"] == suite.DEMO]
    assert [check["verdict"] for check in demo] == ["ok"] * 6
    # Far from the bounds, or these aren't worth much.
    for check in demo:
        if "bound" in check["values"]:
            assert check["values"]["relative_error"] < check["values"]["bound"] / 2
    documented = documented_values()
    for check in found["checks"]:
        assert set(check["values"]) <= documented[check["name"]], check["name"]
    lines = re.findall(r"^\| `([^`|]+)` \| ", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(documented) <= set(lines)
    names = [check["name"] for check in found["checks"]]
    assert [name for name in lines if name in names][: len(names)] == names
