"""What a process may use: processors and memory, in containers and below limits."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from audiocraft_mlx import machine
from audiocraft_mlx.cli.common import OUT_OF_MEMORY, run_command
from audiocraft_mlx.machine import (
    cpu_quota,
    memory_below_rlimits,
    memory_size,
    num_cpus,
    require_memory,
)
from audiocraft_mlx.models import memory
from tests.fake_model import FakeModel, raiser

GB = 1 << 30


@pytest.fixture(autouse=True)
def _large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 64 * GB // 4096, "SC_PAGE_SIZE": 4096}.get)


def cgroups(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "0::/user.slice/app\n"
V1 = "12:cpu,cpuacct:/docker/abc\n7:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {"user.slice/app/memory.max": str(4 * GB)}, 4 * GB),
        (V2, {"user.slice/app/memory.max": "max", "user.slice/memory.max": str(2 * GB)}, 2 * GB),
        (V2, {"user.slice/app/memory.max": str(8 * GB), "memory.max": str(3 * GB)}, 3 * GB),
        ("0::/\n", {"memory.max": str(4 * GB)}, 4 * GB),
        ("0::/../other\n", {"memory.max": str(4 * GB)}, 4 * GB),
        (V2, {"user.slice/app/memory.max": "max"}, 64 * GB),
        (V2, {"user.slice/app/memory.max": str(900 * GB)}, 64 * GB),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": str(4 * GB)}, 4 * GB),
        # In a container: the names are the host's.
        (V1, {"memory/memory.limit_in_bytes": str(4 * GB)}, 4 * GB),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712"}, 64 * GB),
        # Both versions at once.
        (V1 + "0::/\n", {"memory/memory.limit_in_bytes": str(4 * GB), "unified/cpu.max": "max"}, 4 * GB),
        ("", {}, 64 * GB),
        ("nonsense\n\n", {"memory.max": "nonsense"}, 64 * GB),
    ],
)
def test_a_containers_memory_is_what_there_is(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert memory_size(cgroups(tmp_path, groups, files)) == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {"user.slice/app/cpu.max": "200000 100000"}, 2),
        (V2, {"user.slice/app/cpu.max": "150000 100000"}, 2),
        (V2, {"user.slice/app/cpu.max": "max 100000", "user.slice/cpu.max": "50000 100000"}, 1),
        (V2, {"user.slice/app/cpu.max": "max 100000"}, 16),
        (V2, {"user.slice/app/cpu.max": "6400000 100000"}, 16),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "10", "cpu/docker/abc/cpu.cfs_period_us": "100"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("", {}, 16),
    ],
)
def test_a_containers_quota_of_processors_is_what_there_is(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    root = cgroups(tmp_path, groups, files)
    assert num_cpus(root) == expected
    assert cpu_quota(root) == (expected < 16)


def test_without_proc_the_machine_counts(tmp_path: Path) -> None:
    assert memory_size(tmp_path) == 64 * GB
    assert num_cpus(tmp_path) == 16


def test_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os
os.sched_getaffinity = lambda process: set(range(16))
from audiocraft_mlx import machine
machine._cpu_quotas = lambda root: [2.5]
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
from audiocraft_mlx.ops.cpu.extension import load_extension
from audiocraft_mlx.ops.cpu.tiled_linear import _threads
patch_mlx_blas()
print(_threads(), os.environ["OPENBLAS_NUM_THREADS"])
if load_extension() is not None:
    assert os.environ["MUSICGEN_MLX_THREADS"] == "3"
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MUSICGEN_MLX_THREADS")
    }
    if sys.platform != "linux":
        pytest.skip("OpenBLAS and the extension are for Linux")
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.split() == ["3", "3"]
    environment["OMP_NUM_THREADS"] = "5"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            script.replace('os.environ["OPENBLAS_NUM_THREADS"]', '"OPENBLAS_NUM_THREADS" in os.environ'),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert run.stdout.split() == ["3", "False"]


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_limit_of_the_shell_counts(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    limits = {resource.RLIMIT_AS: -1, resource.RLIMIT_DATA: -1}
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (limits[which], -1))
    monkeypatch.setattr(machine, "_taken", lambda name: GB)
    assert memory_below_rlimits() is None
    require_memory(1 << 50)
    limits[kind] = 3 * GB
    assert memory_below_rlimits() == 2 * GB
    with pytest.raises(MemoryError):
        require_memory(1 << 62)
    limits[kind] = GB // 2
    assert memory_below_rlimits() == 0


def test_clips_at_once_are_planned_by_every_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "get_active_memory", lambda: GB)
    monkeypatch.setattr(memory, "memory_size", lambda: 16 * GB)
    monkeypatch.setattr(memory, "memory_below_rlimits", lambda: None)
    assert memory.available_memory() == 7 * GB
    # A Mac's GPU shares the memory, but may not have all of it.
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 5 * GB})
    assert memory.available_memory() == 3 * GB
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 50 * GB})
    assert memory.available_memory() == 7 * GB
    # A card has its own.
    monkeypatch.setattr(mx, "device_info", lambda: {"total_memory": 80 * GB})
    assert memory.available_memory() == 63 * GB
    monkeypatch.setattr(mx, "device_info", dict)
    assert memory.available_memory() == 7 * GB
    monkeypatch.setattr(memory, "memory_below_rlimits", lambda: 2 * GB)
    assert GB < memory.available_memory() < 2 * GB
    monkeypatch.setattr(memory, "memory_below_rlimits", lambda: 0)
    assert memory.max_batch_size(FakeModel(), 10, 2) == 1


@pytest.mark.parametrize(
    "message",
    [
        "[malloc] Unable to allocate 8 bytes.",
        "[metal::malloc] Attempting to allocate 9 bytes: greater than the maximum allowed buffer size",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBuffer...)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
    ],
)
def test_what_mlx_says_of_memory_is_out_of_memory(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raiser(RuntimeError(message)), [], "x") == 1
    assert (
        capsys.readouterr().err == "x: error: out of memory; try a shorter --duration or a smaller --model\n"
    )
    with pytest.raises(RuntimeError, match="another"):
        run_command(raiser(RuntimeError("another")), [], "x")


def test_a_library_that_does_not_fit_into_memory_is_out_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    error = ImportError("/lib/x.so: failed to map segment from shared object")
    assert run_command(raiser(error), [], "x") == 1
    assert capsys.readouterr().err == f"x: error: {OUT_OF_MEMORY}\n"
    with pytest.raises(ImportError, match="no module"):
        run_command(raiser(ImportError("no module")), [], "x")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
@pytest.mark.parametrize(("rows", "megabytes"), [(8, 1500), (32, 2500), (64, 4000)])
def test_below_a_limit_python_raises_memory_error_and_does_not_crash(rows: int, megabytes: int) -> None:
    script = f"""
from audiocraft_mlx import MusicGen
model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=8)
for generate in (model.generate, lambda texts: next(model.stream(texts))):
    try:
        generate(["a tune"] * {rows})
    except MemoryError:
        print("refused")
"""
    run = subprocess.run(
        ["sh", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["refused"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
@pytest.mark.parametrize("megabytes", [100, 300, 500, 700, 900])
def test_below_a_limit_it_is_out_of_memory_and_no_crash(tmp_path: Path, megabytes: int) -> None:
    command = [sys.executable, "-m", "audiocraft_mlx", "a tune", "-m", "demo", "-d", "1", "-o", "tune.wav"]
    run = subprocess.run(
        ["sh", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "sh", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2"},
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"musicgen-mlx: error: {OUT_OF_MEMORY}"
    assert list(tmp_path.iterdir()) == []


COUNT_HEAPS = """
import ctypes, re, sys, threading
from pathlib import Path
from audiocraft_mlx.machine import limit_heaps

limit_heaps(2)
library, ready = ctypes.CDLL(None), threading.Barrier(9)
library.malloc.restype = ctypes.c_void_p

def work():
    library.malloc(ctypes.c_size_t(50_000))
    ready.wait()
    ready.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
starts = re.findall(r"^([0-9a-f]+)-.* rw-p 00000000 00:00 0 *$", Path("/proc/self/maps").read_text(), re.M)
print(sum(int(start, 16) % (64 << 20) == 0 for start in starts))
ready.wait()
"""
"""Prints how many heaps there are besides the first one: each begins at a multiple of 64 MiB."""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32, reason="64-bit glibc"
)
@pytest.mark.parametrize(("variable", "heaps"), [(None, range(2)), ("4", range(2, 4))])
def test_threads_share_the_heaps_that_there_may_be(variable: str | None, heaps: range) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if variable is not None:
        environment["MALLOC_ARENA_MAX"] = variable
    done = subprocess.run(
        [sys.executable, "-c", COUNT_HEAPS], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) in heaps
