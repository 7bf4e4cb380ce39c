"""Files of prompts in CSV and JSONL: what lines say, defaults, and what is wrong by line."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.clip_files import plan_files
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.defaults import AUDIOGEN
from audiocraft_mlx.clips.metadata import describe_request
from audiocraft_mlx.clips.naming import file_keys
from audiocraft_mlx.clips.prompt_files import PromptLine
from audiocraft_mlx.clips.prompt_lines import (
    LineDefaults,
    ListedClip,
    check_names,
    clips_of_line,
    line_of,
    read_values,
)
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions, OutputOptions
from audiocraft_mlx.conditioning.sections import Section
from audiocraft_mlx.server.schema import JobRequest
from tests.fake_model import FakeModel, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def command_of(*arguments: str) -> GenerateClips:
    command = parse([*arguments, "-m", "demo"])
    assert isinstance(command, GenerateClips)
    return command


def errors_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    before = sorted(os.listdir())
    assert main([*arguments, "-m", "demo", "--no-open"]) == 2
    assert sorted(os.listdir()) == before
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith("musicgen-mlx: error: ") and len(line) < 800 for line in err)
    return [line.removeprefix("musicgen-mlx: error: ") for line in err]


def of_line(values: dict[str, object], **defaults: object) -> ListedClip:
    (clip,) = clips_of_line(read_values(PromptLine(values)), LineDefaults(defaults, "wav", 5), 3, 7)
    return clip


CSV = """\ufeffPrompt,seed,duration,negative,output,loop,sections\r
calm piano,7.0,1e1,,a.flac,,"4: drums | 6~1: a band"\r
,,,,,,\r
"rock, ""loud""\r
and fast",,,vocals,,TRUE,\r
"""
JSONL = [
    {
        "prompt": "calm piano",
        "seed": 7,
        "duration": 10,
        "output": "a.flac",
        "sections": [{"start": 4, "text": "drums"}, {"start": 6, "text": "a band", "fade": 1}],
        "top_k": None,
    },
    {"prompt": 'rock, "loud"\nand fast', "negative": "vocals", "loop": True},
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "ndjson"])
def test_a_line_says_any_option_and_the_command_the_rest(fake: FakeModel, ending: str) -> None:
    path = Path(f"list.{ending}")
    path.write_bytes(CSV.encode() if ending == "csv" else "\n\n".join(map(json.dumps, JSONL)).encode())
    command = command_of(
        "flute", "--prompts", str(path), "--seed", "3", "-d", "2", "--top-k", "9", "-o", "b.wav"
    )
    sections = (Section(4.0, "drums"), Section(6.0, "a band", 1.0))
    text = 'rock, "loud"\r\nand fast' if ending == "csv" else 'rock, "loud"\nand fast'
    assert command.requests == (
        ClipRequest("flute", 3, 2.0, top_k=9),
        ClipRequest("calm piano", 7, 10.0, top_k=9, sections=sections),
        ClipRequest(text, 5, 2.0, top_k=9, negative="vocals", loop=True),
    )
    assert [clip.output.audio_format for clip in command.clips] == ["wav", "flac", "wav"]
    assert [clip.line for clip in command.clips] == [
        None,
        2 if ending == "csv" else 1,
        4 if ending == "csv" else 3,
    ]
    assert [file.path for file in plan_files(command)] == [Path("b-1.wav"), Path("a.flac"), Path("b-3.wav")]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_spreadsheets_separate_cells_otherwise(fake: FakeModel, separator: str) -> None:
    Path("a.csv").write_text(f'prompt{separator}seed{separator}\n"a{separator} b"{separator}4{separator}\n')
    assert [(r.prompt, r.seed) for r in command_of("--prompts", "a.csv").requests] == [(f"a{separator} b", 4)]


def test_a_text_file_may_have_any_other_ending(fake: FakeModel) -> None:
    Path("a.list").write_text('{"prompt": "x"}\n# no\na,b\n')
    assert [r.prompt for r in command_of("--prompts", "a.list").requests] == ['{"prompt": "x"}', "a,b"]


def test_lines_have_the_names_of_the_jobs_of_the_server() -> None:
    names = {field.alias or name for name, field in JobRequest.model_fields.items()}
    check_names(names - {"continue_at"})


def test_what_a_line_says_takes_the_place_of_defaults_that_it_excludes() -> None:
    assert of_line({"prompt": "a", "duration": 3}, bars=4, loop=True, bpm=120.0).request.duration == 3
    assert of_line({"prompt": "a", "bars": "4"}, duration=3.0, loop=True, bpm=120.0).request.duration == 8
    styled = of_line({"style": "s.wav"}, melody=Path("m.wav"), melody_separation="off").request
    assert (styled.style, styled.melody, styled.melody_separation) == (Path("s.wav"), None, None)
    edited = of_line({"prompt": "a", "edit": "e.wav"}, duration=9.0, replace=(1.0, 2.0)).request
    assert (edited.source, edited.duration) == (Path("e.wav"), 1.0)
    assert of_line({"prompt": "a", "output": "x.mp3"}, format="flac", bit_depth=24).output == OutputOptions(
        "mp3"
    )
    assert of_line({"prompt": "a", "output": "x"}, format="flac", bit_depth=24).output == OutputOptions(
        "flac"
    )


def test_a_line_is_the_same_clips_whoever_asks() -> None:
    values = read_values(PromptLine({"prompt": "a", "takes": 3, "seed": 2**32 - 1}))
    defaults = LineDefaults({"duration": 2.0}, "wav", 5)
    clips = clips_of_line(values, defaults, 10, 4)
    assert clips == clips_of_line(values, defaults, 10, 4)
    assert [(clip.index, clip.take, clip.first, clip.request.seed) for clip in clips] == [
        (10, 0, 10, 2**32 - 1),
        (11, 1, 10, 0),
        (12, 2, 10, 1),
    ]
    counted = clips_of_line({"prompt": "a", "takes": 2}, defaults, 10)
    assert [clip.request.seed for clip in counted] == [15, 16]


@pytest.mark.parametrize(
    ("request_", "output"),
    [
        (ClipRequest("a", 1, 2.0, top_k=3, cfg_coef=2.5, negative="b"), OutputOptions("flac", 24)),
        (
            ClipRequest("a", 1, sections=(Section(1, "b", 0.5),), temperature=0),
            OutputOptions(ending="natural"),
        ),
        (ClipRequest("a", 1, loop=True, bars=3, bpm=99.5), OutputOptions("wav", 32, "loudness", -20.0)),
        (ClipRequest("", 1, source=Path("a.wav"), replace=(1, 2.5), candidates=3), OutputOptions()),
        (ClipRequest("", 1, chords="C Am", bpm=100, decoding_steps=(9, 8)), OutputOptions(fade_out=1.0)),
    ],
)
def test_how_a_clip_was_made_is_a_line_that_makes_it_again(
    request_: ClipRequest, output: OutputOptions
) -> None:
    metadata = describe_request(request_, output, ModelOptions("demo", quantize=4))
    line = json.loads(json.dumps(line_of(metadata)))
    check_names(line)
    clip = of_line(line)
    assert (clip.request, clip.output) == (request_, output)


def test_the_model_is_what_lines_say_if_the_command_does_not(fake: FakeModel) -> None:
    Path("a.jsonl").write_text('{"prompt": "a", "model": "small", "quantize": 8}\n{"prompt": "b"}\n')
    command = parse(["--prompts", "a.jsonl"], AUDIOGEN)
    assert isinstance(command, GenerateClips)
    assert command.model == ModelOptions("small", quantize=8)
    command = parse(["--prompts", "a.jsonl", "-m", "facebook/musicgen-small", "-q", "8"])
    assert isinstance(command, GenerateClips)
    assert command.model == ModelOptions("facebook/musicgen-small", quantize=8)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "prompt,tempo\na,3\n", ["a.csv, line 1: 'tempo' is not known; known are prompt, seed"]),
        ("a.csv", "a tune\nb\n", ["the first line has the columns' names"]),
        ("a.csv", "prompt, prompt\na,3\n", ["a.csv, line 1: the column prompt is there twice"]),
        ("a.csv", "prompt,\na,3\n", ["a.csv, line 2: its cell 2 is in a column without a name"]),
        (
            "a.csv",
            "prompt\na, b\nc\nd, e\n",
            ["a.csv, line 2: it has 2 cells", "a.csv, line 4: it has 2 cells"],
        ),
        (
            "a.csv",
            '\n\nprompt\na\n"b\n',
            ["a.csv, line 5: its cells can't be told apart: unexpected end of data"],
        ),
        ("a.csv", 'prompt\n"a" b\n', ["a.csv, line 2: its cells can't be told apart"]),
        (
            "a.csv",
            'prompt\n"' + "a\n" * 200_000,
            ["a.csv, line 2: its cells can't be told apart: a cell is too long"],
        ),
        ("a.csv", "\0" * (1 << 21), ["a.csv, line 1: a line is longer than 1048576 characters"]),
        ("a.csv", "prompt,seed\n,\n", ["--prompts: a.csv has no prompts"]),
        ("a.csv", b"prompt\ncaf\xe9\n", ["--prompts: a.csv is not valid UTF-8; convert it first"]),
        (
            "a.csv",
            "prompt,seed\na,nan\nb,1.5\nc,-1\n",
            ["line 2: seed must be an integer", "line 3", "line 4"],
        ),
        (
            "a.csv",
            "prompt,duration\na,inf\nb,0\n",
            ["line 2: duration must be a number of seconds", "line 3"],
        ),
        ("a.csv", "prompt,loop\na,maybe\n", ["line 2: loop must be true or false, not 'maybe'"]),
        (
            "a.csv",
            "prompt,output\na,x/y.wav\nb,x.txt\n",
            ["line 3: x.txt doesn't end in the name of a format"],
        ),
        (
            "a.csv",
            "prompt,output\na,x/y.wav\n",
            ["a.csv, line 2: x/y.wav can't be written: x does not exist"],
        ),
        ("a.csv", "prompt,output\na,a.wav\nb,./a.wav\n", ["line 3: its file a.wav is line 2's, too"]),
        (
            "a.csv",
            "prompt,output\na,\nb,musicgen_output-1.wav\n",
            ["line 3: its file musicgen_output-1.wav is line"],
        ),
        ("a.csv", "prompt,output,format\na,a.csv,wav\n", ["line 2: its file a.csv is the file of prompts"]),
        (
            "a.csv",
            "prompt,continue,output\na,,x.wav\nb,x.wav,y.wav\n",
            ["line 2: its file x.wav is read by line 3"],
        ),
        ("a.csv", "prompt,edit\na,x.wav\n", ["line 2: edit needs replace"]),
        (
            "a.csv",
            "prompt,continue\na,x.wav\nb,a.csv\nc,x.wav\n",
            ["line 2: x.wav can't be read", "line 3: a.csv is not"],
        ),
        (
            "a.csv",
            "prompt,melody,span_arrangement\na,x,\nb,,stride1\n",
            ["line 2: melody: the model demo", "line 3: span_"],
        ),
        (
            "a.csv",
            "prompt,duration\na,0.1\nb,0.001\n",
            ["a.csv, line 3: duration must be at least one frame"],
        ),
        ("a.json", "[]", ["--prompts: a.json is not read as prompts; write one object a line"]),
        ("a.tsv", "prompt\ta", ["--prompts: a.tsv is not read as prompts; choose another ending: .csv"]),
        (
            "a.jsonl",
            '{"prompt": "a"\n{"prompt": "b"}\n[]\n',
            ["a.jsonl, line 1: it is not valid JSON", "line 3: it must be an"],
        ),
        ("a.jsonl", '{"prompt": "a", "seed": NaN}', ["line 1: NaN is no number of JSON"]),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ["line 1: prompt is there twice"]),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
            ["line 1: it has a number of thousands of digits"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "top_p": ' + "9" * 400 + "}",
            ["line 1: top_p must be a number from 0 to 1"],
        ),
        ("a.jsonl", "[" * 100_000, ["line 1: it is nested too deep"]),
        ("a.jsonl", '{"prompt": "' + "a" * (1 << 21), ["line 1: it is longer than 1048576 characters"]),
        ("a.jsonl", '{"prompt": "\\ud800"}', ["line 1: the prompt is not valid UTF-8"]),
        ("a.jsonl", '{"prompt": "a", "output": "\\ud800.wav"}', ["line 1: output must be a name"]),
        ("a.jsonl", '{"prompt": "a", "output": "-"}', ["line 1: output must be the name of a file"]),
        ("a.jsonl", '{"prompt": "a", "melody": "a\\u0000"}', ["line 1: melody must be a name, not 'a\\x00'"]),
        ("a.jsonl", '{"prompt": "a", "output": "a\\nb"}', ["line 1: output must be a name, not 'a\\nb'"]),
        (
            "a.jsonl",
            '{"prompt": "a", "model": "\\u001b[2J"}',
            ["line 1: model must be a name"],
        ),
        (
            "a.jsonl",
            '{"prompt": 3}\n{"prompt": "a", "sections": [1]}\n',
            ["line 1: prompt must be a string", "line 2: sections: a"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": true}\n{"prompt": "a", "takes": 0}\n',
            ["line 1: seed must be a", "line 2: takes must"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "model": "small"}\n',
            ["line 1: model is 'small' here, and 'demo' in the command"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "sha": 1, "sha256": "", "file": "a.wav"}\n',
            ["line 1: 'sha' is not known"],
        ),
        ("a.jsonl", '{"prompt": "a", "file": "a.wav"}\n', ["line 1: 'file' is not known"]),
        ("a.txt", "a\n" + "b" * 20_000, ["a.txt, line 2: it is longer than 10000 characters"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_by_line_and_nothing_is_made(
    fake: FakeModel,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes,
    expected: list[str],
) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    errors = errors_of(capsys, "--prompts", name)
    assert len(errors) == len(expected)
    for error, part in zip(errors, expected, strict=True):
        assert part in error
    assert not fake.prompts


def test_up_to_ten_errors_are_shown(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("prompt,seed\n" + "a,x\n" * 100_000)
    errors = errors_of(capsys, "--prompts", "a.csv")
    assert [error.split(":")[0] for error in errors] == [*(f"a.csv, line {n}" for n in range(2, 12)), "a.csv"]


def test_a_mistake_in_the_options_is_none_of_a_line(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_text("a\nb\n")
    assert errors_of(capsys, "--prompts", "a.txt", "--style-coef", "3") == [
        "--style-coef needs --style; try musicgen-mlx --help"
    ]
    Path("a.csv").write_text("prompt\na\n")
    (error,) = errors_of(capsys, "--prompts", "a.csv", "--keep-best", "1")
    assert error.startswith("--keep-best is for loops")


def test_a_clip_of_a_list_can_be_streamed_unless_its_line_says_otherwise(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ('"output": "a.wav"', '"format": "mp3"', '"stems": true', '"loop": true'):
        Path("a.jsonl").write_text(f'{{"prompt": "a", {line}}}\n')
        (error,) = errors_of(capsys, "--prompts", "a.jsonl", "-o", "-")
        assert error.startswith("a.jsonl, line 1: ")


def test_100_000_lines_are_planned_in_seconds(fake: FakeModel) -> None:
    lines = (f"tune {n},{n},{n % 9 + 1},out/{n}.flac\n" for n in range(100_000))
    Path("a.csv").write_text("prompt,seed,duration,output\n" + "".join(lines))
    Path("out").mkdir()
    command = command_of("--prompts", "a.csv")
    files = plan_files(command)
    assert (len(files), files[-1].path, command.requests[-1].seed) == (
        100_000,
        Path("out/99999.flac"),
        99_999,
    )


def test_on_a_mac_upper_and_lower_case_are_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Path("A/\u00e9.wav"), None, Path("A/E\u0301.WAV"), Path("A/../A/\u00e9.wav")]
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    keys = file_keys(names)
    assert (keys[1], len({*keys})) == (None, 3)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert len({*file_keys(names)}) == 2
