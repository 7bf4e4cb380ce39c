"""Lists of prompts on the workers of a Dask scheduler: real processes, on the loopback address."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from audiocraft_mlx.cli import generate
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.cluster import address as addresses
from audiocraft_mlx.cluster import connection, machines
from audiocraft_mlx.cluster.address import LocalWorkers, SchedulerAddress, SSHHost, SSHHosts
from audiocraft_mlx.cluster.tasks import load_machine
from audiocraft_mlx.cluster.values import ModelSpec, Needs
from audiocraft_mlx.errors import UsageError

from .cluster_processes import Cluster, environment, kill, when

NEEDS = Needs(seconds=2.0, branches=2, alone=False, stems=False, folders=())
COUNT = 6
SECONDS = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With two workers."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start_worker()
        running.start_worker()
        with Client(running.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=30)
            # So that both begin at the same time.
            client.run(load_machine, ModelSpec("musicgen-mlx", ModelOptions("demo")), NEEDS)
        yield running
    finally:
        running.close()


@pytest.fixture
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of one test alone, without workers."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The files of the list's first clips, each made alone by a command without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    script = (
        "import sys; from audiocraft_mlx.cli.generate import main\n"
        "for i in (1, 2):\n    words = [f'piano {i}', '--seed', str(4 + i), '-o', f'clip-{i}.flac']\n"
        f"    main(words + {OPTIONS!r})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment(), check=True)
    return {i: (folder / f"clip-{i}.flac").read_bytes() for i in (1, 2)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, with a list of prompts."""
    (tmp_path / "list.txt").write_text("".join(f"piano {i}\n" for i in range(1, COUNT + 1)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ["-m", "demo", "-d", str(SECONDS), "--no-open"]
LIST = ["--prompts", "list.txt", *OPTIONS, "--seed", "5"]


def run(where: str, *words: str) -> int:
    return generate.main([*LIST, "--cluster", where, *words])


def clips(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.flac"))


def made(manifest: Path) -> list[str]:
    """The files that a manifest has lines for."""
    if not manifest.exists():
        return []
    return [json.loads(line)["file"] for line in manifest.read_text().splitlines()]


NAMES = [f"clip-{i}.flac" for i in range(1, COUNT + 1)]


def test_clips_are_those_of_one_machine_to_the_last_bit(
    cluster: Cluster, folder: Path, alone: dict[int, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl") == 0
    assert clips(folder) == NAMES
    for number, data in alone.items():
        assert (folder / f"clip-{number}.flac").read_bytes() == data
    assert sorted(made(folder / "made.jsonl")) == NAMES
    *_, head, first, second, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["machine", "clips", "music", "real", "time"]
    shares = [int(line.split(")")[1].split()[0]) for line in (first, second)]
    assert min(shares) >= 1
    assert total.split()[:2] == ["all", str(COUNT)]
    assert f"{COUNT * SECONDS}.0 s" in total


def test_what_is_there_is_not_made_again(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster.address, "-o", "clip.flac") == 0
    before = {name: (folder / name).read_bytes() for name in NAMES}
    for name in NAMES[1:3]:
        (folder / name).unlink()
    capsys.readouterr()
    assert run(cluster.address, "-o", "clip.flac", "--skip-existing", "--manifest", "made.jsonl") == 0
    out = capsys.readouterr().out
    assert f"{COUNT - 2} of {COUNT} clips are there already" in out
    assert out.count("wrote ") == 2
    assert {name: (folder / name).read_bytes() for name in NAMES} == before
    assert sorted(made(folder / "made.jsonl")) == NAMES


def test_workers_write_into_a_folder(
    cluster: Cluster, folder: Path, alone: dict[int, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = folder / "shared"
    shared.mkdir()
    words = ["-o", "clip.flac", "--output-on-worker", str(shared), "--manifest", "made.jsonl"]
    assert run(cluster.address, *words) == 0
    assert (clips(folder), clips(shared)) == ([], NAMES)
    assert (shared / NAMES[0]).read_bytes() == alone[1]
    assert sorted(made(folder / "made.jsonl")) == [str(shared / name) for name in NAMES]
    (shared / NAMES[4]).unlink()
    (folder / "made.jsonl").unlink()
    capsys.readouterr()
    assert run(cluster.address, *words, "--skip-existing") == 0
    out = capsys.readouterr().out
    assert f"{COUNT - 1} of {COUNT} clips are there already" in out
    assert out.count("wrote ") == 1
    assert clips(shared) == NAMES
    assert sorted(made(folder / "made.jsonl")) == [str(shared / name) for name in NAMES]


def test_a_folder_that_workers_do_not_see(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_REFUSED_SECONDS", 0.2)
    assert run(cluster.address, "-o", "clip.flac", "--output-on-worker", "/nowhere/out") == 1
    assert "/nowhere/out does not exist" in capsys.readouterr().err


def test_melodies_loops_and_stems_travel(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["piano", *OPTIONS, "--seed", "1", "-o", "source.wav"]) == 0
    (folder / "list.csv").write_text(
        "prompt,continue,loop,bpm,bars,takes,output\n"
        "piano,source.wav,,,,,more.wav\n"
        "piano,,yes,120,1,2,loop.wav\n"
        "piano,,,,,,plain.mp3\n"
    )
    list_words = ["--prompts", "list.csv", "-m", "demo", "-d", "1", "--seed", "5", "--no-open"]
    (folder / "here").mkdir()
    assert generate.main([*list_words, "--cluster", cluster.address, "--manifest", "made.jsonl"]) == 0
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".wav", ".mp3"))
    assert files == ["loop-1.wav", "loop-2.wav", "more.wav", "plain.mp3", "source.wav"]
    assert generate.main([*list_words, "--skip-existing"]) == 0
    assert "4 of 4 clips are there already" in capsys.readouterr().out


@pytest.mark.alone
def test_a_worker_is_killed_and_another_one_joins_late(
    own_cluster: Cluster, folder: Path, alone: dict[int, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    first = own_cluster.start_worker()
    (folder / "list.txt").write_text("".join(f"piano {i}\n" for i in range(1, 13)))

    def replace() -> None:
        kill(first)
        own_cluster.start_worker()

    thread = when(lambda: len(made(folder / "made.jsonl")) >= 1, replace)
    assert run(own_cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl") == 0
    thread.join()
    out = capsys.readouterr().out
    assert " is gone; its " in out
    names = [f"clip-{i:02}.flac" for i in range(1, 13)]
    assert clips(folder) == names
    assert sorted(made(folder / "made.jsonl")) == names  # each once
    assert out.count("wrote ") == 12
    assert out.splitlines()[-1].split()[:2] == ["all", "12"]
    for number, data in alone.items():
        assert (folder / f"clip-{number:02}.flac").read_bytes() == data


@pytest.mark.alone
def test_a_scheduler_that_restarts(
    own_cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cluster.start_worker()

    def restart() -> None:
        own_cluster.kill_scheduler()
        own_cluster.start_scheduler()
        own_cluster.start_worker()

    (folder / "list.txt").write_text("".join(f"piano {i}\n" for i in range(1, 13)))
    when(lambda: len(made(folder / "made.jsonl")) >= 1, restart)
    assert run(own_cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl") == 0
    names = [f"clip-{i:02}.flac" for i in range(1, 13)]
    assert clips(folder) == names
    assert sorted(made(folder / "made.jsonl")) == names


@pytest.mark.alone
def test_a_scheduler_that_is_gone_ends_the_command_with_what_to_do(
    own_cluster: Cluster,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 1)
    own_cluster.start_worker()
    (folder / "list.txt").write_text("".join(f"piano {i}\n" for i in range(1, 13)))
    when(lambda: len(made(folder / "made.jsonl")) >= 1, own_cluster.kill_scheduler)
    assert run(own_cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "of 12 clips are made; the scheduler at tcp://" in line
    assert "--skip-existing" in line
    assert clips(folder) == sorted(made(folder / "made.jsonl"))


OTHER_VERSION = "import audiocraft_mlx.version as v\nv.__version__ = '0.0.1'\n"


def test_a_worker_with_another_version_makes_no_clips(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = cluster.start_worker(preload=OTHER_VERSION)
    place = cluster.wait_for_worker()
    try:
        assert run(cluster.address, "-o", "clip.flac") == 0
    finally:
        kill(other)
    out = capsys.readouterr().out
    assert f"({place}): it has musicgen-mlx 0.0.1, and this is" in out
    assert clips(folder) == NAMES
    assert place not in out[out.index("machine ") :]


BROKEN = """
from audiocraft_mlx.cluster import tasks
def make_clip(*given):
    raise RuntimeError("broken card")
tasks.make_clip = make_clip
"""


def test_clips_that_fail_on_one_machine_are_made_on_others(
    cluster: Cluster, folder: Path, alone: dict[int, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = cluster.start_worker(preload=BROKEN)
    place = cluster.wait_for_worker()
    try:
        assert run(cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl") == 0
    finally:
        kill(broken)
    assert clips(folder) == sorted(made(folder / "made.jsonl")) == NAMES
    assert (folder / NAMES[0]).read_bytes() == alone[1]
    out = capsys.readouterr().out
    assert place not in out[out.index("machine ") :]


def test_clips_that_fail_everywhere_are_named(
    own_cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cluster.start_worker(preload=BROKEN)
    place = own_cluster.wait_for_worker()
    (folder / "list.txt").write_text("piano\n")
    assert run(own_cluster.address, "-o", "clip.flac") == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("line 1: ")
    assert f"({place}): RuntimeError: broken card" in first
    assert "1 of 1 clips could not be made" in last
    assert "--skip-existing" in last


def test_a_model_that_no_worker_has(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_REFUSED_SECONDS", 0.2)
    assert run(cluster.address, "-o", "clip.flac", "-m", "/no/such/model") == 1
    error = capsys.readouterr().err
    assert "no machine can make these clips" in error
    assert "127.0.0.1:" in error
    assert "/no/such/model" in error


def test_what_the_model_can_not_do_is_found_before_the_first_clip(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "list.csv").write_text("prompt,chords,bpm\npiano,,\npiano,C G,120\n")
    words = ["--prompts", "list.csv", "-m", "demo", "-o", "clip.flac", "--cluster", cluster.address]
    assert generate.main(words) == 2
    assert "list.csv, line 3: " in capsys.readouterr().err
    assert clips(folder) == []


@pytest.mark.alone
def test_an_interruption_leaves_what_is_written_and_frees_the_workers(cluster: Cluster, folder: Path) -> None:
    (folder / "list.txt").write_text("".join(f"piano {i}\n" for i in range(1, 100)))
    words = [*LIST, "--cluster", cluster.address, "-o", "clip.flac", "--manifest", "made.jsonl"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process inherits what is ignored
    process = subprocess.Popen(
        [sys.executable, "-m", "audiocraft_mlx", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    when(lambda: len(made(folder / "made.jsonl")) >= 1, lambda: process.send_signal(signal.SIGINT))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    (line,) = error.splitlines()
    assert "interrupted; " in line
    assert "of 99 clips are made, and --skip-existing goes on" in line
    assert clips(folder) == sorted(made(folder / "made.jsonl"))
    begun = time.monotonic()
    assert run(cluster.address, "-o", "after.flac", "--shard", "1/99") == 0
    assert time.monotonic() - begun < 10


def test_workers_of_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["piano", "flute", *OPTIONS, "--seed", "5", "--cluster", "local:2", "-o", "clip.flac"]
    script = "import sys; from audiocraft_mlx.cli.generate import main; sys.exit(main(sys.argv[1:]))"
    given = [sys.executable, "-c", script, *words]
    ended = subprocess.run(given, cwd=folder, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert clips(folder) == ["clip-1.flac", "clip-2.flac"]
    assert "\nmachine " in ended.stdout
    assert ended.stderr == ""


def test_workers_by_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Dask is asked for: without an SSH server no more can be tried."""
    asked: dict[str, object] = {}

    def ssh_cluster(hosts: list[str], **options: object) -> None:
        asked.update(options, hosts=hosts)
        raise OSError("connection refused")

    monkeypatch.setattr("distributed.SSHCluster", ssh_cluster)
    monkeypatch.setattr(connection, "find_spec", lambda name: True)
    (folder / "hosts").write_text("node1\nme@node2:2222 /opt/bin/python\n")
    assert run("ssh:hosts", "-o", "clip.flac") == 1
    assert asked["hosts"] == ["node1", "node1", "node2"]  # the first one has the scheduler, too
    assert asked["connect_options"] == [{}, {}, {"username": "me", "port": 2222}]
    assert asked["remote_python"] == [sys.executable, sys.executable, "/opt/bin/python"]


def test_no_scheduler(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 1)
    monkeypatch.setattr(connection, "_NOTICE_SECONDS", 0.1)
    assert run("tcp://127.0.0.1:1", "-o", "clip.flac") == 1
    said = capsys.readouterr()
    assert said.out == "no scheduler answers at tcp://127.0.0.1:1 yet; waiting for one, 1 s at most\n"
    assert "no scheduler answers at tcp://127.0.0.1:1" in said.err


def test_no_certificates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tls://127.0.0.1:1", "-o", "clip.flac") == 1
    assert "tls://127.0.0.1:1 needs certificates" in capsys.readouterr().err


def test_no_file_of_machines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: True)
    assert run("ssh:hosts", "-o", "clip.flac") == 2
    assert "hosts can't be read: No such file or directory" in capsys.readouterr().err


def test_no_workers(
    own_cluster: Cluster,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines, "_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(machines, "_NOTICE_SECONDS", 0.1)
    assert run(own_cluster.address, "-o", "clip.flac") == 1
    said = capsys.readouterr()
    assert said.out == f"{own_cluster.address} has no worker yet; waiting for one, 1 s at most\n"
    assert "no worker was there for 1 s" in said.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["piano", "-o", "a.wav", "--play"], "--play"),
        (["piano", "-o", "-"], "--output -"),
        (["piano", "-o", "a.wav", "--plot", "a.png"], "--plot"),
        (["piano", "--output-on-worker", "/shared"], "--output-on-worker"),
    ],
)
def test_options_that_need_one_machine_are_refused(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([*words, "--cluster", "local:2"]) == 2
    assert f"error: {option} needs" in capsys.readouterr().err


def test_output_on_worker_needs_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["piano", "-o", "a.wav", "--output-on-worker", "/shared"]) == 2
    assert "--output-on-worker needs --cluster" in capsys.readouterr().err


def test_without_dask(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    assert run("local:2", "-o", "clip.flac") == 2
    assert "pip install 'musicgen-mlx[cluster]'" in capsys.readouterr().err


def test_dask_is_not_imported_without_a_cluster(folder: Path) -> None:
    script = (
        "import sys; from audiocraft_mlx.cli.generate import main\n"
        f"assert main(['piano', *{OPTIONS!r}, '-o', 'clip.flac']) == 0\n"
        "assert not {'dask', 'distributed', 'tornado', 'asyncio'} & {*sys.modules}, sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), cwd=folder, check=True)


def test_a_worker_sets_its_threads_first_and_says_each_time_that_it_can_not_import_mlx() -> None:
    script = """
import os, sys

class NoMLX:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlx":
            raise ImportError("no libmlx.so")

sys.meta_path.insert(0, NoMLX())
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.cluster import engine as module
from audiocraft_mlx.cluster.values import ModelSpec
from audiocraft_mlx.errors import MusicGenError

module._use_all_processors = lambda: print("numpy" in sys.modules, flush=True)
engine = module.ClipEngine()
for _ in range(2):
    try:
        engine.call(ModelSpec("musicgen-mlx", ModelOptions("demo")), id)
    except (ImportError, MusicGenError):
        print("failed", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60
    )
    # A BLAS reads how many threads it may have when it is loaded.
    assert done.stdout.split() == ["False", "failed", "failed"], done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://node1:8786", SchedulerAddress("tcp://node1:8786")),
        ("tls://[fe80::1]:8786", SchedulerAddress("tls://[fe80::1]:8786")),
        ("local:4", LocalWorkers(4)),
        ("ssh:hosts.txt", SSHHosts(Path("hosts.txt"))),
    ],
)
def test_addresses(text: str, expected: object) -> None:
    assert addresses.parse_cluster(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", "node1", "tcp://node1", "http://node1:80", "local:0", "local:x", "ssh:"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        addresses.parse_cluster(text)


def test_a_file_of_machines(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode1\n\nme@node2:2222 /opt/music/bin/python\n")
    assert addresses.read_hosts(path) == [
        SSHHost("node1"),
        SSHHost("node2", "me", 2222, "/opt/music/bin/python"),
    ]
    assert addresses.read_hosts(path)[1].connect_options == {"username": "me", "port": 2222}
    for text, message in (("a b c\n", "line 1"), ("#\n", "names no machine")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            addresses.read_hosts(path)
