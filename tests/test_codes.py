"""A clip's codes travel in its file, and are what a clip of ours is continued from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.tags import read_tags
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.codes import MAX_FRAMES, ClipCodes, read_codes

pytest.importorskip("mutagen")

RANDOM = np.random.default_rng(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With `whole.wav` of 4 s, and its first 2.5 s."""
    folder = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make("whole.wav", "-d", "4")
        make("begin.wav", "-d", "2.5")
        yield folder


def make(name: str, *options: str, prompt: str = "slow happy piano") -> None:
    assert main([prompt, "-m", "demo", "--seed", "3", "-o", name, *options]) == 0


def samples(name: str) -> np.ndarray:
    return soundfile.read(name, dtype="int16", always_2d=True)[0].T.astype(int)


def codes_in(name: str) -> np.ndarray:
    codes = read_codes(name)
    assert codes is not None
    return codes.codes


# The values


@pytest.mark.parametrize(
    ("codebooks", "frames", "cardinality"), [(4, 500, 2048), (8, 7, 2048), (1, 1, 1), (3, 5, 64)]
)
def test_codes_are_packed_and_unpacked(codebooks: int, frames: int, cardinality: int) -> None:
    codes = RANDOM.integers(0, cardinality, (codebooks, frames)).astype(np.int32)
    codes.flat[-1] = cardinality - 1
    text = ClipCodes(codes, cardinality, "0a").to_text()
    again = ClipCodes.from_text(text)
    np.testing.assert_array_equal(again.codes, codes)
    assert (again.cardinality, again.codec) == (cardinality, "0a")
    assert text.isascii()
    # Eleven bits each: 10 s of mono are 2750 bytes, which base64 makes a third more.
    if (codebooks, frames, cardinality) == (4, 500, 2048):
        assert len(text.split()[-1]) == 3668


GOOD = ClipCodes(np.full((2, 3), 5, np.int32), 7, "0a").to_text()


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", GOOD[:-1], GOOD + "AAAA", GOOD.replace("2x3", "2x9"), GOOD.replace("2x3", "0x3")),
        *(GOOD.replace("/7", "/5"), GOOD.replace("/7", "/0"), GOOD.replace("/7", "/999999")),
        *(GOOD.replace("2x3", f"1x{MAX_FRAMES + 1}"), GOOD.replace("0a", "zz"), "2x3/7 0a ===="),
    ],
)
def test_damaged_codes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its codes"):
        ClipCodes.from_text(text)


# Files


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.usefixtures("folder")
def test_every_format_has_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(name, "-d", "0.5")
    codes = codes_in(name)
    whole = codes_in("whole.wav")
    num_codebooks = len(whole)
    assert codes.shape == (num_codebooks, 25)
    # The last ones were predicted without what follows.
    known = 25 - (num_codebooks - 1)
    np.testing.assert_array_equal(codes[:, :known], whole[:, :known])
    capsys.readouterr()
    assert main(["--info", name]) == 0
    assert "  codes: 25 frames" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--no-tags"], ["--fade-out", "0.1"], ["--normalize", "peak"]])
@pytest.mark.usefixtures("folder")
def test_they_are_left_out(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    make("without.wav", "-d", "0.3", *options)
    assert read_codes("without.wav") is None
    capsys.readouterr()
    assert main(["--info", "without.wav"]) == 0
    assert "codes" not in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_a_file_that_was_changed_has_none() -> None:
    tags = read_tags(Path("begin.wav"))
    assert tags is not None
    assert tags.codes is not None
    audio, rate = soundfile.read("begin.wav", dtype="float32", always_2d=True)
    text = tags.codes.partition(" ")[2]
    for name, change in (("same.flac", 0.0), ("changed.flac", 2**-15)):
        audio[1000] += change
        write_audio(name, audio.T, rate, AudioFormat("flac", 16), tags)
        # The tag is another's, with the checksum of before in front.
        written = read_tags(Path(name))
        assert written is not None
        assert written.codes is not None
        checksums = written.codes.split(" ")[:2]
        assert (checksums[0] == checksums[1]) == (change == 0)
    assert ClipCodes.from_text(text).frames == 125
    from audiocraft_mlx.audio.tags import add_tags

    soundfile.write("other.wav", audio, rate, subtype="PCM_16")
    with Path("other.wav").open("rb+") as file:
        add_tags(file, tags)
    assert read_codes("other.wav") is None


# Continuations


@pytest.mark.usefixtures("folder")
def test_a_continuation_is_what_a_longer_clip_is() -> None:
    make("longer.wav", "-d", "1.5", "--continue", "begin.wav")
    np.testing.assert_array_equal(codes_in("longer.wav"), codes_in("whole.wav"))
    whole, longer = samples("whole.wav"), samples("longer.wav")
    assert longer.shape == whole.shape
    assert np.abs(longer - whole).max() <= 1  # the codec's rounding depends on where its chunks begin
    # But for its end, where it did not know what follows.
    begin = samples("begin.wav")
    kept = begin.shape[1] - 6 * 640
    np.testing.assert_array_equal(longer[:, :kept], begin[:, :kept])
    make("longest.wav", "-d", "0.5", "--continue", "longer.wav")
    assert codes_in("longest.wav").shape[1] == 225


@pytest.mark.usefixtures("folder")
def test_a_part_of_them_is_continued_if_asked_for() -> None:
    make(
        "part.wav", "-d", "0.5", "--continue", "begin.wav", "--prompt-seconds", "1", prompt="fast sad guitar"
    )
    assert samples("part.wav").shape == (1, 3 * 32000)
    assert read_codes("part.wav") is None


@pytest.mark.usefixtures("folder")
def test_sections_begin_after_what_is_continued() -> None:
    options = ["--section", "3: fast sad guitar"]
    make("sections.wav", "-d", "4", *options)
    make("continued.wav", "-d", "1.5", "--continue", "begin.wav", "--section", "0.5: fast sad guitar")
    np.testing.assert_array_equal(codes_in("continued.wav"), codes_in("sections.wav"))


def test_in_stereo_too_and_of_another_codec_the_audio(
    folder: Path, goldens: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = ["rock", "-m", str(goldens / "goldens" / "stereo"), "--seed", "7"]
    assert main([*options, "-d", "0.8", "-o", "stereo.flac"]) == 0
    assert main([*options, "-d", "0.5", "-o", "stereo-begin.flac"]) == 0
    assert codes_in("stereo-begin.flac").shape == (8, 25)
    assert main([*options, "-d", "0.3", "--continue", "stereo-begin.flac", "-o", "stereo-longer.flac"]) == 0
    np.testing.assert_array_equal(codes_in("stereo-longer.flac"), codes_in("stereo.flac"))
    assert np.abs(samples("stereo-longer.flac") - samples("stereo.flac")).max() <= 1
    assert main([*options, "-d", "0.3", "--continue", "begin.wav", "-o", "other.flac"]) == 0
    assert samples("other.flac").shape == (2, round(2.8 * 32000))
    assert read_codes("other.flac") is None


def test_nothing_to_add_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["piano", "-m", "demo", "-d", "0.01", "--continue", "begin.wav", "-o", "none.wav"]) == 2
    assert "at least one frame" in capsys.readouterr().err
