"""Many clips: manifests, runs that go on, shards, and lists that read more audio than fits into memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.clip_files import plan_files
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.codes import read_codes
from audiocraft_mlx.clips.manifest import Manifest
from audiocraft_mlx.clips.metadata import read_metadata
from audiocraft_mlx.clips.portions import portions
from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.clips.requests import ClipRequest, OutputOptions
from audiocraft_mlx.clips.shards import Shard
from audiocraft_mlx.errors import OutputError, UsageError
from tests.fake_model import FakeModel, install, raiser

LIST = ["--prompts", "list.csv", "-m", "demo", "--no-open"]
TAKES = [*LIST, "-o", "a.wav"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = install(monkeypatch, tmp_path)
    lines = "".join(f"tune {n},{0.1 + n % 2 / 10}\n" for n in range(6))
    Path("list.csv").write_text(f"prompt,duration\n{lines}")
    return model


def made(fake: FakeModel, *arguments: str) -> dict[str | None, int]:
    """The prompts and seeds that one run generates."""
    fake.prompts.clear()
    fake.seeds.clear()
    assert main([*arguments]) == 0
    return dict(zip(fake.prompts, fake.seeds, strict=True))


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_manifest_has_a_line_for_each_file(fake: FakeModel) -> None:
    made(fake, *TAKES, "--seed", "9", "--manifest", "m.jsonl", "flute", "--top-k", "3")
    lines = {line["file"]: line for line in lines_of("m.jsonl")}
    assert sorted(lines) == [f"a-{n}.wav" for n in range(1, 8)]
    for path, line in lines.items():
        assert line["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    line = lines["a-3.wav"]
    assert (line["line"], line["prompt"], line["seed"], line["model"]) == (3, "tune 1", 11, "demo")
    assert (line["seconds"], line["sample_rate"], line["duration"], line["top_k"]) == (0.2, 32000, 0.2, 3)
    assert "line" not in lines["a-1.wav"]


def test_a_manifest_makes_its_clips_again(fake: FakeModel) -> None:
    first = made(fake, *TAKES, "--seed", "9", "--manifest", "m.jsonl", "--negative", "drums", "-q", "4")
    again = made(fake, "--prompts", "m.jsonl", "-o", "b.wav", "--manifest", "n.jsonl")
    assert again == first
    assert fake.load_options["quantize"] == 4
    old, new = lines_of("m.jsonl"), lines_of("n.jsonl")
    assert sorted(line["sha256"] for line in old) == sorted(line["sha256"] for line in new)


def test_a_manifest_is_appended_to_in_whole_lines(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("m.jsonl")
    first, second = ({"file": name, "sha256": ""} for name in "ab")
    Manifest(path).append(first)
    Manifest(path).append(second)
    path.write_bytes(path.read_bytes() + b'{"file": "c", "sha')  # as a power failure leaves it
    manifest = Manifest(path)
    assert manifest.files == {"a": "", "b": ""}
    write = os.write

    def run_full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", run_full)
        with pytest.raises(OutputError, match=r"m\.jsonl can't be written: No space left"):
            manifest.append({"file": "c", "sha256": ""})
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().endswith(b"\n")


def test_a_file_that_is_made_again_gets_another_line_unless_it_is_the_same(fake: FakeModel) -> None:
    same, other = {"file": "a", "sha256": "1"}, {"file": "a", "sha256": "2"}
    for line in (same, same, other, other, same):
        Manifest(Path("m.jsonl")).append(line)
    assert lines_of("m.jsonl") == [same, other, same]


@pytest.mark.parametrize("content", ["a tune\n", '{"prompt": "a"}\n', "[]\n", "\0" * 100])
def test_no_other_file_is_taken_for_a_manifest(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    Path("m.jsonl").write_text(content)
    assert main([*TAKES, "--manifest", "m.jsonl"]) == 2
    assert "m.jsonl is there, and its line 1 is none of a manifest" in capsys.readouterr().err
    assert Path("m.jsonl").read_text() == content
    assert main([*TAKES, "--manifest", "list.csv"]) == 2
    assert "--manifest is the file that --prompts reads" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [["--seed", "9"], []])
def test_an_interrupted_run_goes_on_with_the_seeds_that_it_had(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], seed: list[str]
) -> None:
    run = [*TAKES, *seed, "--manifest", "m.jsonl", "--skip-existing"]
    fake.before = lambda: fake.batches[1:] and raiser(KeyboardInterrupt())()
    assert main(run) == 130
    first = dict(zip(fake.prompts, fake.seeds, strict=True))
    whole = ["tune 1", "tune 3", "tune 5"]  # the longer ones
    assert [line["prompt"] for line in lines_of("m.jsonl")] == whole
    # The next ones are interrupted in the midst.
    fake.before, fake.during = lambda: None, raiser(KeyboardInterrupt())
    assert main(run) == 130
    assert "are kept in a-1.wav" in capsys.readouterr().err
    metadata = read_metadata("a-1.wav")
    assert metadata is not None
    assert metadata.partial
    main(["--info", "a-1.wav"])
    assert "interrupted: this is what was made until then" in capsys.readouterr().out
    assert [line["prompt"] for line in lines_of("m.jsonl")] == whole
    fake.during = lambda: None
    rest = made(fake, *run)
    assert "3 of 6 clips are there already" in capsys.readouterr().out
    assert sorted(map(str, rest)) == ["tune 0", "tune 2", "tune 4"]
    start = first["tune 1"] - 1
    assert {**first, **rest} == {f"tune {n}": start + n for n in range(6)}
    metadata = read_metadata("a-1.wav")
    assert metadata is not None
    assert not metadata.partial
    Path("m.jsonl").unlink()
    fake.load_options = {}
    assert made(fake, *run) == {}
    assert not fake.loaded
    assert sorted(line["prompt"] for line in lines_of("m.jsonl")) == [f"tune {n}" for n in range(6)]
    made(fake, *run)
    assert len(lines_of("m.jsonl")) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: ["--seed", "8"],
            "list.csv, line 2: a-1.wav is there, and was made with another seed: 9, not 8",
        ),
        (lambda: ["-q", "8"], "was made with another quantize: the default, not 8"),
        (lambda: ["--cfg-coef", "2"], "was made with another cfg_coef: the default, not 2.0"),
        (lambda: Path("a-4.wav").write_text("mine"), "line 5: a-4.wav has damaged tags"),
        (
            lambda: Path("list.wav").rename("a-4.wav"),
            "line 5: a-4.wav is there, and has no tags that say how",
        ),
    ],
)
def test_what_was_made_otherwise_is_not_lost(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], change: Callable[[], Any], message: str
) -> None:
    main(["x", "-o", "list.wav", "-d", "0.1", "--no-tags", "--no-open"])
    made(fake, *TAKES, "--seed", "9")
    result = change()
    before = {path: path.read_bytes() for path in Path().iterdir()}
    seed = [] if isinstance(result, list) and result[0] == "--seed" else ["--seed", "9"]
    assert main([*TAKES, *seed, *(result if isinstance(result, list) else []), "--skip-existing"]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_the_name_of_a_released_model_may_be_short(fake: FakeModel) -> None:
    made(fake, "a", "b", "-o", "a.wav", "-d", "0.1", "-m", "small")
    again = ["a", "b", "c", "-d", "0.1", "-m", "facebook/musicgen-small", "--skip-existing"]
    assert list(made(fake, *again, "-o", "a.wav")) == ["c"]


def test_stems_and_plots_that_are_missing_are_made(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    made(fake, *TAKES, "--plot", "p.png", "--seed", "1")
    Path("p-3.png").unlink()
    assert list(made(fake, *TAKES, "--plot", "p.png", "--seed", "1", "--skip-existing")) == ["tune 2"]


def test_loops_are_there_if_all_that_are_kept_are() -> None:
    from audiocraft_mlx.clips.shards import made_together

    loop = ClipRequest("a", 1, loop=True)
    clips = [ListedClip(n, loop, OutputOptions(), take=n % 3, takes=3) for n in range(6)]
    clips += [ListedClip(6 + n, ClipRequest("b", 1), OutputOptions(), take=n, takes=2) for n in range(2)]
    assert [[clip.index for clip in group] for group in made_together(clips)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [7],
    ]
    assert [clip.index for clip in Shard(2, 3).clips(clips)] == [3, 4, 5]
    assert [clip.index for clip in Shard(1, 3).clips(clips)] == [0, 1, 2, 7]


def test_shards_make_the_clips_of_the_whole_list_once(fake: FakeModel) -> None:
    whole = made(fake, *TAKES, "--seed", "9")
    files = {path.name: path.read_bytes() for path in Path().glob("a-*")}
    for path in Path().glob("a-*"):
        path.unlink()
    shards = [made(fake, *TAKES, "--seed", "9", "--shard", f"{number}/4") for number in range(1, 5)]
    assert [list(shard) for shard in shards] == [
        ["tune 0", "tune 4"],
        ["tune 1", "tune 5"],
        ["tune 2"],
        ["tune 3"],
    ]
    assert {prompt: seed for shard in shards for prompt, seed in shard.items()} == whole
    assert {path.name: path.read_bytes() for path in Path().glob("a-*")} == files


def test_a_shard_without_clips_is_no_failure(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(fake, *TAKES, "--seed", "9", "--shard", "7/7") == {}
    assert "the list has 6 clips, and none is of it" in capsys.readouterr().out
    assert not fake.loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TAKES, "--shard", "1/2"], "--shard needs --seed, the same for all shards"),
        ([*LIST, "--shard", "1/2", "--seed", "1"], "--shard needs names that are the same each time"),
        ([*LIST, "--skip-existing"], "--skip-existing needs names that are the same each time"),
        ([*TAKES, "--skip-existing", "--no-tags"], "leave --no-tags out"),
        (["a", "-o", "-", "--manifest", "m.jsonl"], "--manifest is for files"),
        ([*TAKES, "--shard", "0/2"], "must be I/N with I from 1 to N"),
        ([*TAKES, "--shard", "3/2"], "must be I/N with I from 1 to N"),
        ([*TAKES, "--shard", "1"], "must be I/N with I from 1 to N"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_lines_with_seeds_and_names_need_no_options_to_be_shared(fake: FakeModel) -> None:
    Path("list.csv").write_text("prompt,seed,output\na,1,x.wav\nb,2,y.wav\n")
    assert made(fake, *LIST, "-d", "0.1", "--shard", "2/2", "--skip-existing") == {"b": 2}
    assert made(fake, *LIST, "-d", "0.1", "--skip-existing") == {"a": 1}


def test_each_line_has_its_own_format_and_takes(fake: FakeModel) -> None:
    Path("list.csv").write_text("prompt,takes,output,format\na,2,x.flac,\nb,,,ogg\nc,,,\n")
    command = parse(TAKES)
    assert isinstance(command, GenerateClips)
    names = ["x-1.flac", "x-2.flac", "a-3.ogg", "a-4.wav"]
    assert [file.path for file in plan_files(command)] == [Path(name) for name in names]
    made(fake, *TAKES, "-d", "0.1")
    assert all(read_metadata(name) is not None for name in names)


def test_a_default_name_does_not_count_for_a_clip_that_has_one(fake: FakeModel) -> None:
    Path("list.csv").write_text("prompt,output\na,x.wav\nb,\nc,\n")
    Path("musicgen_output-1.wav").touch()
    Path("musicgen_output-2.wav").touch()
    command = parse(LIST)
    assert isinstance(command, GenerateClips)
    files = plan_files(command)
    assert [str(file.path) for file in files] == ["x.wav", "musicgen_output-4.wav", "musicgen_output-5.wav"]
    assert [file.overwrite for file in files] == [True, False, False]


def test_more_audio_than_fits_into_memory_is_read_in_its_turn(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [ClipRequest("a", n, source=Path(f"{n // 2}.wav")) for n in range(40)]
    clips = [ListedClip(n, request, OutputOptions()) for n, request in enumerate(sources)]
    assert list(portions(clips)) == [range(32), range(32, 40)]
    assert list(portions(clips, 30)) == [range(40)]
    assert list(portions([])) == []
    main(["x", "-o", "source.wav", "-d", "0.1", "--no-open"])
    content = Path("source.wav").read_bytes()
    for n in range(20):
        Path(f"s{n}.wav").write_bytes(content)
    lines = "".join(f"tune {n},s{n}.wav,o{n}.wav\n" for n in range(20))
    Path("list.csv").write_text(f"prompt,continue,output\n{lines}")
    assert len(made(fake, *LIST, "-d", "0.1", "--seed", "1")) == 20
    for n in range(20):
        metadata = read_metadata(f"o{n}.wav")
        assert metadata is not None
        assert metadata.options["continue"] == f"s{n}.wav"


def test_two_shards_at_once_make_the_clips_of_one_process(tmp_path: Path) -> None:
    lines = "".join(f"tune {n},{0.2 + n % 3 / 5:g}\n" for n in range(8))
    (tmp_path / "list.csv").write_text(f"prompt,duration\n{lines}")
    run = [sys.executable, "-m", "audiocraft_mlx", *LIST, "--seed", "3"]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*run, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)

    for folder in ("whole", "shared"):
        (tmp_path / folder).mkdir()
    shards = [("-o", "shared/a.wav", "--manifest", "m.jsonl", "--shard", f"{n}/2") for n in (1, 2)]
    processes = [start("-o", "whole/a.wav"), *(start(*shard) for shard in shards)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    files = [json.loads(line)["file"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert sorted(files) == [f"shared/a-{n}.wav" for n in range(1, 9)]
    for n in range(1, 9):
        whole, shared = (tmp_path / folder / f"a-{n}.wav" for folder in ("whole", "shared"))
        assert read_metadata(whole) == read_metadata(shared)
        codes = read_codes(whole), read_codes(shared)
        assert codes[0] is not None
        assert codes[1] is not None
        assert (codes[0].codes == codes[1].codes).all()


def test_a_shard_is_what_its_text_says() -> None:
    assert str(Shard.parse("03/10")) == "3/10"
    for text in ("1/0", "-1/2", "1//2", "", "a/b", "1/2/3"):
        with pytest.raises(UsageError, match="must be I/N"):
            Shard.parse(text)
