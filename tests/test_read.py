import io
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.level import require_non_silent, without_cancellation
from audiocraft_mlx.audio.mpeg import _parse
from audiocraft_mlx.audio.read import read_audio, read_info
from audiocraft_mlx.errors import UsageError

RATE = 8000


def ramp(channels: int, samples: int) -> np.ndarray:
    """`[C, T]`, all values different and exact in 16 bits."""
    return (np.arange(channels * samples).reshape(samples, channels).T / 2**15).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(audio: np.ndarray, name: str = "a.wav", rate: int = RATE, **options: str) -> Path:
        soundfile.write(tmp_path / name, audio.T, rate, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.au", "a.caf", "a.w64"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_lossless_files_are_read_exactly(write: Callable[..., Path], name: str, channels: int) -> None:
    audio = ramp(channels, 1000)
    read, rate = read_audio(write(audio, name, 11127))
    assert rate == 11127
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, audio)


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp3", {}), ("a.ogg", {}), ("a.ogg", {"subtype": "OPUS"}), ("a.opus", {})]
)
def test_compressed_files_are_read(write: Callable[..., Path], name: str, options: dict[str, str]) -> None:
    rate = 48000
    audio = 0.5 * np.sin(np.arange(rate) / 20).astype(np.float32)[None]
    if name.endswith("opus"):
        options = {"format": "OGG", "subtype": "OPUS"}
    read, read_rate = read_audio(write(audio, name, rate, **options))
    assert (read_rate, read.shape) == (rate, (1, rate))
    np.testing.assert_allclose(read[:, 5000:-5000], audio[:, 5000:-5000], atol=0.05)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_all_kinds_of_samples_have_the_same_scale(write: Callable[..., Path], subtype: str) -> None:
    audio = 0.5 * np.sin(np.arange(500) / 20).astype(np.float32)[None]
    read, _ = read_audio(write(audio, subtype=subtype))
    np.testing.assert_allclose(read, audio, atol=0.02)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize(
    ("offset", "seconds", "expected"),
    [
        (0, None, slice(0, 8000)),
        (0, 0.25, slice(0, 2000)),
        (0, 30, slice(0, 8000)),
        (0.5, None, slice(4000, 8000)),
        (0.5, 0.25, slice(4000, 6000)),
        (0.5, 30, slice(4000, 8000)),
        (-0.25, None, slice(6000, 8000)),
        (-0.5, 0.25, slice(4000, 6000)),
        (-30, None, slice(0, 8000)),
        (-30, 0.25, slice(0, 2000)),
        (-1e300, 1e300, slice(0, 8000)),
        (0, 1e-9, slice(0, 1)),
    ],
)
def test_only_the_chosen_part_is_read(
    write: Callable[..., Path], name: str, offset: float, seconds: float | None, expected: slice
) -> None:
    audio = ramp(2, 8000)
    read, _ = read_audio(write(audio, name), offset, seconds)
    np.testing.assert_array_equal(read, audio[:, expected])


@pytest.mark.parametrize("offset", [0.0, 60.0, -20.0])
def test_a_part_of_a_long_file_takes_the_memory_of_the_part(
    write: Callable[..., Path], offset: float
) -> None:
    path = write(np.zeros((2, RATE * 600), np.int16))
    tracemalloc.start()
    try:
        read, _ = read_audio(path, offset, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.shape == (2, 10 * RATE)
    assert peak < 4 * read.nbytes


def test_files_longer_than_one_block_are_read_completely(write: Callable[..., Path]) -> None:
    audio = (np.arange(2_500_000) % 30011).astype(np.int16)[None]
    read, _ = read_audio(write(audio))
    np.testing.assert_array_equal(np.rint(read * 2**15), audio)


def test_a_path_can_be_a_string(write: Callable[..., Path]) -> None:
    assert read_audio(str(write(ramp(1, 10))))[0].shape == (1, 10)


def test_the_name_does_not_decide_the_format(write: Callable[..., Path]) -> None:
    audio = ramp(1, 10)
    path = write(audio)
    path = path.rename(path.with_name("a.raw"))
    np.testing.assert_array_equal(read_audio(path)[0], audio)


def refused(path: Path, *arguments: float) -> str:
    with pytest.raises(UsageError) as caught:
        read_audio(path, *arguments)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.wav")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refused(tmp_path / "pipe.wav")


@pytest.mark.parametrize("content", [b"", b"hello" * 100, bytes(range(256)) * 100, b"RIFF\0\0\0\0WAVE"])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.txt"])
def test_files_that_are_not_audio_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is not audio" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff"])
def test_a_file_without_samples_is_refused(write: Callable[..., Path], name: str) -> None:
    assert "has no samples" in refused(write(np.zeros((2, 0)), name))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_infinite_and_huge_samples_are_refused(write: Callable[..., Path], bad: float) -> None:
    audio = ramp(2, 100)
    audio[1, 50] = bad
    assert "NaN, infinite or far beyond full scale" in refused(write(audio, subtype="FLOAT"))


def test_an_offset_beyond_the_end_is_refused(write: Callable[..., Path]) -> None:
    path = write(ramp(1, 2 * RATE))
    assert "ends after 2 s" in refused(path, 2.0)
    assert read_audio(path, 2 - 1 / RATE)[0].shape == (1, 1)


@pytest.mark.parametrize("rate", [8, 2**31 - 1])
def test_extreme_sample_rates_are_refused(write: Callable[..., Path], rate: int) -> None:
    assert f"{rate} Hz" in refused(write(ramp(1, 10), rate=rate))


def test_a_truncated_wav_file_is_read_to_its_end(write: Callable[..., Path]) -> None:
    audio = ramp(1, 8000)
    path = write(audio)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3000])
    np.testing.assert_array_equal(read_audio(path)[0], audio[:, :3000])


def test_a_damaged_file_is_refused(write: Callable[..., Path]) -> None:
    path = write(np.random.default_rng(0).uniform(-1, 1, (1, 40000)), "a.flac")
    path.write_bytes(path.read_bytes()[:200] + bytes(30000))
    assert "damaged" in refused(path)
    assert "damaged" in refused(path, -1.0)


@pytest.mark.parametrize(
    ("offset", "seconds"),
    [(np.nan, None), (np.inf, None), ("1", None), (0, 0), (0, -1), (0, np.nan), (0, True)],
)
def test_impossible_parts_are_refused(write: Callable[..., Path], offset: float, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"^(offset|seconds) must be"):
        read_audio(write(ramp(1, 10)), offset, seconds)


@pytest.mark.parametrize("peak", [0.0, 3e-5, -3e-5])
def test_silence_is_refused(peak: float) -> None:
    audio = np.zeros((2, 100), np.float32)
    audio[1, 3] = peak
    with pytest.raises(UsageError, match=r"^hum\.wav is silent"):
        require_non_silent(audio, "hum.wav")


@pytest.mark.parametrize("peak", [1e-3, -1e-3])
def test_quiet_audio_is_not_silent(peak: float) -> None:
    audio = np.zeros((2, 100), np.float32)
    audio[1, 3] = peak
    require_non_silent(audio, "hum.wav")


def mp3_file(
    tmp_path: Path, seconds: float, rate: int = 32000, channels: int = 1, hertz: float = 440
) -> bytes:
    """An MP3 with a variable bit rate: its beginning is much louder than the rest."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time)) * np.exp(-4 * time)
    audio = np.stack([0.3 * np.sin(2 * np.pi * hertz * time) + 0.1 * noise] * channels, axis=1)
    soundfile.write(tmp_path / "whole.mp3", audio, rate, bitrate_mode="VARIABLE", compression_level=0.2)
    return (tmp_path / "whole.mp3").read_bytes()


def without_info(data: bytes) -> bytes:
    """The MP3 without its first frame, which says how many others there are: as written into a pipe."""
    bits = int.from_bytes(data[:4], "big")
    header = _parse(bits)
    assert header is not None
    assert data[header.info_offset :][:4] in (b"Xing", b"Info")
    return data[header.size :]


def test_an_mp3_without_a_frame_count_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "piped.mp3"
    path.write_bytes(without_info(mp3_file(tmp_path, 10)))
    read, rate = read_audio(path)
    assert read.shape[1] / rate == pytest.approx(10, abs=0.1)
    assert np.abs(read[:, -rate:]).max() > 0.2, "also the end is music"
    info = read_info(path)
    assert (info.frames, info.rate) == (read.shape[1], rate)


@pytest.mark.parametrize(
    "middle", [b"", b"\0" * 3000, b"ID3\4\0\0\0\0\2\0" + b"\xff\xfb" * 128, b"TAG" + b"x" * 125]
)
def test_joined_mp3_files_are_read_to_their_end(tmp_path: Path, middle: bytes) -> None:
    data = mp3_file(tmp_path, 3)
    path = tmp_path / "joined.mp3"
    path.write_bytes(data + middle + data)
    read, rate = read_audio(path)
    assert read.shape[1] == 6 * rate
    whole, _ = read_audio(tmp_path / "whole.mp3")
    np.testing.assert_array_equal(read, np.concatenate([whole, whole], axis=1))
    np.testing.assert_array_equal(read_audio(path, 2.5, 1.0)[0], read[:, int(2.5 * rate) :][:, :rate])
    np.testing.assert_array_equal(read_audio(path, -3.5)[0], read[:, int(2.5 * rate) :])


def test_joined_mp3_files_of_other_kinds_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "joined.mp3"
    first = mp3_file(tmp_path, 2, 32000, 1)
    path.write_bytes(first + mp3_file(tmp_path, 1, 44100, 2) + without_info(mp3_file(tmp_path, 1, 16000, 1)))
    read, rate = read_audio(path)
    assert (rate, len(read)) == (32000, 1)
    assert read.shape[1] / rate == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("claimed", [1, 10**6, 2**32 - 1])
def test_an_mp3_with_a_wrong_frame_count_is_read_to_its_end(tmp_path: Path, claimed: int) -> None:
    data = bytearray(mp3_file(tmp_path, 3))
    at = data.find(b"Xing") + 8
    data[at : at + 4] = claimed.to_bytes(4, "big")
    (tmp_path / "wrong.mp3").write_bytes(data)
    read, rate = read_audio(tmp_path / "wrong.mp3")
    assert read.shape[1] / rate == pytest.approx(3, abs=0.1)


def test_an_mp3_that_was_cut_off_is_read_to_its_end(tmp_path: Path) -> None:
    data = mp3_file(tmp_path, 10)
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    read, rate = read_audio(tmp_path / "cut.mp3")
    assert 3 < read.shape[1] / rate < 9


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_is_decoded_as_libsndfile_does(tmp_path: Path, rate: int, channels: int) -> None:
    mp3_file(tmp_path, 1.5, rate, channels)
    expected, _ = soundfile.read(tmp_path / "whole.mp3", dtype="float32", always_2d=True)
    np.testing.assert_allclose(read_audio(tmp_path / "whole.mp3")[0], expected.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tag", [b"ID3\3\0\0\0\0\x08\0", b"ID3\3\0\0\0\0\0\0", b""])
def test_padding_in_front_of_an_mp3_is_skipped(tmp_path: Path, tag: bytes) -> None:
    data = mp3_file(tmp_path, 1)
    (tmp_path / "padded.mp3").write_bytes(tag + b"\0" * 5000 + data)
    read, _ = read_audio(tmp_path / "padded.mp3")
    np.testing.assert_array_equal(read, read_audio(tmp_path / "whole.mp3")[0])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_was_cut_off_is_read_to_its_end(write: Callable[..., Path], subtype: str) -> None:
    audio = 0.5 * np.random.default_rng(0).uniform(-1, 1, (1, 10 * 48000))
    path = write(audio, "a.ogg", 48000, format="OGG", subtype=subtype)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert read_audio(path)[0].shape[1] > 3.5 * 48000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg_files_are_read_to_their_end(write: Callable[..., Path], subtype: str) -> None:
    audio = 0.5 * np.sin(np.arange(48000) / 20).astype(np.float32)[None]
    path = write(audio, "a.ogg", 48000, format="OGG", subtype=subtype)
    path.write_bytes(path.read_bytes() * 3)
    assert read_audio(path)[0].shape == (1, 3 * 48000)


def test_a_flac_without_a_length_is_read_to_its_end(write: Callable[..., Path]) -> None:
    audio = ramp(2, 16000)
    path = write(audio, "a.flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path)[0], audio)
    np.testing.assert_array_equal(read_audio(path, 0.5, 1.0)[0], audio[:, 4000:12000])
    np.testing.assert_array_equal(read_audio(path, -0.5)[0], audio[:, -4000:])
    assert "ends after 2 s" in refused(path, 3.0)
    assert read_info(path).frames == 16000


def claiming(data: bytes, samples: int) -> bytes:
    """The FLAC file with another length in its header."""
    info = int.from_bytes(data[18:26], "big") & ~(2**36 - 1) | samples
    return data[:18] + info.to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize("claimed", [0, 1, 1000, 15999, 16001, 2**36 - 1])
@pytest.mark.parametrize("behind", [b"", b"TAG" + b"x" * 125])
@pytest.mark.parametrize("audio", [ramp(2, 16000), np.zeros((2, 16000), np.float32)])
def test_a_flac_with_a_wrong_length_is_read_to_its_end(
    write: Callable[..., Path], claimed: int, behind: bytes, audio: np.ndarray
) -> None:
    path = write(audio, "a.flac")
    path.write_bytes(claiming(path.read_bytes(), claimed) + behind)
    np.testing.assert_array_equal(read_audio(path)[0], audio)
    np.testing.assert_array_equal(read_audio(path, -0.5)[0], audio[:, -4000:])
    assert read_info(path).frames == 16000


def test_a_flac_of_one_frame_with_a_wrong_length_is_read_to_its_end(write: Callable[..., Path]) -> None:
    path = write(ramp(1, 100), "a.flac")
    for claimed in (0, 1, 10**6):
        path.write_bytes(claiming(path.read_bytes(), claimed))
        np.testing.assert_array_equal(read_audio(path)[0], ramp(1, 100))


def test_a_flac_that_was_cut_off_is_read_to_its_end(write: Callable[..., Path]) -> None:
    audio = np.random.default_rng(0).integers(-(2**14), 2**14, (1, 40000)) / np.float32(2**15)
    path = write(audio.astype(np.float32), "a.flac")
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 3):
        path.write_bytes(data[:size])
        read, _ = read_audio(path)
        missing = 40000 - read.shape[1]
        assert 0 < missing < 40000 * (1 - size / len(data)) + 2 * 4608
        np.testing.assert_array_equal(read, audio[:, :-missing])
        assert read_info(path).frames == read.shape[1]
        np.testing.assert_array_equal(read_audio(path, -0.25)[0], read[:, -2000:])


@pytest.mark.parametrize("copies", [1, 2])
def test_frames_that_libsndfile_leaves_out_without_a_word_are_an_error(
    write: Callable[..., Path], copies: int
) -> None:
    path = write(0.3 * np.random.default_rng(0).standard_normal((2, 9000)), "a.flac", 16000)
    data = path.read_bytes()
    path.write_bytes(data[:78] + data[82:] + data * (copies - 1))  # the metadata goes beyond the first frame
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("middle", [b"", b"\0" * 3000, b"ID3\4\0\0\0\0\2\0" + b"\xff\xf8" * 128])
@pytest.mark.parametrize("claimed", [16000, 0, 1000])
def test_joined_flac_files_are_read_to_their_end(
    write: Callable[..., Path], middle: bytes, claimed: int
) -> None:
    audio = ramp(2, 16000)
    path = write(audio, "a.flac")
    data = claiming(path.read_bytes(), claimed)
    path.write_bytes(data + middle + data + middle + data)
    read, _ = read_audio(path)
    np.testing.assert_array_equal(read, np.concatenate([audio] * 3, axis=1))
    assert read_info(path).frames == read.shape[1]
    np.testing.assert_array_equal(read_audio(path, 1.5, 2.0)[0], read[:, 12000:28000])


def test_a_picture_in_a_flac_file_is_not_another_one(write: Callable[..., Path]) -> None:
    audio = ramp(2, 16000)
    path = write(audio, "a.flac")
    data = path.read_bytes()
    path.write_bytes(data[:42] + b"\6" + len(data).to_bytes(3, "big") + data + data[42:])
    np.testing.assert_array_equal(read_audio(path)[0], audio)


@pytest.mark.parametrize("sizes", [(0, 0), (0, None), (36, 0), (None, 2**32 - 1), (2**31, 2**31)])
def test_a_wav_whose_recorder_died_is_read_to_its_end(
    write: Callable[..., Path], sizes: tuple[int | None, int | None]
) -> None:
    audio = ramp(2, 8000)
    path = write(audio)
    data = bytearray(path.read_bytes())
    for at, size in zip((4, data.find(b"data") + 4), sizes, strict=True):
        if size is not None:
            data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path)[0], audio)
    np.testing.assert_array_equal(read_audio(path, 0.25, 0.5)[0], audio[:, 2000:6000])


TRAILERS = [
    b"",
    b"LIST\4\0\0\0INFO",
    b"id3 \x03\0\0\0ID3\0bext\4\0\0\0abcd",
    b"LIST\x05\0\0\0INFOx\0odd \4\0\0\0abcd",
]


def resized(data: bytes, size: int) -> bytes:
    """The WAV file with another size of its samples."""
    at = data.find(b"data") + 4
    return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize("size", [0, 2, 1000, 1001, 31998, 32002, 2**31, 2**32 - 16, 2**32 - 1])
@pytest.mark.parametrize("trailer", TRAILERS)
def test_a_wav_with_a_wrong_size_is_read_to_its_end(
    write: Callable[..., Path], size: int, trailer: bytes
) -> None:
    audio = ramp(2, 8000)
    if b"odd" in trailer:
        trailer = trailer.partition(b"odd")[0]
    path = write(audio)
    path.write_bytes(resized(path.read_bytes(), size) + trailer)
    np.testing.assert_array_equal(read_audio(path)[0], audio)
    assert read_info(path).frames == 8000
    np.testing.assert_array_equal(read_audio(path, -0.5, 0.25)[0], audio[:, 4000:6000])


@pytest.mark.parametrize("trailer", [*TRAILERS, b"\0" * 500, b"TAG" + b"x" * 125, b"LIST\xff\0\0\0INFO"])
def test_what_follows_the_samples_of_a_wav_is_no_audio(write: Callable[..., Path], trailer: bytes) -> None:
    audio = ramp(1, 8000)
    path = write(audio)
    path.write_bytes(path.read_bytes() + trailer)
    np.testing.assert_array_equal(read_audio(path)[0], audio)


def test_empty_samples_in_front_of_others_are_skipped(write: Callable[..., Path]) -> None:
    audio = ramp(1, 8000)
    path = write(audio)
    head, samples = path.read_bytes()[:36], path.read_bytes()[36:]
    path.write_bytes(head + b"data\0\0\0\0LIST\4\0\0\0abcd" + samples)
    np.testing.assert_array_equal(read_audio(path)[0], audio)


@pytest.mark.parametrize("size", [32000, 0, 2**32 - 1, 1000])
@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("options", [{}, {"endian": "BIG"}])
def test_joined_wav_files_are_read_to_their_end(
    write: Callable[..., Path], size: int, trailer: bytes, options: dict[str, str]
) -> None:
    audio = ramp(2, 8000)
    path = write(audio, **options)
    if options:
        assert path.read_bytes()[:4] == b"RIFX"
        data = path.read_bytes()
    else:
        data = resized(path.read_bytes(), size) + trailer
    path.write_bytes(data * 3)
    np.testing.assert_array_equal(read_audio(path)[0], np.concatenate([audio] * 3, axis=1))
    assert read_info(path).frames == 24000


def test_joined_wav_files_of_odd_length_and_other_kinds_are_read(write: Callable[..., Path]) -> None:
    parts = [write(np.full((1, 8001), 0.25), subtype="PCM_U8").read_bytes()]
    parts.append(write(np.full((2, 16000), 0.5), rate=2 * RATE, subtype="FLOAT").read_bytes())
    path = write(np.zeros((1, 1)))
    for first in (parts[0], parts[0].removesuffix(b"\0")):
        path.write_bytes(first + parts[1])
        read, rate = read_audio(path)
        assert (read.shape, rate) == ((1, 16001), RATE)
        np.testing.assert_allclose(read[0, 9000:15000], 0.5, atol=0.01)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("size", [None, 0, 1000, 2**64 - 1])
def test_a_64_bit_wav_is_read_to_its_end(write: Callable[..., Path], magic: bytes, size: int | None) -> None:
    audio = ramp(2, 8000)
    path = write(audio, format="RF64")
    data = bytearray(path.read_bytes())
    at = data.find(b"ds64") + 8
    assert at == 20
    if size is not None:
        data[at : at + 24] = size.to_bytes(8, "little") * 3
    path.write_bytes(magic + data[4:])
    np.testing.assert_array_equal(read_audio(path)[0], audio)
    assert read_info(path).frames == 8000


@pytest.mark.parametrize("size", [0, 1000, 2**32 - 1])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_an_au_file_is_read_to_its_end(write: Callable[..., Path], size: int, endian: str) -> None:
    audio = ramp(2, 8000)
    path = write(audio, "a.au", endian=endian)
    data = bytearray(path.read_bytes())
    data[8:12] = size.to_bytes(4, "big" if endian == "BIG" else "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path)[0], audio)


@pytest.mark.parametrize("name", ["a.aiff", "a.au", "a.caf", "a.w64"])
def test_joined_files_of_other_formats_are_read_to_their_end(write: Callable[..., Path], name: str) -> None:
    audio = ramp(2, 8001)
    path = write(audio, name)
    path.write_bytes(path.read_bytes() * 2)
    np.testing.assert_array_equal(read_audio(path)[0], np.concatenate([audio, audio], axis=1))
    assert read_info(path).frames == 2 * 8001


@pytest.mark.parametrize("size", [0, 2**63 - 1, 2**64 - 1])
def test_a_w64_file_without_a_size_is_read_to_its_end(write: Callable[..., Path], size: int) -> None:
    audio = ramp(2, 8000)
    path = write(audio, "a.w64")
    data = bytearray(path.read_bytes())
    at = data.find(b"data") + 16
    data[at : at + 8] = size.to_bytes(8, "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path)[0], audio)


def test_mp3_in_a_wav_file_has_the_length_that_is_decoded(tmp_path: Path, write: Callable[..., Path]) -> None:
    data = without_info(mp3_file(tmp_path, 3))
    wave_format = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 32000, 8000, 1, 0, 12, 1, 2, 576, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(wave_format)) + wave_format
    chunks += b"data" + struct.pack("<I", len(data)) + data + b"LIST\4\0\0\0INFO"
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    read, rate = read_audio(path)
    assert read.shape[1] / rate == pytest.approx(3, abs=0.1)
    assert read_info(path).frames == read.shape[1]
    np.testing.assert_array_equal(read_audio(path, -2.0)[0], read[:, -2 * rate :])


def test_a_wav_without_samples_but_with_tags_is_empty(write: Callable[..., Path]) -> None:
    path = write(np.zeros((1, 0)))
    path.write_bytes(path.read_bytes() + b"LIST\4\0\0\0INFO")
    assert "has no samples" in refused(path)


@pytest.mark.parametrize(
    ("peak", "scale"), [(13107, 32768), (32768, 32768), (5e6, 8388608), (2e9, 2147483648)]
)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_stored_as_floats_are_refused(
    write: Callable[..., Path], subtype: str, peak: float, scale: int
) -> None:
    audio = peak * np.sin(np.arange(1000) / 20)[None]
    message = refused(write(audio, subtype=subtype))
    assert f"where full scale is 1; divide them by {scale}" in message


def test_float_audio_beyond_full_scale_is_read_as_it_is(write: Callable[..., Path]) -> None:
    audio = (4 * np.sin(np.arange(1000) / 20)[None]).astype(np.float32)
    np.testing.assert_array_equal(read_audio(write(audio, subtype="FLOAT"))[0], audio)


def test_channels_that_cancel_out_are_heard_as_one() -> None:
    wave = np.sin(np.arange(1000) / 20).astype(np.float32)
    np.testing.assert_array_equal(without_cancellation(np.stack([0.5 * wave, -0.5 * wave])), [0.5 * wave])
    almost = np.stack([0.5 * wave, -0.499 * wave])
    np.testing.assert_array_equal(without_cancellation(almost), almost[:1])
    for usual in (np.stack([wave, 0 * wave]), np.stack([wave, wave[::-1]]), wave[None], np.zeros((2, 9))):
        assert without_cancellation(usual) is usual


MANY = 1_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * MANY,
        b"RIFF\xff\xff\xff\xffWAVE" + bytes(8 * MANY),
        b"fLaC\0\0\0\x22" + bytes(34) + b"\1\0\0\0" * MANY,
        b"ID3\4\0\0\0\0\0\0" * MANY,
        b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x08free" * MANY,
    ],
    ids=["chunks", "zeros", "flac", "id3", "mp4"],
)
def test_endless_chunks_are_refused_before_libraries_read_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UsageError, match="a has too many chunks or tags; convert it to WAV"):
        read_audio(tmp_path / "a")


@pytest.mark.parametrize("name", ["WAV", "FLAC", "AU"])
def test_files_of_endless_parts_are_refused_after_the_first_ones(tmp_path: Path, name: str) -> None:
    part = io.BytesIO()
    soundfile.write(part, np.zeros(1, np.float32), 8000, format=name)
    (tmp_path / "a").write_bytes(part.getvalue() * 100_000)
    with pytest.raises(UsageError, match="a was joined from more than 1000 files"):
        read_audio(tmp_path / "a")


def test_samples_of_an_unknown_size_end_before_what_only_looks_like_chunks(tmp_path: Path) -> None:
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    samples, chunk = bytes(2000), b"junk\0\0\0\0"
    for end, count in ((chunk * 900, 1000), (chunk * 100_000 + b"\xff" * 10, 1000 + 400_005)):
        (tmp_path / "a").write_bytes(head + b"data\xff\xff\xff\xff" + samples + end)
        assert read_info(tmp_path / "a").frames == count
