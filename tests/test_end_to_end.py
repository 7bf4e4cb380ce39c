"""The command as a user runs it: in a process of its own, with a stand-in for the Hub, down to the files."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import audiocraft_mlx
from audiocraft_mlx.checkpoints.torch_pickle import read_torch_file

from . import hub_server
from .conftest import add_to_hub_cache
from .hub_server import Content, HubServer
from .test_checkpoints import arrays
from .torch_files import Opcodes, write_torch_file

Files = dict[str, Content]

SHORT = ("-d", "0.3", "--no-open")
SAMPLES = 9600
LIMIT = 120
"""Seconds after which a process counts as hung."""

SMALL = "facebook/musicgen-small"
NEEDED = [
    f"{SMALL}/state_dict.bin",
    "t5-base/config.json",
    "t5-base/model.safetensors",
    f"{SMALL}/compression_state_dict.bin",
    "facebook/encodec_32khz/config.json",
    "facebook/encodec_32khz/model.safetensors",
    "t5-base/tokenizer.json",
]


@dataclass
class User:
    """Somebody at a shell, in an empty folder."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, limit: int | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the command; `limit` is the most that its files may hold, in `ulimit`'s blocks."""
        command = [sys.executable, "-m", "audiocraft_mlx", *arguments]
        if limit is not None:
            # -B: a module that is imported behind the limit would leave a damaged .pyc.
            command[1:1] = ["-B"]
            command = ["/bin/sh", "-c", f'ulimit -f {limit} && exec "$@"', "sh", *command]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, encoding="utf-8", errors="strict", **pipes
        )

    def run(self, *arguments: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        return finished(self.start(*arguments, **options), stdin)

    def makes(self, filename: str, *arguments: str, stdin: str = "") -> bytes:
        """Run the command, which must succeed and write this file; its content."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(
            rf"wrote {re.escape(filename)}: (mono|stereo), 0\.30 s, 32000 Hz\n"
            r"seed \d+, \d+\.\d s to make, \d+\.\d\dx real time\n"
            r"(peak \d+\.\d\d scaled down to full scale\n)?",
            done.stdout,
        )
        return (self.folder / filename).read_bytes()

    def fails(self, *arguments: str, status: int = 1, **options: Any) -> str:
        """Run the command, which must fail with one line and leave the folder as it was; that line."""
        before = self.files
        line = failure(self.run(*arguments, **options), status)
        assert self.files == before
        return line

    @property
    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def patch(self, code: str, folder: Path) -> None:
        """Have each process run `code` when it starts."""
        (folder / "sitecustomize.py").write_text(code)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(folder), self.environment["PYTHONPATH"]])


@dataclass
class Newcomer(User):
    """A user with an empty cache and a Hub."""

    hub: HubServer
    cache: Path

    @property
    def blobs(self) -> list[Path]:
        """The contents that the cache holds, whole and partial."""
        return [path for path in self.cache.rglob("blobs/*") if path.is_file()]


def finished(process: subprocess.Popen[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(stdin, timeout=LIMIT)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def failure(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    found = re.fullmatch(r"musicgen-mlx: error: (\S.*)\n", done.stderr)
    assert found, done.stderr
    return found[1]


def samples(content: bytes) -> bytes:
    """The audio of a file alone: what two clips were made from is in their tags and differs anyway."""
    return soundfile.read(io.BytesIO(content), dtype="int16")[0].tobytes()


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(cache.parent / "home"),
        "HF_HOME": str(cache),
        "NO_PROXY": "*",
        "PYTHONPATH": str(Path(audiocraft_mlx.__file__).parents[1]),
        **more,
    }


def in_folder(folder: Path) -> Files:
    return {path.name: path for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def repositories(goldens: Path) -> dict[str, Files]:
    """What the Hub has, with much that the command has no use for."""
    ours, theirs = goldens / "goldens", goldens / "goldens_hf"
    tokenizer: Files = {"tokenizer.json": ours / "t5" / "tokenizer.json"}
    unneeded: Files = {"README.md": b"# Hello", "spiece.model": b"?", "flax_model.msgpack": b"?"}
    return {
        SMALL: {**in_folder(theirs / "mono"), **in_folder(ours / "mono"), **tokenizer, **unneeded},
        "facebook/musicgen-stereo-small": in_folder(ours / "stereo"),
        "facebook/musicgen-melody": in_folder(ours / "melody"),
        "facebook/musicgen-style": in_folder(ours / "style"),
        "adefossez/HTDemucs": in_folder(ours / "htdemucs"),
        "facebook/encodec_32khz": {**in_folder(ours / "encodec_32khz"), "pytorch_model.bin": b"?"},
        "t5-base": {**in_folder(ours / "t5"), "pytorch_model.bin": b"?", **unneeded},
        "someone/finetune": {**in_folder(theirs / "stereo-bin"), **tokenizer, **unneeded},
    }


@pytest.fixture(scope="module")
def full_cache(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache after a run of a model of each kind."""
    cache = tmp_path_factory.mktemp("machine") / "cache"
    for name, folder in (
        (SMALL, "mono"),
        ("facebook/musicgen-stereo-small", "stereo"),
        ("facebook/musicgen-melody", "melody"),
        ("facebook/musicgen-style", "style"),
        ("facebook/audiogen-medium", "audiogen"),
        ("adefossez/HTDemucs", "htdemucs"),
        ("m-a-p/MERT-v1-95M", "mert"),
        ("t5-base", "t5"),
        ("t5-large", "t5"),
        ("facebook/encodec_32khz", "encodec_32khz"),
    ):
        add_to_hub_cache(cache / "hub", name, goldens / "goldens" / folder)
    return cache


@pytest.fixture
def user(full_cache: Path, tmp_path: Path) -> User:
    """A user with a full cache and no network."""
    folder = tmp_path / "work"
    folder.mkdir()
    return User(folder, environment(full_cache, HF_HUB_OFFLINE="1"))


@pytest.fixture
def newcomer(repositories: dict[str, Files], tmp_path: Path) -> Iterator[Newcomer]:
    folder, cache = tmp_path / "work", tmp_path / "cache"
    folder.mkdir()
    with HubServer({name: dict(files) for name, files in repositories.items()}) as hub:
        yield Newcomer(folder, environment(cache, HF_ENDPOINT=hub.url), hub, cache)


@pytest.fixture(scope="module")
def release_package(goldens: Path) -> dict[str, Any]:
    return arrays(read_torch_file(goldens / "goldens" / "mono" / "state_dict.bin"))


@pytest.fixture
def package(release_package: dict[str, Any]) -> dict[str, Any]:
    """What the default model's `state_dict.bin` holds, to be changed and saved again."""
    return deepcopy(release_package)


# A prompt in, a file out


def test_the_first_run_fetches_what_it_needs_and_later_ones_nothing(newcomer: Newcomer) -> None:
    first = newcomer.makes("musicgen_output.wav", "lo-fi, soft piano", *SHORT, "--seed", "1")
    assert newcomer.hub.fetched == NEEDED
    info = soundfile.info(newcomer.folder / "musicgen_output.wav")
    assert (info.frames, info.samplerate, info.channels) == (SAMPLES, 32000, 1)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    audio, _ = soundfile.read(newcomer.folder / "musicgen_output.wav")
    assert np.sqrt(np.mean(audio**2)) > 1e-3

    newcomer.hub.stop()
    again = newcomer.makes("musicgen_output-2.wav", "lo-fi, soft piano", *SHORT, "--seed", "1")
    other = newcomer.makes("musicgen_output-3.wav", "lo-fi, soft piano", *SHORT, "--seed", "2")
    assert again == first
    assert samples(other) != samples(first)
    assert newcomer.files == ["musicgen_output-2.wav", "musicgen_output-3.wav", "musicgen_output.wav"]


def test_a_model_in_transformers_format_needs_its_own_files_alone(newcomer: Newcomer) -> None:
    newcomer.makes("clip.wav", "piano", *SHORT, "-m", "someone/finetune", "-o", "clip.wav")
    assert soundfile.info(newcomer.folder / "clip.wav").channels == 2
    assert sorted(newcomer.hub.fetched) == [
        f"someone/finetune/{name}"
        for name in (
            "config.json",
            "generation_config.json",
            *(f"pytorch_model-0000{shard}-of-00003.bin" for shard in (1, 2, 3)),
            "pytorch_model.bin.index.json",
            "tokenizer.json",
        )
    ]


def test_a_short_name_and_a_folder_are_models_too(user: User, goldens: Path) -> None:
    user.makes("clip.wav", "piano", *SHORT, "-m", "stereo-small", "-o", "clip.wav")
    info = soundfile.info(user.folder / "clip.wav")
    assert (info.frames, info.channels) == (SAMPLES, 2)
    (user.folder / "model").symlink_to(goldens / "goldens" / "mono")
    user.makes("clip.wav", "piano", *SHORT, "-m", "./model", "-o", "clip.wav")
    info = soundfile.info(user.folder / "clip.wav")
    assert (info.frames, info.channels) == (SAMPLES, 1)


def test_a_revision_is_fetched_and_found_again(
    newcomer: Newcomer, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tagged = "someone/finetune", "someone/finetune-as-tagged"
    mono = in_folder(goldens / "goldens_hf" / "mono")
    newcomer.hub.repos[tagged] = {**newcomer.hub.repos[name], **mono}
    del newcomer.hub.repos[tagged]["pytorch_model.bin.index.json"]
    commit, answer = newcomer.hub.commit(tagged), hub_server._Handler.answer

    def answer_with_tag(handler: hub_server._Handler) -> None:
        handler.path = handler.path.replace(f"{name}/revision/v1", f"{tagged}/revision/main")
        handler.path = handler.path.replace(f"{name}/resolve/{commit}/", f"{tagged}/resolve/{commit}/")
        answer(handler)

    monkeypatch.setattr(hub_server._Handler, "answer", answer_with_tag)
    arguments = ("piano", *SHORT, "-m", name, "--seed", "1", "--revision")
    first = newcomer.makes("musicgen_output.wav", *arguments, "v1")
    assert soundfile.info(newcomer.folder / "musicgen_output.wav").channels == 1  # main is stereo
    assert "'v9'" in newcomer.fails(*arguments, "v9")
    newcomer.hub.stop()
    assert newcomer.makes("musicgen_output-2.wav", *arguments, "v1") == first


def test_only_a_file_that_is_named_is_replaced(user: User) -> None:
    arguments = (*SHORT, "--seed", "1")
    first = user.makes("musicgen_output.wav", "détente, piano", *arguments)
    assert user.makes("musicgen_output-2.wav", "-", *arguments, stdin="détente, piano\n") == first
    other = user.makes("musicgen_output.wav", "drums", *arguments, "-o", "musicgen_output.wav")
    assert samples(other) != samples(first)
    assert (user.folder / "musicgen_output-2.wav").read_bytes() == first
    assert user.files == ["musicgen_output-2.wav", "musicgen_output.wav"]


# Several prompts, and conditions other than text


def test_each_clip_of_a_batch_can_be_made_alone(user: User) -> None:
    done = user.run("piano", "drums", "-n", "2", *SHORT, "--seed", "5", "-o", "all.wav", "--bit-depth", "32")
    assert (done.returncode, done.stderr) == (0, "")
    assert user.files == [f"all-{number}.wav" for number in (1, 2, 3, 4)]
    for number, line in enumerate(done.stdout.splitlines()[:4], 1):
        assert line == f"wrote all-{number}.wav: mono, 0.30 s, 32000 Hz, seed {number + 4}"
    prompt, seed, path = "drums", "8", user.folder / "all-4.wav"
    user.makes("one.wav", prompt, *SHORT, "--seed", seed, "-o", "one.wav", "--bit-depth", "32")
    together, alone = (soundfile.read(name)[0] for name in (path, user.folder / "one.wav"))
    np.testing.assert_allclose(together, alone, atol=1e-4)


def tune(user: User, seconds: float = 1.0, name: str = "tune.wav") -> np.ndarray:
    times = np.arange(int(44100 * seconds)) / 44100
    audio = np.stack([0.5 * np.sin(2 * np.pi * hertz * times) for hertz in (440, 660)], axis=1)
    soundfile.write(user.folder / name, audio, 44100)
    return soundfile.read(user.folder / name)[0]


@pytest.mark.parametrize("kind", ["melody", "style"])
def test_a_melody_and_a_style_change_the_music(user: User, kind: str) -> None:
    tune(user)
    arguments = ("piano", *SHORT, "-m", kind, "--seed", "1", "-o", "a.wav")
    plain = user.makes("a.wav", *arguments)
    conditioned = user.makes("a.wav", *arguments, f"--{kind}", "tune.wav")
    assert samples(conditioned) != samples(plain)
    if kind == "style":
        alone = user.makes("a.wav", *arguments[1:], "--style", "tune.wav")
        weighted = user.makes("a.wav", *arguments, "--style", "tune.wav", "--style-coef", "5")
        assert len({samples(clip) for clip in (plain, conditioned, alone, weighted)}) == 4


def test_a_model_without_the_condition_is_not_downloaded(newcomer: Newcomer) -> None:
    tune(newcomer)
    for model, option, can in (("small", "--melody", "melody"), ("melody", "--style", "style")):
        line = newcomer.fails("piano", "-m", model, option, "tune.wav", status=2)
        assert f"{option}: the model {model} can't be conditioned on a" in line
        assert can in line
    assert newcomer.hub.requests == []
    line = newcomer.fails("piano", "-m", "someone/finetune", "--melody", "tune.wav", status=2)
    assert "the model someone/finetune can't be conditioned on a melody" in line


def test_a_file_is_continued(user: User) -> None:
    before = tune(user)
    done = user.run("piano", "--continue", "tune.wav", *SHORT, "-o", "out.wav")
    assert done.returncode == 0, done.stderr
    after, rate = soundfile.read(user.folder / "out.wav")
    assert (rate, after.shape) == (44100, (44100 + 13230, 2))
    np.testing.assert_array_equal(after[:44100], before)


def test_stems_are_written(user: User) -> None:
    done = user.run("piano", *SHORT, "--stems", "-o", "out.wav")
    assert done.returncode == 0, done.stderr
    stems = [f"out-{name}.wav" for name in ("bass", "drums", "other", "vocals")]
    assert user.files == sorted(["out.wav", *stems])
    assert {soundfile.info(user.folder / name).frames for name in stems} == {SAMPLES}


def test_audiogen_makes_sounds(user: User) -> None:
    command = [sys.executable, "-m", "audiocraft_mlx.cli.audiogen", "rain", *SHORT, "--seed", "1"]
    done = subprocess.run(
        command, cwd=user.folder, env=user.environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("wrote audiogen_output.wav: mono, 0.30 s, 16000 Hz\nseed 1, "), done.stderr
    shown = user.run("--info", "audiogen_output.wav").stdout
    assert shown.endswith("make it again: audiogen-mlx rain --duration 0.3 --seed 1\n")


def test_the_command_of_a_clip_generates_it_again(user: User) -> None:
    options = ("--top-k", "5", "--temperature", "1.5", "--cfg-coef", "2", "--fade-out", "0.1", "-d", "0.3")
    first = user.makes("musicgen_output.wav", "-m", "demo", *options, "--", "--happy 'piano'")
    shown = user.run("--info", "musicgen_output.wav").stdout
    command = shlex.split(shown.splitlines()[-1].removeprefix("make it again: "))
    assert user.makes("musicgen_output-2.wav", *command[1:]) == first


# Streamed while it is generated


def test_standard_output_gets_the_file(user: User) -> None:
    with (user.folder / "out.wav").open("wb") as file:
        process = user.start("piano", *SHORT, "--seed", "1", "-o", "-", stdout=file)
        done = finished(process)
    assert done.returncode == 0
    assert re.fullmatch(r"seed 1, \d+\.\d s to make, \d+\.\d\dx real time\n", done.stderr)
    streamed, _ = soundfile.read(user.folder / "out.wav")
    user.makes("file.wav", "piano", *SHORT, "--seed", "1", "-o", "file.wav")
    written, _ = soundfile.read(user.folder / "file.wav")
    np.testing.assert_array_equal(streamed, written)


def test_a_reader_that_closes_the_pipe_ends_it_quietly(user: User) -> None:
    process = user.start("piano", "-m", "demo", "-d", "600", "-o", "-")
    assert process.stdout is not None
    head = process.stdout.buffer.read(1000)
    process.stdout.close()
    process.wait(LIMIT)
    assert head[:4] == b"RIFF"
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (0, "")
    for pipe in (process.stdin, process.stderr):
        pipe.close()


# Mistakes


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("-",),
        *(("piano", "-d", value) for value in ("0", "-1", "nan", "inf", "abc", "0.01")),
        *(("piano", "--top-k", value) for value in ("-1", "1.5")),
        ("piano", "--top-p", "2"),
        *(("piano", "--temperature", value) for value in ("-1", "nan")),
        ("piano", "--loud"),
        ("piano", "-o", "x.m4a"),
        ("piano", "-m", "not a name"),
        ("piano", "-m", ".", "--revision", "v1"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_no_file(user: User, arguments: tuple[str, ...]) -> None:
    user.fails(*arguments, status=2)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("someone/nothing", "no model 'someone/nothing' on the Hub"),
        ("someone/dataset", "someone/dataset has no MusicGen checkpoint"),
        ("./folder", "./folder has no MusicGen checkpoint"),
        ("./nowhere", "./nowhere: no such folder"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(newcomer: Newcomer, model: str, said: str) -> None:
    newcomer.hub.repos["someone/dataset"] = {"README.md": b"# Data", "train.parquet": b"?"}
    (newcomer.folder / "folder").mkdir()
    (newcomer.folder / "folder" / "notes.txt").touch()
    assert said in newcomer.fails("piano", "-m", model)


# Damaged, foreign and hostile checkpoints


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "is damaged"),
        ("empty", "is empty"),
        ("random", "is not a file saved by PyTorch"),
        ("malicious", "asks to run posix.system"),
    ],
)
def test_a_bad_checkpoint_is_refused_from_a_folder_and_from_the_hub(
    newcomer: Newcomer, goldens: Path, package: dict[str, Any], tmp_path: Path, damage: str, said: str
) -> None:
    marker = tmp_path / "marker"
    model = newcomer.folder / "model"
    model.mkdir()
    path = model / "state_dict.bin"
    if damage == "malicious":
        command = f"touch {marker}".encode()
        package["best_state"]["out_norm.bias"] = Opcodes(
            b"cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R"
        )
        write_torch_file(path, package)
    else:
        whole = (goldens / "goldens" / "mono" / "state_dict.bin").read_bytes()
        bad = {"truncated": whole[:-1000], "empty": b"", "random": np.random.default_rng(0).bytes(5000)}
        path.write_bytes(bad[damage])
    newcomer.hub.repos["someone/bad"] = {"state_dict.bin": path.read_bytes()}
    runs = [newcomer.start("piano", "-m", name) for name in ("./model", "someone/bad")]
    local, fetched = [failure(finished(run)) for run in runs]
    assert re.match(rf"model/state_dict\.bin.* {said}", local)
    assert re.match(rf"{re.escape(str(newcomer.cache))}/.*/state_dict\.bin.* {said}", fetched)
    assert newcomer.files == ["model"]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  dim: 64\n", "", "'transformer_lm.dim' in its configuration is missing"),
        ("  xpos: false\n", "  xpos: true\n", "'transformer_lm.xpos' in its configuration is True"),
        ("", "", "out_norm.weight has shape [63]"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(
    user: User, package: dict[str, Any], old: str, new: str, said: str
) -> None:
    assert old in package["xp.cfg"], "the test's own configuration has changed"
    package["xp.cfg"] = package["xp.cfg"].replace(old, new)
    if not old:
        package["best_state"]["out_norm.weight"] = np.zeros(63, np.float16)
    (user.folder / "model").mkdir()
    write_torch_file(user.folder / "model" / "state_dict.bin", package)
    line = user.fails("piano", "-m", "./model")
    assert line.startswith("model/state_dict.bin")
    assert said in line


# Places that can't be written


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("nowhere/x.wav", "nowhere does not exist"),
        ("file/x.wav", "file is not a folder"),
        ("folder.wav", "folder.wav is a folder"),
        ("locked/x.wav", "locked/x.wav can't be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(user: User, output: str, said: str) -> None:
    (user.folder / "file").touch()
    (user.folder / "folder.wav").mkdir()
    (user.folder / "locked").mkdir(mode=0o500)
    if output.startswith("locked") and os.access(user.folder / "locked", os.W_OK):
        pytest.skip("root may write everywhere")
    assert said in user.fails("piano", "-o", output)


def test_a_disk_that_is_full_in_the_end_leaves_no_half_file(user: User) -> None:
    line = user.fails("piano", *SHORT, limit=4)
    assert line == "musicgen_output.wav can't be written: File too large; free some space"


def test_a_cache_that_is_full_is_named(newcomer: Newcomer) -> None:
    line = newcomer.fails("piano", *SHORT, limit=64)
    assert line.startswith(f"{SMALL}: state_dict.bin: no space left in the cache {newcomer.cache}")


# A Hub in trouble


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "", "or a private one"),
        (403, "GatedRepo", "the Hub denies access (403)"),
        (500, "", "the Hub answers with error 500"),
        (None, "", "can't be reached"),
    ],
)
def test_a_hub_that_gives_nothing_is_one_line(
    newcomer: Newcomer, status: int | None, code: str, said: str
) -> None:
    if status is None:
        newcomer.hub.stop()
    else:
        newcomer.hub.fail(status, code)
    line = newcomer.fails("piano")
    assert SMALL in line
    assert said in line
    assert newcomer.blobs == []


def test_a_damaged_download_is_not_kept_and_the_next_run_works(newcomer: Newcomer, goldens: Path) -> None:
    whole = (goldens / "goldens" / "mono" / "state_dict.bin").read_bytes()
    newcomer.hub.corrupt("musicgen-small/state_dict.bin", whole[::-1], times=1)
    assert "state_dict.bin arrived damaged" in newcomer.fails("piano", *SHORT)
    assert newcomer.blobs == []
    newcomer.makes("musicgen_output.wav", "piano", *SHORT)


def test_a_lost_connection_is_resumed_by_the_next_run(
    newcomer: Newcomer, package: dict[str, Any], tmp_path: Path
) -> None:
    chunk = 10 * 2**20  # what has arrived is kept in pieces of this size
    package["optimizer"] = np.zeros(chunk + 2**20, np.uint8)
    write_torch_file(tmp_path / "state_dict.bin", package)
    newcomer.hub.repos[SMALL]["state_dict.bin"] = tmp_path / "state_dict.bin"
    newcomer.patch("import time; time.sleep = lambda seconds: None", tmp_path)  # between two attempts
    newcomer.hub.cut("musicgen-small/state_dict.bin", after=chunk + 2**19, times=1)
    newcomer.hub.cut("musicgen-small/state_dict.bin", after=0)
    assert "state_dict.bin: the connection was lost" in newcomer.fails("piano", *SHORT)
    (partial,) = newcomer.blobs
    assert partial.stat().st_size == chunk

    newcomer.hub.heal()
    newcomer.hub.requests.clear()
    newcomer.makes("musicgen_output.wav", "piano", *SHORT)
    large = [request for request in newcomer.hub.requests if request.path.startswith("/large/")]
    assert large[0].path.endswith("musicgen-small/state_dict.bin")
    assert large[0].range == f"bytes={chunk}-"
    assert newcomer.hub.fetched == NEEDED


# Interruptions


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes heed Ctrl-C even if the tests themselves run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until(fulfilled: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not fulfilled():
        with pytest.raises(subprocess.TimeoutExpired):  # else it has ended too early
            process.wait(0.01)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_loading(newcomer: Newcomer) -> None:
    newcomer.hub.delay("/large/", LIMIT)
    process = newcomer.start("piano", *SHORT)
    wait_until(lambda: any("/large/" in request.path for request in newcomer.hub.requests), process)
    process.send_signal(signal.SIGINT)
    assert failure(finished(process), 130) == "interrupted"
    assert newcomer.files == []


def read_terminal(terminal: int) -> bytes:
    """What has been written to a terminal; nothing once all its writers are gone."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way of saying that
        return b""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_generating_at_a_terminal(newcomer: Newcomer) -> None:
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("4H", 25, 120, 0, 0))
    process = newcomer.start("piano", "-d", "60", stderr=inside)
    os.close(inside)
    seen, interrupted = b"", False
    while shown := read_terminal(terminal):
        seen += shown
        steps = re.findall(rb"([\d.]+)/60\.0 s", seen)
        if not interrupted and steps and float(steps[-1]) > 3:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(terminal)
    done = finished(process)
    assert (done.returncode, done.stdout) == (130, "")
    assert b"state_dict.bin: 100%" in seen  # a download's bar
    said = rb"musicgen-mlx: error: interrupted; the (\S+) s made so far are kept in musicgen_output\.wav"
    kept = re.search(rb"x real time\]\r\n" + said + rb"\r\n$", seen)
    assert kept, seen
    assert b"Traceback" not in seen
    info = soundfile.info(newcomer.folder / "musicgen_output.wav")
    assert 0 < info.duration < 60
    assert info.duration == float(kept[1])
    assert newcomer.files == ["musicgen_output.wav"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_writing(user: User, tmp_path: Path) -> None:
    code = "import os, signal; os.replace = lambda *paths: signal.raise_signal(signal.SIGINT)"
    user.patch(code, tmp_path)
    (user.folder / "old.wav").write_text("old")
    assert user.fails("piano", *SHORT, "-o", "old.wav", status=130) == "interrupted"
    assert (user.folder / "old.wav").read_text() == "old"


def test_a_reader_that_has_gone_away_changes_nothing(user: User) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = user.run("piano", *SHORT, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert soundfile.info(user.folder / "musicgen_output.wav").frames == SAMPLES


def test_a_process_without_standard_streams_writes_its_file(user: User) -> None:
    command = [sys.executable, "-m", "audiocraft_mlx", "piano", "-d", "0.1", "--no-open"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command],
        cwd=user.folder,
        env=user.environment,
        check=False,
    )
    assert done.returncode == 0
    assert user.files == ["musicgen_output.wav"]
