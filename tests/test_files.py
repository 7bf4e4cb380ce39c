"""Links, permissions, and what processes that were killed leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.read import read_audio
from audiocraft_mlx.audio.tags import read_tags
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import check_writable, remove_stale_parts, write_file, write_folder

from .fake_model import FakeModel, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write(text.encode()) and None)


# Links


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.wav", tmp_path / "link.wav"
    target.write_text("old")
    link.symlink_to("there/target.wav")
    check_writable(link)
    write(link, "new")
    assert link.is_symlink()
    assert os.readlink(link) == "there/target.wav"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["link.wav", "there"]
    assert names(target.parent) == ["target.wav"]


def test_a_link_to_a_link_and_one_to_nothing_work(tmp_path: Path) -> None:
    (tmp_path / "second").symlink_to("target")
    (tmp_path / "first").symlink_to("second")
    check_writable(tmp_path / "first")
    write(tmp_path / "first", "new")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_failure_behind_a_link_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")

    def fail(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "link", fail)
    assert names(tmp_path) == ["link", "target"]
    assert (tmp_path / "link").read_text() == "old"


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.wav", tmp_path / "link.wav"
    target.write_text("old")
    target.chmod(mode)
    link.symlink_to("there/target.wav")
    for path in (target, link):
        write(path, "new")
        assert target.read_text() == "new"
        assert target.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "new", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("target", ["link", "none/a.wav", "folder", "/dev/null"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OutputError, match="link"):
        check_writable(tmp_path / "link")
    assert names(tmp_path) == ["folder", "link"]


def test_the_command_writes_through_a_link(fake: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("clip.wav", "clip.png"):
        (tmp_path / name).symlink_to(f"there/{name}")
    assert main(["piano", "-d", "0.1", "-o", "clip.wav", "--plot", "clip.png"]) == 0
    assert (tmp_path / "clip.wav").is_symlink()
    assert (tmp_path / "clip.png").is_symlink()
    assert names(tmp_path / "there") == ["clip.png", "clip.wav"]
    assert soundfile.info(tmp_path / "there" / "clip.wav").frames == 3200


# Killed processes

_KILLED = """
import os, signal, sys
from pathlib import Path
from audiocraft_mlx.files import write_file, write_folder
def die(at):
    if isinstance(at, Path):
        (at / "inside").write_text("half")
    else:
        at.write(b"half")
        at.flush()
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
write_folder(path, die) if path.suffix == "" else write_file(path, die)
"""


def start(path: Path, action: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(path), action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["a.wav", "folder"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, name: str) -> None:
    with start(tmp_path / name, "die") as process:
        pass
    assert process.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".musicgen-")
    remove_stale_parts(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["a.wav", "folder"])
def test_what_a_living_process_writes_stays(tmp_path: Path, name: str) -> None:
    with start(tmp_path / name, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        remove_stale_parts(tmp_path)
        (left,) = names(tmp_path)
        assert left.startswith(".musicgen-")
    assert process.returncode == -signal.SIGKILL
    remove_stale_parts(tmp_path)
    assert names(tmp_path) == []


def test_the_next_run_in_the_folder_removes_it(fake: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with start(tmp_path / "there" / "a.wav", "die"):
        pass
    assert main(["piano", "-d", "0.1", "-o", "there/b.wav"]) == 0
    assert names(tmp_path / "there") == ["b.wav"]
    with start(tmp_path / "there" / "c.wav", "die"):
        pass
    write_folder(tmp_path / "there" / "model", lambda folder: None)
    assert names(tmp_path / "there") == ["b.wav", "model"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    other = [".musicgen-notes.part", ".musicgen-0123456789abcdef.part.txt", "musicgen-0123456789abcdef.part"]
    for name in other:
        (tmp_path / name).write_text("mine")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / ".musicgen-0123456789abcdef.part").symlink_to("kept")
    os.mkfifo(tmp_path / ".musicgen-00000000000000aa.part")
    remove_stale_parts(tmp_path)
    assert {*other, "kept", ".musicgen-0123456789abcdef.part"} <= {*names(tmp_path)}
    assert (tmp_path / "kept" / "file").read_text() == "mine"
    remove_stale_parts(tmp_path / "none")


def test_writers_and_cleaners_do_not_disturb_each_other(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from audiocraft_mlx.files import check_writable, remove_stale_parts, write_file
folder = Path({str(tmp_path)!r})
cleaner = os.fork()
if cleaner == 0:
    while True:
        remove_stale_parts(folder)
try:
    for turn in range(300):
        check_writable(folder / "a")
        write_file(folder / "a", lambda file: file.write(b"whole"))
finally:
    os.kill(cleaner, 9)
    os.waitpid(cleaner, 0)
assert os.listdir(folder) == ["a"]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Permissions


@contextmanager
def powerless() -> Iterator[None]:
    """Root may read everything: be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that only its owner may enter, in one that everybody may use."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        monkeypatch.chdir(name)
        folder = Path(name) / "private"
        folder.mkdir()
        soundfile.write(folder / "song.wav", np.full(1000, 0.5), 32000)
        soundfile.write(Path(name) / "secret.wav", np.full(1000, 0.5), 32000)
        (Path(name) / "secret.wav").chmod(0o200 if os.geteuid() else 0o600)
        folder.chmod(0o600 if os.geteuid() else 0o700)
        try:
            yield folder
        finally:
            folder.chmod(0o700)


@pytest.mark.parametrize("name", ["private/song.wav", "secret.wav"])
def test_audio_that_may_not_be_read_says_so(
    private: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = private.parent / name
    with powerless():
        for read in (read_audio, read_tags):
            with pytest.raises(UsageError, match=f"^permission denied: {path} can't be read; allow it"):
                read(path)
        for option in ("--melody", "--style", "--continue", "--info", "--prompts"):
            words = [option, str(path)]
            assert main(words if option == "--info" else ["a", "-m", "me/x", *words]) == 2
            error = capsys.readouterr().err
            assert f"permission denied: {path}" in error
            assert error.count("\n") == 1


def test_an_output_folder_that_may_not_be_written_says_so(
    private: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with powerless():
        for options in (["-o"], ["-o", str(private.parent / "a.wav"), "--plot"]):
            assert main(["a", *options, str(private / f"x.{'wav' if len(options) == 1 else 'png'}")]) == 1
            error = capsys.readouterr().err
            assert "ermission denied" in error
            assert str(private.parent) in error
            assert error.count("\n") == 1
        with pytest.raises(OutputError, match="Permission denied"):
            write_folder(private / "model", lambda folder: None)
        with pytest.raises(OutputError, match="Permission denied"):
            write(private / "model.wav", "text")
