"""What phones and browsers record, and what libsndfile can't read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx.audio import containers, decoders
from audiocraft_mlx.audio.read import decode_audio, read_audio, read_info
from audiocraft_mlx.errors import UsageError

av = pytest.importorskip("av")

SECONDS = 3


def encode(
    name: str,
    codec: str,
    format_name: str | None = None,
    rate: int = 48000,
    channels: int = 2,
    **options: str,
) -> bytes:
    """A tone of 440 Hz on the left and 880 Hz on the right, with a louder beginning."""
    time = np.arange(SECONDS * rate) / rate
    audio = np.stack([0.4 * np.sin(2 * np.pi * 440 * (1 + channel) * time) for channel in range(channels)])
    data = io.BytesIO()
    with av.open(data, "w", format=format_name or name, container_options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 128_000
        stream.layout = "stereo" if channels == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(audio.astype(np.float32), "fltp", stream.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
        fifo = av.AudioFifo()
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            converted.pts = None
            fifo.write(converted)
        size = stream.codec_context.frame_size or 1024
        while (piece := fifo.read(size)) or (piece := fifo.read()):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "codec", "format_name"),
    [
        ("memo.m4a", "aac", "ipod"),
        ("song.aac", "aac", "adts"),
        ("lossless.m4a", "alac", "ipod"),
        ("film.mp4", "aac", "mp4"),
        ("clip.3gp", "aac", "3gp"),
        ("recording.webm", "libopus", "webm"),
        ("recording.mka", "flac", "matroska"),
        ("song.wma", "wmav2", "asf"),
        ("film.ac3", "ac3", "ac3"),
        ("film.eac3", "eac3", "eac3"),
        ("old.mp2", "mp2", "mp2"),
        ("odd.mov", "pcm_s16le", "mov"),
        ("old.wav", "libmp3lame", "wav"),
    ],
)
def test_what_libsndfile_cannot_read_is_read(tmp_path: Path, name: str, codec: str, format_name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encode(name, codec, format_name))
    read, rate = read_audio(path)
    assert (rate, len(read), read.dtype) == (48000, 2, np.float32)
    assert read.shape[1] / rate == pytest.approx(SECONDS, abs=0.1)
    for channel, hertz in enumerate((440, 880)):
        levels = np.abs(np.fft.rfft(read[channel, rate : 2 * rate])) * 2 / rate
        assert levels.argmax() == hertz
        assert levels[hertz] == pytest.approx(0.4, abs=0.05)
    assert read_info(path).frames == read.shape[1]
    np.testing.assert_array_equal(read_audio(path, 1.0, 0.5)[0], read[:, rate : rate + rate // 2])
    np.testing.assert_array_equal(read_audio(path, -0.5)[0], read[:, -rate // 2 :])
    with pytest.raises(UsageError, match="ends after"):
        read_audio(path, 10)


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "memo.wav").write_bytes(encode("memo.m4a", "aac", "ipod", channels=1))
    assert len(read_audio(tmp_path / "memo.wav")[0]) == 1


def test_lossless_audio_keeps_its_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(encode("a.m4a", "alac", "ipod"))
    assert decode_audio(path).bits > 16
    path.write_bytes(encode("a.mov", "pcm_s16le", "mov"))
    assert decode_audio(path).bits == 16
    path.write_bytes(encode("a.mov", "pcm_s24le", "mov"))
    assert decode_audio(path).bits > 16
    path.write_bytes(encode("a.m4a", "aac", "ipod"))
    assert decode_audio(path).bits == 16, "AAC has no more, though it is decoded as floats"


def test_lossless_audio_keeps_its_length(tmp_path: Path) -> None:
    for format_name in ("ipod", "caf"):
        (tmp_path / "a").write_bytes(encode("a", "alac", format_name, rate=24000))
        assert read_audio(tmp_path / "a")[0].shape == (2, SECONDS * 24000)


@pytest.mark.parametrize(
    ("codec", "format_name"),
    [
        ("aac", "ipod"),
        ("alac", "caf"),
        ("aac", "adts"),
        ("libopus", "webm"),
        ("wmav2", "asf"),
        ("flac", "ogg"),
    ],
)
def test_joined_files_are_read_to_their_end(tmp_path: Path, codec: str, format_name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(encode("a", codec, format_name))
    length = read_info(path).frames
    path.write_bytes(path.read_bytes() * 2)
    read, rate = read_audio(path)
    assert read.shape[1] == pytest.approx(2 * length, abs=0.05 * rate)
    assert np.abs(read[:, -rate:]).max() > 0.3
    assert read_info(path).frames == read.shape[1]


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    data = encode("a", "alac", "caf")
    (tmp_path / "a.caf").write_bytes(data.replace(b"alac", b"alax"))
    with pytest.raises(UsageError, match="is not audio that can be read"):
        read_audio(tmp_path / "a.caf")


def test_integers_of_64_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.wav"
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 32000, 256000, 8, 64)
    body = b"WAVE" + fmt + struct.pack("<4sI", b"data", 8000) + bytes(8000)
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    with pytest.raises(UsageError, match=r"wide\.wav is not audio that can be read"):
        read_audio(path)


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    data = encode("a.webm", "libopus", "webm")
    (tmp_path / "a.webm").write_bytes(data[: len(data) * 2 // 3])
    read, rate = read_audio(tmp_path / "a.webm")
    assert 1 < read.shape[1] / rate < 2.5


def test_a_browsers_recording_has_no_length(tmp_path: Path) -> None:
    (tmp_path / "a.webm").write_bytes(encode("a.webm", "libopus", "webm", live="1"))
    read, rate = read_audio(tmp_path / "a.webm")
    assert read.shape[1] / rate == pytest.approx(SECONDS, abs=0.1)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "other.m4a").write_bytes(encode("memo.m4a", "aac", "ipod"))
    other = tmp_path / "other.m4a"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
    ):
        for name in ("list.m3u8", "list.ffconcat", "list.m4a"):
            (tmp_path / name).write_text(text)
            with pytest.raises(UsageError, match="is not audio"):
                read_audio(tmp_path / name)


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memo.m4a"
    path.write_bytes(encode("memo.m4a", "aac", "ipod"))
    monkeypatch.setattr(decoders, "has_pyav", lambda: False)
    with pytest.raises(UsageError) as caught:
        read_audio(path)
    assert str(caught.value).startswith(str(path))
    assert "musicgen-mlx[formats]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pyav_is_imported_only_for_files_that_need_it(tmp_path: Path) -> None:
    script = f"""
import sys, numpy as np, soundfile
from audiocraft_mlx.audio.read import read_audio
soundfile.write({str(tmp_path / "a.wav")!r}, np.zeros(100), 32000)
read_audio({str(tmp_path / "a.wav")!r})
assert "av" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert containers.has_pyav()


@pytest.mark.parametrize("with_pyav", [True, False])
@pytest.mark.parametrize("kept", [100, 5000, 40000])
def test_an_m4a_file_that_was_cut_off_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, with_pyav: bool
) -> None:
    path = tmp_path / "memo.m4a"
    path.write_bytes(encode("memo.m4a", "aac", "ipod")[:kept])
    if not with_pyav:
        monkeypatch.setattr(decoders, "has_pyav", lambda: False)
    with pytest.raises(UsageError, match=r"memo\.m4a is an M4A or MP4 file that was cut off or is damaged: "):
        read_audio(path)


def test_a_whole_m4a_file_is_not_called_cut_off() -> None:
    assert not containers.is_cut_off_mp4(encode("memo.m4a", "aac", "ipod"))
    for data in (b"", b"RIFF", b"\0\0\0\x08free" * 3):
        assert not containers.is_cut_off_mp4(data)
    assert not containers.is_cut_off_mp4(b"\0\0\0\x08ftyp" * 2000)
