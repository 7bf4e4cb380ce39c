"""What `--info` shows of an audio file."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.info import show_info
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.errors import UsageError

METADATA = GenerationMetadata(
    "happy rock", "small", 42, 0.1, top_k=5, options={"int8-activations": True}, version="9.8.7"
)
SILENCE = np.zeros((2, 3200), np.float32)


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_info(path)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_a_clip_of_ours_is_shown_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.flac"
    write_audio(path, SILENCE, 32000, AudioFormat("flac", 24), METADATA.to_tags())
    assert shown(path, capsys) == [
        f"{path}: FLAC, 24 bits, 32000 Hz, stereo, 0.10 s",
        "made with musicgen-mlx 9.8.7",
        "  prompt: happy rock",
        "  model: small",
        "  seed: 42",
        "  duration: 0.1 s",
        "  top-k: 5",
        "  int8-activations: True",
        "make it again: musicgen-mlx 'happy rock' --model small --duration 0.1 --seed 42 --top-k 5 "
        "--int8-activations",
    ]


def test_an_option_by_its_old_name_gives_a_command_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = GenerationMetadata("rock", "small", 42, 8.0, options={"quantize": 8, "fast": True})
    write_audio(tmp_path / "a.wav", SILENCE, 32000, tags=metadata.to_tags())
    line = shown(tmp_path / "a.wav", capsys)[-1].removeprefix("make it again: ")
    command = parse(shlex.split(line)[1:])
    assert isinstance(command, GenerateClips)
    assert command.model.int8_activations


@pytest.mark.parametrize(
    ("audio_format", "described"),
    [
        (AudioFormat("wav", 16), "WAV, 16 bits, 32000 Hz, mono, 0.10 s"),
        (AudioFormat("wav", 32), "WAV, 32 bits (float), 32000 Hz, mono, 0.10 s"),
        (AudioFormat("mp3", None), "MP3, 32000 Hz, mono, 0.10 s"),
        (AudioFormat("ogg", None), "OGG, 32000 Hz, mono, 0.10 s"),
    ],
)
def test_a_file_without_our_tags_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], audio_format: AudioFormat, described: str
) -> None:
    path = tmp_path / f"a.{audio_format.name}"
    write_audio(path, SILENCE[:1], 32000, audio_format)
    assert shown(path, capsys) == [f"{path}: {described}", "it has no tags of musicgen-mlx"]


def test_other_kinds_of_audio_are_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.raw"  # an ending that libsndfile would believe
    soundfile.write(path, np.zeros((441, 4)), 44100, format="AIFF")
    assert shown(path, capsys)[0] == f"{path}: AIFF, 16 bits, 44100 Hz, 4 channels, 0.01 s"


def test_tags_send_no_control_characters_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;x\x07\r\n\u202e"
    metadata = GenerationMetadata(hostile, hostile, 1, 1.0, options={hostile: hostile}, version=hostile)
    write_audio(tmp_path / "a.wav", SILENCE, 32000, tags=metadata.to_tags())
    assert all(line.isprintable() for line in shown(tmp_path / "a.wav", capsys))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not audio that can be read; give a WAV, FLAC, MP3 or Ogg file"),
        (b"some text\n", "is not audio that can be read"),
        (b"RIFF\0\0\0\0WAVEfmt ", "is not audio that can be read"),
    ],
)
def test_files_that_are_not_audio_are_reported_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        show_info(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none\.wav can't be read: No such file or directory; give an audio"
    ):
        show_info(tmp_path / "none.wav")
    with pytest.raises(UsageError, match="is not a file; give an audio file"):
        show_info(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a file"):
        show_info(tmp_path / "pipe")


def test_a_file_is_closed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_audio(tmp_path / "a.wav", SILENCE, 32000)
    (tmp_path / "b.wav").write_text("no audio")
    before = os.dup(0)
    os.close(before)
    shown(tmp_path / "a.wav", capsys)
    with pytest.raises(UsageError):
        show_info(tmp_path / "b.wav")
    after = os.dup(0)
    os.close(after)
    assert after == before
