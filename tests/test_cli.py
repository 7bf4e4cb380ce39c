import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

import audiocraft_mlx
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.cli import audiogen, bench, convert, doctor
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.errors import CheckpointError, DownloadError

from .fake_model import MODULES, FakeModel, install, raiser


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audiocraft_mlx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_a_prompt_becomes_a_file(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lo-fi, soft piano", "--no-open", "--seed", "7", "-d", "0.5"]) == 0
    assert fake.prompts == ["lo-fi, soft piano"]
    info = soundfile.info("musicgen_output.wav")
    assert (info.channels, info.samplerate, info.frames) == (2, 32000, 16000)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == "wrote musicgen_output.wav: stereo, 0.50 s, 32000 Hz"
    assert re.fullmatch(r"seed 7, \d+\.\d s to make, \d+\.\d\dx real time", out.splitlines()[1])
    assert len(out.splitlines()) == 2


def test_what_is_not_given_is_left_to_the_model(fake: FakeModel) -> None:
    assert main(["piano", "--no-open"]) == 0
    assert 0 <= fake.seeds[0] < 2**32
    assert {**fake.load_options, **fake.params[0]} == {
        "name": "facebook/musicgen-small",
        "revision": None,
        "quantize": None,
        "int8_activations": False,
        "cache_bits": None,
        "weights": None,
        "lora": (),
        "duration": 8.0,
        "top_k": None,
        "top_p": None,
        "temperature": None,
        "cfg_coef": None,
        "cfg_coef_beta": None,
    }


def test_every_option_reaches_the_model(fake: FakeModel) -> None:
    options = "-m stereo-small --revision abc -q 8 --fast --cache-bits 8 --weights tuned.pt -o clip.wav"
    options += " -d 0.25 --top-k 0 --top-p 0.9 --temperature 0 --lora mine --lora somebody/theirs@0.5"
    assert main(["piano", *options.split(), "--cfg-coef", "-1.5", "--seed", "4294967295", "--no-open"]) == 0
    assert {**fake.load_options, **fake.params[0]} == {
        "name": "stereo-small",
        "revision": "abc",
        "quantize": 8,
        "int8_activations": True,
        "cache_bits": 8,
        "weights": "tuned.pt",
        "lora": (LoraSpec("mine"), LoraSpec("somebody/theirs", 0.5)),
        "duration": 0.25,
        "top_k": 0,
        "top_p": 0.9,
        "temperature": 0.0,
        "cfg_coef": -1.5,
        "cfg_coef_beta": None,
    }
    assert fake.seeds == [4294967295]
    assert Path("clip.wav").exists()


def test_long_options_are_the_short_ones(fake: FakeModel) -> None:
    assert main(["--model", "large", "--output", "Clip.WAV", "--duration", "0.25", "piano"]) == 0
    assert (fake.load_options["name"], fake.params[0]["duration"]) == ("large", 0.25)
    assert Path("Clip.WAV").exists()


def test_two_runs_draw_different_seeds(fake: FakeModel) -> None:
    for _ in range(3):
        main(["piano", "-d", "0.1"])
    assert len({*fake.seeds}) > 1


def test_without_a_name_no_file_is_replaced(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    Path("musicgen_output.wav").write_text("mine")

    # As another run does while this one is busy.
    def take_the_next_name() -> None:
        Path("musicgen_output-2.wav").write_text("also mine")

    fake.during = take_the_next_name
    assert main(["piano", "-d", "0.1"]) == 0
    assert Path("musicgen_output.wav").read_text() == "mine"
    assert Path("musicgen_output-2.wav").read_text() == "also mine"
    assert soundfile.info("musicgen_output-3.wav").frames == 3200
    assert "wrote musicgen_output-3.wav:" in capsys.readouterr().out


def test_a_named_file_is_replaced(fake: FakeModel) -> None:
    Path("clip.wav").write_text("old")
    assert main(["piano", "-d", "0.1", "-o", "clip.wav"]) == 0
    assert soundfile.info("clip.wav").frames == 3200


def test_a_clip_that_was_scaled_says_so(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    fake.peak = 1.324
    assert main(["piano", "-d", "0.1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "peak 1.32 scaled down to full scale"


def test_the_prompt_can_come_from_standard_input(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("détente, piano\n".encode()), "ascii"))
    assert main(["-", "-d", "0.1"]) == 0
    assert fake.prompts == ["détente, piano"]


@pytest.mark.parametrize(
    ("stdin", "message"), [(b"\n", "the prompt is empty"), (b"\xff\xfe", "not valid UTF-8")]
)
def test_an_unusable_prompt_on_standard_input_is_refused(
    fake: FakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert main(["-"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the prompt is missing"),
        ([""], "the prompt is empty"),
        ([" \t"], "the prompt is empty"),
        (["\udcff"], "not valid UTF-8"),
        (["lo-fi", ""], "the prompt is empty"),
        (["-", "-"], "standard input holds one prompt"),
        (["piano", "--loud"], "unknown option --loud"),
        (["piano", "--temp", "1"], "unknown option --temp"),
        (["piano", "--bad\noption"], "unknown option --bad option"),
        (["piano", "-d"], "--duration: expected one argument"),
        *(
            (["piano", "-d", value], f"must be a number of seconds above 0 and below 1000000, not '{value}'")
            for value in ("0", "-1", "nan", "inf", "1e308", "ten")
        ),
        *(
            (["piano", "-q", value], f"--quantize: invalid choice: {value} (choose from 4, 8)")
            for value in ("3", "16", "-4")
        ),
        (["piano", "-q", "half"], "--quantize: invalid int value: 'half'"),
        *(
            (["piano", "--top-k", value], f"--top-k: must be an integer, 0 or more, not '{value}'")
            for value in ("-1", "2.5", "many", "9" * 500, "9" * 5000)
        ),
        *(
            (["piano", "--top-p", value], f"--top-p: must be a number from 0 to 1, not '{value}'")
            for value in ("-0.1", "1.1", "nan", "most")
        ),
        *(
            (["piano", "--temperature", value], f"--temperature: must be a number, 0 or more, not '{value}'")
            for value in ("-0.1", "nan", "inf", "hot")
        ),
        *(
            (["piano", "--cfg-coef", value], f"--cfg-coef: must be a number, not '{value}'")
            for value in ("nan", "inf", "some")
        ),
        *(
            (
                ["piano", "--seed", value],
                f"--seed: must be an integer from 0 to 4294967295, not '{value}'",
            )
            for value in ("-1", "4294967296", "1.5", "x")
        ),
        *(
            (["piano", "-o", value], f"{value} doesn't end in the name of a format; choose one of wav, flac,")
            for value in ("clip.m4a", "clip", ".wav")
        ),
        *((["piano", "-o", value], "--output: must be the name of a file") for value in (".", "")),
        (["piano", "-o", "a.wav", "--format", "mp3"], "a.wav ends in .wav, but the format is mp3"),
        (["piano", "--format", "aiff"], "--format: invalid choice: 'aiff'"),
        (["piano", "--format", "mp3", "--bit-depth", "16"], "mp3 has no bit depth"),
        (["piano", "-o", "a.flac", "--bit-depth", "32"], "flac has 16 or 24 bits per sample"),
        (["piano", "--bit-depth", "8"], "--bit-depth: invalid choice: 8"),
        (["piano", "--normalize", "rms"], "--normalize: invalid choice: 'rms'"),
        (["piano", "--lufs", "-14"], "--lufs needs --normalize loudness"),
        (["piano", "--normalize", "loudness", "--lufs", "3"], "--lufs: must be a number from -70 to 0"),
        *(
            (["piano", "--fade-out", value], "--fade-out: must be a number of")
            for value in ("0", "-1", "nan")
        ),
        *((["piano", "-n", value], "--takes: must be an integer from 1") for value in ("0", "-1", "1.5")),
        (["piano", "drums", "-n", "60000"], "these are 120000 clips; ask for 100000 at most"),
        (["piano", "--prompts", "none.txt"], "none.txt can't be read: No such file"),
        (["piano", "--melody", "a.wav", "--style", "a.wav"], "no model supports both"),
        (
            ["piano", "--melody", "a.wav"],
            "the model facebook/musicgen-small can't be conditioned on a melody; choose one",
        ),
        (
            ["piano", "--style", "a.wav", "-m", "melody"],
            "the model melody can't be conditioned on a style; choose one",
        ),
        (
            ["piano", "--melody", "a.wav", "-m", "style"],
            "the model style can't be conditioned on a melody; choose one",
        ),
        (
            ["piano", "--melody", "a.wav", "-m", "demo"],
            "the model demo can't be conditioned on a melody; choose one",
        ),
        (["piano", "--style-coef", "5"], "--style-coef needs --style"),
        (["piano", "--prompt-seconds", "5"], "--prompt-seconds needs --continue"),
        (["piano", "--continue", "a.wav", "--prompt-seconds", "0"], "must be a number of seconds above 0"),
        (["piano", "-o", "-", "--format", "flac"], "standard output gets WAV, and flac needs a file"),
        (["piano", "-o", "-", "--stems"], "--stems are written beside a file"),
        (["piano", "-o", "-", "-n", "2"], "standard output holds one clip, not 2"),
        (["piano", "--info", "a.wav"], "--info shows a file and generates nothing"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("musicgen-mlx: error: ")
    assert err.endswith("; try musicgen-mlx --help\n")
    assert err.count("\n") == 1
    assert message in err
    assert not fake.loaded


@pytest.mark.parametrize("place", ["none/clip.wav", "folder.wav"])
def test_the_place_of_the_output_is_checked_before_the_model_is_loaded(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    Path("folder.wav").mkdir()
    assert main(["piano", "-o", place]) == 1
    assert re.fullmatch(rf"musicgen-mlx: error: {place} .*\n", capsys.readouterr().err)
    assert not fake.loaded


@pytest.mark.parametrize("place", ["out", "out/", "./out"])
def test_for_a_folder_a_name_in_it_is_suggested(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    Path("out").mkdir()
    for options in ([], ["--format", "mp3"]):
        assert main(["piano", "-o", place, *options]) == 2
        said = f"{place} is a folder; give the name of a file in it, such as out/musicgen_output.wav;"
        assert said in capsys.readouterr().err
    assert main(["piano", "-o", "."]) == 2
    assert "not '.'; give one in it, such as musicgen_output.wav;" in capsys.readouterr().err
    assert not fake.loaded


@pytest.mark.parametrize(
    "run_main", [main, audiogen.main, bench.main, convert.main, doctor.main], ids=lambda main: main.__module__
)
def test_help_fits_into_80_columns(
    run_main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run_main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_more_than_a_wav_file_holds_is_refused_before_it_is_generated(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["piano", "-d", "99999"]) == 1
    assert "4 GiB" in capsys.readouterr().err
    assert fake.prompts == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            CheckpointError("model.bin is damaged;\ndownload it again"),
            1,
            "model.bin is damaged; download it again",
        ),
        (DownloadError("the Hub can't be reached"), 1, "the Hub can't be reached"),
        (audiocraft_mlx.UsageError("temperature is too low"), 2, "temperature is too low"),
        (MemoryError(), 1, "out of memory; try a shorter --duration or a smaller --model"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_one_line_and_leaves_no_file(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    fake.during = raiser(error)
    assert main(["piano", "-d", "0.1"]) == status
    assert capsys.readouterr().err == f"musicgen-mlx: error: {line}\n"
    assert os.listdir() == []


def test_a_bug_is_not_hidden(fake: FakeModel) -> None:
    fake.during = raiser(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["piano", "-d", "0.1"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_progress(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["piano", "-d", "2"]) == 0
    assert re.search(r"100%\|.*\| 2\.0/2\.0 s \[.*x real time\]", terminal.getvalue())


def test_a_plot_can_be_saved_beside_it(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["piano", "-d", "0.5", "--plot", "clip.png", "--no-open"]) == 0
    assert Path("clip.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines()[-1] == "drew clip.png"


@pytest.mark.parametrize("place", ["clip.jpg", "nowhere/clip.png"])
def test_a_plot_that_cannot_be_saved_is_refused_before_the_model_is_loaded(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    assert main(["piano", "--plot", place]) in (1, 2)
    assert not fake.loaded
    assert "clip." in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("platform", "options", "opened"),
    [("darwin", [], True), ("darwin", ["--no-open"], False), ("linux", [], False)],
)
def test_the_file_is_opened_on_macos_alone(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, platform: str, options: list[str], opened: bool
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    assert main(["piano", "-d", "0.1", "-o", "clip.wav", *options]) == 0
    assert commands == ([["open", str(Path("clip.wav").resolve())]] if opened else [])


def test_a_file_name_that_standard_output_cannot_show_is_escaped(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["piano", "-d", "0.1", "-o", "été.wav"]) == 0
    out.seek(0)
    assert out.readline().startswith("wrote \\xe9t\\xe9.wav: ")


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("generate", "musicgen-mlx"),
        ("audiogen", "audiogen-mlx"),
        ("convert", "musicgen-mlx-convert"),
        ("bench", "musicgen-mlx-bench"),
        ("doctor", "musicgen-mlx-doctor"),
        ("train", "musicgen-mlx-train"),
    ],
)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str, module: str, program: str) -> None:
    script = f"""
import sys
from audiocraft_mlx.cli.{module} import main
try:
    main([{option!r}])
finally:
    heavy = {{"mlx", "numpy", "soundfile", "huggingface_hub", "tokenizers", "omegaconf", "tqdm"}}
    print("heavy:", *sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert program in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_version_and_help_say_what_they_should() -> None:
    assert run("--version").stdout == f"musicgen-mlx {audiocraft_mlx.__version__}\n"
    text = run("--help").stdout
    assert text.startswith("usage: musicgen-mlx ")
    for option in (
        "--model",
        "--output",
        "--duration",
        "--no-open",
        "--top-k",
        "--temperature",
        "--cfg-coef",
    ):
        assert option in text
    for group in ("model:", "what to play:", "output:", "sampling:"):
        assert f"\n{group}\n" in text


def test_the_process_exits_with_the_status() -> None:
    done = run("")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "musicgen-mlx: error: the prompt is empty; say what to play; try musicgen-mlx --help\n"
    )


def test_no_standard_input_is_an_empty_prompt() -> None:
    done = run("-", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the prompt is empty" in done.stderr


def test_a_reader_that_has_gone_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "audiocraft_mlx", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_standard_output_that_is_full_is_an_error_in_one_line() -> None:
    command = [sys.executable, "-m", "audiocraft_mlx", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "musicgen-mlx: error: standard output can't be written: No space left on device; free some space\n"
    )


def test_the_public_names_are_there(fake: FakeModel) -> None:
    assert audiocraft_mlx.MusicGen is sys.modules[MODULES["MusicGen"]].MusicGen  # type: ignore[attr-defined]
    assert set(audiocraft_mlx.__all__) <= set(dir(audiocraft_mlx))
    with pytest.raises(AttributeError, match="Magnet"):
        audiocraft_mlx.Magnet  # noqa: B018
