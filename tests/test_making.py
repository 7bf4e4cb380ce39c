"""What the command does around the model: several clips, files, streams, interruptions."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx import machine
from audiocraft_mlx.audio import plot, write
from audiocraft_mlx.audio.formats import BIT_DEPTHS
from audiocraft_mlx.audio.loudness import fade_out, normalize_audio
from audiocraft_mlx.checkpoints import demucs
from audiocraft_mlx.cli import audiogen
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.making import RunningClips
from audiocraft_mlx.clips.metadata import read_metadata
from audiocraft_mlx.clips.planning import WaitingClips, plan_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.models import memory

from .fake_model import FakeModel, install, raiser

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

RATE = 32000


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def read(name: str) -> np.ndarray:
    return soundfile.read(name, dtype="float32", always_2d=True)[0].T


def tone(name: str, seconds: float = 1.0, rate: int = 44100, channels: int = 2, **options: str) -> np.ndarray:
    wave = 0.5 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 441 / rate)
    soundfile.write(name, np.stack([wave] * channels, axis=1), rate, **options)
    return read(name)


def ramp(samples: int, peak: float = 0.5) -> np.ndarray:
    wave = np.linspace(-peak, peak, samples, dtype=np.float32)
    return np.stack([wave, -wave])


# Several clips


def test_several_prompts_become_numbered_files(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["piano", "-d", "0.1", "drums", "--seed", "7", "flute"]) == 0
    assert fake.prompts == ["piano", "drums", "flute"]
    assert names() == [f"musicgen_output-{number}.wav" for number in (1, 2, 3)]
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        f"wrote musicgen_output-{row + 1}.wav: stereo, 0.10 s, 32000 Hz, seed {7 + row}" for row in range(3)
    ]
    assert re.fullmatch(r"3 clips, \d+\.\d s to make, \d+\.\d\dx real time", out[3])
    metadata = read_metadata(Path("musicgen_output-2.wav"))
    assert metadata is not None
    assert (metadata.prompt, metadata.seed) == ("drums", 8)
    assert metadata.to_command() == "musicgen-mlx drums --duration 0.1 --seed 8"


def test_takes_are_side_by_side_and_seeds_wrap_around(fake: FakeModel) -> None:
    assert main(["piano", "drums", "-n", "2", "-d", "0.1", "--seed", str(2**32 - 1), "-o", "out.flac"]) == 0
    assert fake.prompts == ["piano", "piano", "drums", "drums"]
    metadata = [read_metadata(Path(name)) for name in names()]
    assert names() == [f"out-{number}.flac" for number in (1, 2, 3, 4)]
    assert [each.seed for each in metadata if each] == [2**32 - 1, 0, 1, 2]


def test_prompts_come_from_a_file(fake: FakeModel) -> None:
    Path("list.txt").write_bytes(b"\xef\xbb\xbfpiano\r\n\n# no comments\n  drums, \xc3\xa9t\xc3\xa9 \n")
    assert main(["flute", "--prompts", "list.txt", "-d", "0.1"]) == 0
    assert fake.prompts == ["flute", "piano", "drums, été"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"# nothing\n\n", "has no prompts"), (b"\xff", "is not valid UTF-8")]
)
def test_a_file_without_prompts_is_refused(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    Path("list.txt").write_bytes(content)
    assert main(["--prompts", "list.txt"]) == 2
    assert f"--prompts: list.txt {message}" in capsys.readouterr().err
    assert not fake.loaded


def test_many_files_stay_in_order(fake: FakeModel) -> None:
    assert main(["piano", "-n", "11", "-d", "0.1"]) == 0
    assert names() == [f"musicgen_output-{number:02}.wav" for number in range(1, 12)]


def test_numbered_files_never_take_a_place(fake: FakeModel) -> None:
    Path("musicgen_output-2.wav").write_text("mine")
    assert main(["piano", "drums", "-d", "0.1"]) == 0
    assert names() == [f"musicgen_output-{number}.wav" for number in (2, 3, 4)]
    assert Path("musicgen_output-2.wav").read_text() == "mine"
    # But those that were named.
    assert main(["piano", "drums", "-d", "0.1", "-o", "musicgen_output.wav"]) == 0
    assert soundfile.info("musicgen_output-2.wav").frames == 3200


def test_batches_are_as_large_as_memory_allows(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "max_batch_size", lambda *_: 2)
    assert main(["piano", "-n", "5", "-d", "0.1", "--seed", "7"]) == 0
    assert fake.batches == [2, 2, 1]
    assert fake.seeds == [7, 8, 9, 10, 11]
    assert len(names()) == 5
    out = capsys.readouterr().out
    assert re.findall(r"\d clips?, ", out) == ["5 clips, "]


def test_a_batch_has_memory_for_its_longest_prompt(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(memory, "max_batch_size", lambda *values: asked.append(values[3]) or 8)
    assert main(["piano", "drums " * 100, "strings " * 9, "guitar " * 200, "-d", "0.1"]) == 0
    # What is longer than most is made apart, and makes no other one as long.
    assert fake.batches == [2, 2]
    assert asked == [72, 1400]


def test_memory_is_shared_out(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    row = memory.bytes_per_clip(fake, 10, 2)
    assert row == 2 * 2 * 2 * 8 * (500 + 512) * 4 + 2 * (208 << 20)
    assert memory.bytes_per_clip(fake, 1000, 2) == memory.bytes_per_clip(fake, 30, 2) > row
    assert memory.bytes_per_clip(fake, 10, 2, 2000) == 2 * 2 * 2 * 8 * (500 + 2000) * 4 + 2 * (208 << 20)
    assert memory.bytes_per_clip(fake, 10, 2, 100) == row
    monkeypatch.setattr(mx, "get_active_memory", lambda: 1000)
    for room, rows in ((0, 1), (2.9, 2), (8.5, 8), (50, 8)):
        total = 2 * int(room * row + 1000)
        monkeypatch.setattr(machine.os, "sysconf", {"SC_PHYS_PAGES": total, "SC_PAGE_SIZE": 1}.get)
        assert memory.max_batch_size(fake, 10, 2) == rows


def test_clips_that_have_not_taken_their_memory_count(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cast("GenModel", fake)
    each = memory.bytes_per_clip(fake, 20, 2)
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * each)
    requests = [ClipRequest("piano", duration=seconds) for seconds in (20.0, 10.0) for _ in range(4)]
    waiting = WaitingClips(plan_clips(model, requests))
    running = RunningClips(model)
    running.add(waiting.take(model))
    assert [plan.seconds for plan in running.starting] == [20.0] * 4
    more = waiting.take(model, running.plans, starting=running.starting)
    assert len(more) == 1, "beside four there is room for one more"
    for _ in running.step():
        pass
    assert not running.starting


def test_audiogen_has_its_own_defaults(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiogen.main(["rain", "--seed", "1"]) == 0
    assert (fake.load_options["name"], fake.params[0]["duration"]) == ("facebook/audiogen-medium", 5.0)
    assert names() == ["audiogen_output.wav"]
    assert main(["--info", "audiogen_output.wav"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "make it again: audiogen-mlx rain --seed 1"
    assert audiogen.main([""]) == 2
    assert capsys.readouterr().err.startswith("audiogen-mlx: error: the prompt is empty")


# Melody and style


def test_a_melody_reaches_the_model_with_or_without_a_prompt(fake: FakeModel) -> None:
    audio = tone("tune.wav")
    fake.condition_types = frozenset({"text", "melody"})
    assert main(["piano", "-m", "melody", "--melody", "tune.wav", "-d", "0.1", "-n", "2"]) == 0
    assert fake.condition_inputs["melody_sample_rate"] == 44100
    assert len(fake.condition_inputs["melody_wavs"]) == 2
    np.testing.assert_array_equal(fake.condition_inputs["melody_wavs"][1], audio)
    assert main(["-m", "melody", "--melody", "tune.wav", "-d", "0.1", "-o", "a.wav"]) == 0
    assert fake.prompts[2:] == [None]
    metadata = read_metadata(Path("a.wav"))
    assert metadata is not None
    assert metadata.options == {"melody": "tune.wav"}


def test_style_and_its_weight_reach_the_model(fake: FakeModel) -> None:
    tone("tune.wav")
    fake.condition_types = frozenset({"text", "style"})
    assert main(["-m", "style", "--style", "tune.wav", "--style-coef", "5", "-d", "0.1", "-o", "a.wav"]) == 0
    assert "melody_wavs" in fake.condition_inputs
    assert fake.params[0]["cfg_coef_beta"] == 5
    metadata = read_metadata(Path("a.wav"))
    assert metadata is not None
    assert metadata.options == {"style": "tune.wav", "style-coef": 5.0}


@pytest.mark.parametrize("kind", ["melody", "style"])
def test_a_model_without_the_condition_generates_nothing(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tone("tune.wav")
    assert main(["piano", "-m", "someone/finetune", f"--{kind}", "tune.wav"]) == 2
    assert f"--{kind}: the model someone/finetune can't be conditioned on a {kind}" in capsys.readouterr().err
    assert fake.prompts == []
    assert names() == ["tune.wav"]


@pytest.mark.parametrize("option", ["--melody", "--style", "--continue"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tune.wav can't be read: No such file"),
        (b"", "tune.wav is not audio"),
        (b"text", "tune.wav is not audio"),
        ("empty", "tune.wav has no samples"),
        ("nan", "tune.wav has samples that are NaN, infinite or far beyond full scale"),
    ],
)
def test_an_unusable_audio_file_is_refused_before_the_model_is_loaded(
    fake: FakeModel,
    capsys: pytest.CaptureFixture[str],
    option: str,
    content: bytes | str | None,
    message: str,
) -> None:
    if isinstance(content, bytes):
        Path("tune.wav").write_bytes(content)
    elif content is not None:
        samples = np.full(0 if content == "empty" else 100, np.nan)
        soundfile.write("tune.wav", samples, RATE, subtype="FLOAT")
    assert main(["piano", "-m", "someone/model", option, "tune.wav"]) == 2
    assert capsys.readouterr().err.startswith(f"musicgen-mlx: error: {message}")
    assert not fake.loaded


def test_a_silent_melody_is_refused(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("tune.wav", np.zeros((RATE, 2)), RATE)
    assert main(["piano", "-m", "melody", "--melody", "tune.wav"]) == 2
    assert "tune.wav is silent" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["melody", "style"])
def test_a_melody_or_style_in_antiphase_is_heard(fake: FakeModel, kind: str) -> None:
    left = tone("tune.wav")[0]
    soundfile.write("tune.wav", np.stack([left, -left], axis=1), RATE)
    fake.condition_types = frozenset({kind})
    assert main(["piano", "-m", kind, f"--{kind}", "tune.wav"]) == 0
    np.testing.assert_allclose(fake.condition_inputs["melody_wavs"][0], left[None], atol=1e-4)


def test_a_mono_model_continues_a_source_in_antiphase(fake: FakeModel) -> None:
    left = tone("song.wav", rate=RATE)[0]
    soundfile.write("song.wav", np.stack([left, -left], axis=1), RATE)
    fake.audio_channels = 1
    assert main(["--continue", "song.wav", "-d", "0.1", "-o", "out.wav"]) == 0
    assert np.abs(fake.condition_inputs["prompt"][0]).max() > 0.4


@pytest.mark.parametrize("option", ["--melody", "--style", "--continue"])
def test_audio_on_the_scale_of_integers_is_refused(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    soundfile.write("tune.wav", 13107 * np.sin(np.arange(RATE) / 20), RATE, subtype="FLOAT")
    assert main(["piano", "-m", "someone/model", option, "tune.wav"]) == 2
    assert "tune.wav has samples up to 13107, where full scale is 1" in capsys.readouterr().err
    assert not fake.loaded


def test_no_more_of_a_long_melody_is_read_than_is_used(fake: FakeModel) -> None:
    soundfile.write("tune.wav", np.full(1000 * 300, 0.5), 1000)
    fake.condition_types = frozenset({"melody"})
    assert main(["-m", "melody", "--melody", "tune.wav", "-d", "10"]) == 0
    assert fake.condition_inputs["melody_wavs"][0].shape == (1, 1000 * 100)


@pytest.mark.parametrize("choice", ["auto", "on", "off", None])
def test_the_choice_of_separation_reaches_the_model(fake: FakeModel, choice: str | None) -> None:
    tone("tune.wav")
    fake.condition_types = frozenset({"melody"})
    options = [] if choice is None else ["--melody-separation", choice]
    assert main(["a", "-d", "0.1", "-m", "melody", "--melody", "tune.wav", *options, "-o", "out.wav"]) == 0
    assert fake.condition_inputs.get("melody_separation") == choice
    metadata = read_metadata(Path("out.wav"))
    assert metadata is not None
    assert metadata.options.get("melody-separation") == choice


def test_separation_needs_a_melody(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a", "--melody-separation", "off"]) == 2
    assert "--melody-separation needs --melody" in capsys.readouterr().err


# Continuation


@pytest.mark.parametrize(
    ("subtype", "bits", "name"),
    [
        ("PCM_16", 16, "out.wav"),
        ("PCM_24", 24, "out.flac"),
        ("FLOAT", 32, "out.wav"),
        ("FLOAT", 24, "o.flac"),
    ],
)
def test_the_source_stays_as_it_is(fake: FakeModel, subtype: str, bits: int, name: str) -> None:
    before = tone("song.wav", subtype=subtype)
    fake.peak = 1.5  # the new music is too loud: the source isn't scaled with it
    assert main(["piano", "--continue", "song.wav", "-d", "0.1", "-o", name, "--seed", "1"]) == 0
    info = soundfile.info(name)
    assert (info.samplerate, info.channels) == (44100, 2)
    assert info.subtype == {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}[bits]
    after = read(name)
    assert after.shape[1] == 44100 + 4410
    np.testing.assert_allclose(after[:, :44100], before, atol=2**-24 if name == "o.flac" else 0)
    assert np.abs(after[:, 44100:]).max() > 0.9
    assert np.abs(np.diff(after))[:, 44099].max() < 0.01  # no click
    metadata = read_metadata(Path(name))
    assert metadata is not None
    assert metadata.options["continue"] == "song.wav"


@pytest.mark.parametrize("level", [1.5, 8.0])
def test_a_float_source_beyond_full_scale_stays_as_it_is(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], level: float
) -> None:
    before = tone("song.wav", rate=RATE)
    soundfile.write("song.wav", level / 0.5 * before.T, RATE, subtype="FLOAT")
    before = read("song.wav")
    assert main(["a", "--continue", "song.wav", "-d", "0.1", "-o", "out.wav"]) == 0
    after = read("out.wav")
    np.testing.assert_array_equal(after[:, :RATE], before)
    assert np.abs(after[:, RATE:]).max() <= max(1, np.abs(before[:, -1]).max())
    assert "scaled down" not in capsys.readouterr().out
    # Formats of integers can't hold it.
    assert main(["a", "--continue", "song.wav", "-d", "0.1", "-o", "out.flac"]) == 0
    np.testing.assert_allclose(read("out.flac")[:, :RATE], before / level, atol=1e-5)
    assert f"peak {level:.2f} scaled down" in capsys.readouterr().out


def test_the_prompt_is_whole_frames_of_the_end_of_the_source(fake: FakeModel) -> None:
    tone("song.wav", rate=RATE)
    end = read("song.wav")[:, -int(0.3 * RATE) :]
    assert main(["--continue", "song.wav", "--prompt-seconds", "0.3", "-d", "0.5", "-n", "2"]) == 0
    prompt = fake.condition_inputs["prompt"]
    assert len(prompt) == 2
    assert prompt[0] is prompt[1]
    assert prompt[0].shape == (2, 15 * 640)
    np.testing.assert_array_equal(prompt[1], end)
    assert fake.condition_inputs["prompt_sample_rate"] == RATE
    assert fake.frames == 15 + 25
    assert soundfile.info("musicgen_output-2.wav").frames == RATE + 16000


@pytest.mark.parametrize("samples", [1, 100, 641])
def test_the_source_may_be_very_short(fake: FakeModel, samples: int) -> None:
    soundfile.write("song.wav", np.full(samples, 0.25), RATE)
    assert main(["--continue", "song.wav", "-d", "0.1", "-o", "out.wav"]) == 0
    after = read("out.wav")
    assert after.shape == (2, samples + 3200)  # the model's other channel, too
    np.testing.assert_array_equal(after[:, :samples], 0.25)


def test_a_mono_model_continues_in_both_channels(fake: FakeModel) -> None:
    fake.audio_channels = 1
    tone("song.wav", rate=16000)
    assert main(["--continue", "song.wav", "-d", "0.1", "-o", "out.wav"]) == 0
    after = read("out.wav")
    assert soundfile.info("out.wav").samplerate == 16000
    assert after.shape == (2, 16000 + 1600)
    assert np.array_equal(after[0], after[1])


def test_a_format_without_the_rate_gets_the_models(fake: FakeModel) -> None:
    tone("song.wav", rate=96000)
    assert main(["--continue", "song.wav", "-d", "0.1", "-o", "out.mp3"]) == 0
    assert soundfile.info("out.mp3").samplerate == RATE


def test_more_than_two_channels_are_refused(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    tone("song.wav", channels=6)
    assert main(["--continue", "song.wav"]) == 2
    assert "song.wav has 6 channels; mix it to mono or stereo" in capsys.readouterr().err


# Files


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_each_format_is_written_by_its_name_or_ending_and_tagged(fake: FakeModel, name: str) -> None:
    assert main(["piano", "-d", "0.1", "--format", name, "--seed", "3"]) == 0
    assert main(["piano", "-d", "0.1", "-o", f"clip.{name}", "--seed", "3"]) == 0
    for stem in ("musicgen_output", "clip"):
        assert soundfile.info(f"{stem}.{name}").format == name.upper()
        metadata = read_metadata(Path(f"{stem}.{name}"))
        assert metadata is not None
        assert metadata.options == ({} if name == "wav" else {"format": name})
        assert (metadata.prompt, metadata.seed, metadata.model) == ("piano", 3, "facebook/musicgen-small")


@pytest.mark.parametrize("with_mutagen", [True, False])
@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_without_tags_neither_prompt_nor_file_names_are_in_the_file(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, name: str, with_mutagen: bool
) -> None:
    monkeypatch.setattr(write, "has_mutagen", lambda: with_mutagen)
    tone("secret-song.wav", rate=RATE)
    words = ["secret prompt", "-m", "me/secret-model", "--continue", "secret-song.wav", "-d", "0.1"]
    assert main([*words, "-o", f"tagged.{name}"]) == 0
    assert b"secret" in Path(f"tagged.{name}").read_bytes()
    assert main([*words, "-o", f"out.{name}", "--no-tags"]) == 0
    data = Path(f"out.{name}").read_bytes()
    for text in (b"secret", b"musicgen", b"MUSICGEN", b"seed"):
        assert text not in data
    assert read_metadata(Path(f"out.{name}")) is None


def test_without_tags_a_partial_clip_has_none_either(fake: FakeModel) -> None:
    fake.during = raiser(KeyboardInterrupt())
    assert main(["secret prompt", "-o", "out.wav", "--no-tags"]) == 130
    assert b"secret" not in Path("out.wav").read_bytes()


def test_the_command_of_a_clip_generates_it_again(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "-m someone/model --revision v1 -q 8 --int8-activations --cache-bits 8 --top-k 5 -d 0.5"
    more = (
        "--weights tuned/last.pt --bit-depth 24 --normalize loudness --lufs -20 --fade-out 0.2 --format flac"
    )
    assert main(["piano", *options.split(), *more.split()]) == 0
    first = Path("musicgen_output.flac").read_bytes()
    assert main(["--info", "musicgen_output.flac"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("make it again: musicgen-mlx ")
    assert main(command.split()) == 0
    assert Path("musicgen_output-2.flac").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "way", "lufs"),
    [
        (["--normalize", "peak"], "peak", -14.0),
        (["--normalize", "loudness"], "loudness", -14.0),
        (["--normalize", "loudness", "--lufs", "-30"], "loudness", -30.0),
    ],
)
def test_clips_are_brought_to_a_level(fake: FakeModel, options: list[str], way: str, lufs: float) -> None:
    assert main(["piano", "-d", "1", "-o", "out.wav", "--bit-depth", "32", *options]) == 0
    np.testing.assert_allclose(
        read("out.wav"), normalize_audio(ramp(RATE), RATE, way, lufs), atol=1e-6, strict=True
    )


def test_the_end_fades_out(fake: FakeModel) -> None:
    assert main(["piano", "-d", "1", "-o", "out.wav", "--bit-depth", "32", "--fade-out", "0.5"]) == 0
    np.testing.assert_allclose(read("out.wav"), fade_out(ramp(RATE), RATE, 0.5), atol=1e-6)


class HalvesSeparator:
    """A separator whose stems are the parts of what it is given."""

    sample_rate, channels, sources = 44100, 2, ("drums", "bass")

    def separate(self, audio: mx.array) -> mx.array:
        return mx.stack([0.25 * audio, 0.75 * audio], axis=1)


def test_stems_lie_beside_the_clip(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demucs, "load_htdemucs", HalvesSeparator)
    Path("musicgen_output-bass.wav").write_text("mine")
    fake.peak = 2.0
    assert main(["piano", "-d", "0.5", "--stems", "--bit-depth", "32"]) == 0
    stems = ["musicgen_output-drums.wav", "musicgen_output-bass-2.wav"]
    assert capsys.readouterr().out.splitlines()[-1] == f"its stems: {', '.join(stems)}"
    mix, drums, bass = (read(name) for name in ("musicgen_output.wav", *stems))
    assert mix.shape == drums.shape == bass.shape
    assert np.abs(mix).max() == pytest.approx(1)
    np.testing.assert_allclose(drums * 3, bass, atol=1e-5)
    # But for the ends, where resampling holds the first and last samples.
    np.testing.assert_allclose((drums + bass)[:, 100:-100], mix[:, 100:-100], atol=1e-3)
    assert Path("musicgen_output-bass.wav").read_text() == "mine"


def test_without_a_separator_nothing_is_made(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demucs, "load_htdemucs", raiser(CheckpointError("htdemucs is damaged")))
    assert main(["piano", "--stems"]) == 1
    assert capsys.readouterr().err == "musicgen-mlx: error: htdemucs is damaged\n"
    assert fake.prompts == []


def test_plots_are_numbered_like_their_clips(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tone("tune.wav")
    fake.condition_types = frozenset({"melody"})

    class AudioConditioner(MelodyConditioner):
        def __init__(self) -> None:
            self.config = ChromaConfig()

        def chroma(self, melody: mx.array) -> mx.array:
            assert melody.shape == (2, RATE)
            return mx.zeros((235, 12))

    fake.audio_conditioner = AudioConditioner()
    assert main(["a", "b", "-d", "0.1", "-m", "melody", "--melody", "tune.wav", "--plot", "p.png"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("drew")] == ["drew p-1.png", "drew p-2.png"]
    heights = []
    assert main(["a", "-d", "0.1", "--plot", "plain.png"]) == 0
    for name in ("p-1.png", "plain.png"):
        data = Path(name).read_bytes()
        assert data.startswith(b"\x89PNG")
        heights.append(int.from_bytes(data[20:24], "big"))
    assert heights[0] > heights[1], "the melody has a panel of its own"


def test_a_plot_that_cannot_be_drawn_is_found_before_the_model_is_loaded(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "save_figure", raiser(RuntimeError("no fonts")))
    assert main(["a", "--plot", "p.png"]) == 2
    assert "can't draw a plot (no fonts)" in capsys.readouterr().err
    assert not fake.loaded


def test_a_plot_shows_the_excerpt_of_a_style(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip its own excerpt, of the audio that the model is conditioned on, at its time in the file."""
    tone("tune.wav")
    fake.condition_types = frozenset({"style"})
    fake.style_params = StyleParams(excerpt_length=0.25)
    shown = []
    monkeypatch.setattr(plot, "save_plot", lambda *arguments: shown.append(arguments[-1]))

    class AudioConditioner(StyleConditioner):
        def __init__(self) -> None:
            self.sample_rate = RATE

        def excerpt_start(self, room: int, seed: int, window: int) -> int:
            assert (room, window) == (RATE * 3 // 4, 0)
            return seed * 100

    fake.audio_conditioner = AudioConditioner()
    arguments = ["a", "-n", "2", "-d", "0.1", "-m", "style", "--style", "tune.wav", "--plot", "p.png"]
    assert main([*arguments, "--seed", "3"]) == 0
    assert [(len(one.audio), one.sample_rate, one.start) for one in shown] == [
        (RATE // 4, RATE, 300 / RATE),
        (RATE // 4, RATE, 400 / RATE),
    ]


# Standard output


def catch_stdout(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Where bytes for standard output go from now on, which pytest's own capture would take for text."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    return raw


def streamed(stdout: io.BytesIO) -> np.ndarray:
    return soundfile.read(io.BytesIO(stdout.getvalue()), dtype="float32", always_2d=True)[0].T


def test_standard_output_gets_the_audio_and_nothing_else(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout = catch_stdout(monkeypatch)
    fake.peak = 1.5
    assert main(["piano", "-d", "0.5", "-o", "-", "--seed", "7"]) == 0
    np.testing.assert_allclose(streamed(stdout), np.clip(ramp(16000, 1.5), -1, 1), atol=1e-4)
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("peak 1.50 was cut off")
    assert re.fullmatch(r"seed 7, \d+\.\d s to make, \d+\.\d\dx real time", err[1])
    assert names() == []


def test_audio_is_on_standard_output_before_the_rest_is_made(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = catch_stdout(monkeypatch)
    seen = []
    fake.during = lambda: seen.append(len(stdout.getvalue()))
    assert main(["piano", "-d", "0.3", "-o", "-"]) == 0
    assert seen == [44 + 2 * 2 * 6400]


def test_what_needs_the_whole_clip_is_off_and_says_so(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout = catch_stdout(monkeypatch)
    assert main(["piano", "-d", "0.1", "-o", "-", "--normalize", "peak", "--fade-out", "1"]) == 0
    said = "--normalize and --fade-out need the whole clip: off on standard output"
    assert capsys.readouterr().err.splitlines()[0] == said
    np.testing.assert_allclose(streamed(stdout), ramp(3200), atol=1e-4)


def test_a_stream_starts_with_its_source(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = catch_stdout(monkeypatch)
    fake.audio_channels = 1
    before = tone("song.wav", rate=RATE)
    assert main(["--continue", "song.wav", "-d", "0.1", "-o", "-"]) == 0
    after = streamed(stdout)
    assert after.shape == (2, RATE + 3200)
    np.testing.assert_array_equal(after[:, :RATE], before)
    assert np.abs(np.diff(after))[:, RATE - 1].max() < 0.01


def test_a_stream_can_be_plotted(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    catch_stdout(monkeypatch)
    assert main(["piano", "-d", "0.1", "-o", "-", "--plot", "p.png"]) == 0
    assert names() == ["p.png"]


def test_a_terminal_gets_no_audio(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert main(["piano", "-o", "-"]) == 2
    assert "standard output is a terminal" in capsys.readouterr().err
    assert not fake.loaded


# Interruptions


def test_ctrl_c_keeps_what_was_made(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    fake.during = raiser(KeyboardInterrupt())
    assert main(["piano", "-d", "0.3", "--seed", "1", "-o", "out.flac"]) == 130
    assert capsys.readouterr() == (
        "",
        "musicgen-mlx: error: interrupted; the 0.20 s made so far are kept in out.flac\n",
    )
    np.testing.assert_allclose(read("out.flac"), ramp(9600)[:, :6400], atol=1e-4)
    assert read_metadata(Path("out.flac")) is not None
    assert names() == ["out.flac"]


def test_ctrl_c_keeps_each_clip_of_a_batch(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    fake.during = raiser(KeyboardInterrupt())
    assert main(["piano", "-n", "5", "-d", "0.3"]) == 130
    line = "interrupted; the 0.20 s made so far are kept in musicgen_output-1.wav, …, musicgen_output-5.wav\n"
    assert capsys.readouterr().err == f"musicgen-mlx: error: {line}"
    assert [soundfile.info(name).frames for name in names()] == [6400] * 5


def test_ctrl_c_while_a_plot_is_drawn_keeps_each_clip_once(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "save_plot", raiser(KeyboardInterrupt()))
    assert main(["piano", "-n", "2", "-d", "0.3", "--plot", "a.png"]) == 130
    out, error = capsys.readouterr()
    assert "wrote musicgen_output-1.wav" in out
    line = "interrupted; the 0.30 s made so far are kept in musicgen_output-2.wav\n"
    assert error == f"musicgen-mlx: error: {line}"
    assert names() == ["musicgen_output-1.wav", "musicgen_output-2.wav"]


def test_ctrl_c_while_the_last_plot_is_drawn_keeps_the_clip_once(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot, "save_plot", raiser(KeyboardInterrupt()))
    assert main(["piano", "-d", "0.3", "--plot", "a.png"]) == 130
    assert capsys.readouterr().err == "musicgen-mlx: error: interrupted\n"
    assert names() == ["musicgen_output.wav"]


def test_ctrl_c_before_anything_was_made_leaves_nothing(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.before = raiser(KeyboardInterrupt())
    assert main(["piano"]) == 130
    assert capsys.readouterr().err == "musicgen-mlx: error: interrupted\n"
    assert names() == []
