import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import BIT_DEPTHS, AudioFormat, choose_format
from audiocraft_mlx.audio.read import read_audio, read_info
from audiocraft_mlx.audio.tags import AudioTags
from audiocraft_mlx.audio.write import check_wav_size, write_audio, write_wav
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import check_writable, next_free_path

FORMATS = [AudioFormat(name, bits) for name, depths in BIT_DEPTHS.items() for bits in depths or (None,)]


def sine(channels: int = 1, samples: int = 640, peak: float = 0.5) -> np.ndarray:
    wave = np.sin(np.linspace(0, 20, samples, dtype=np.float32))
    return np.stack([peak * wave / np.abs(wave).max() / (1 + channel) for channel in range(channels)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("channels", [1, 2])
def test_the_file_holds_the_audio_in_16_bits(tmp_path: Path, channels: int) -> None:
    audio = sine(channels)
    assert write_wav(tmp_path / "a.wav", audio, 32000) == pytest.approx(0.5)
    read, rate = soundfile.read(tmp_path / "a.wav", dtype="int16", always_2d=True)
    assert rate == 32000
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    np.testing.assert_array_equal(read.T, np.rint(audio * 32768))


@pytest.mark.parametrize("write", [write_wav, write_audio])
def test_a_path_may_be_a_string(tmp_path: Path, write: Callable[..., float]) -> None:
    name = str(tmp_path / "a.wav")
    write(name, sine(), 32000)
    assert read_audio(name)[1] == read_info(name).rate == 32000
    with pytest.raises(OutputError, match=r"nowhere/a\.wav can't be written"):
        write(str(tmp_path / "nowhere" / "a.wav"), sine(), 32000)
    assert choose_format("a.flac").name == "flac"


def test_full_scale_is_kept(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([[1.0, -1.0, 0.25]], np.float32), 32000)
    read, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert read.tolist() == [32767, -32768, 8192]


def test_audio_beyond_full_scale_is_scaled_down_as_a_whole(tmp_path: Path) -> None:
    audio = sine(2, peak=1.6)
    assert write_wav(tmp_path / "a.wav", audio, 32000) == pytest.approx(1.6)
    read, _ = soundfile.read(tmp_path / "a.wav", always_2d=True)
    np.testing.assert_allclose(read.T, audio / 1.6, atol=1e-4)


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 32000)])
def test_each_format_holds_the_audio_as_exactly_as_it_can(
    tmp_path: Path, audio_format: AudioFormat, channels: int, rate: int
) -> None:
    audio = sine(channels, samples=3200)
    path = tmp_path / f"a.{audio_format.name}"
    write_audio(path, audio, rate, audio_format)
    read, read_rate = soundfile.read(path, dtype="float32", always_2d=True)
    info = soundfile.info(path)
    assert (info.format, read_rate, info.channels) == (audio_format.name.upper(), rate, channels)
    # Full scale is 2 ** 15 when reading, one step less when writing.
    step = {16: 1.6e-5 + 0.5 * 2**-15, 24: 2**-23, 32: 0, None: 0.06}[audio_format.bits]
    np.testing.assert_allclose(read.T, audio, atol=step)
    if audio_format.bits == 24:
        assert np.abs(read.T - audio).max() < 1e-6


def test_24_bits_reach_full_scale_without_wrapping_around(tmp_path: Path) -> None:
    for name in ("wav", "flac"):
        write_audio(
            tmp_path / f"a.{name}", np.array([[1.0, -1.0, 0.25]], np.float32), 32000, AudioFormat(name, 24)
        )
        read, _ = soundfile.read(tmp_path / f"a.{name}", dtype="int32")
        assert (read >> 8).tolist() == [8388607, -8388608, 2097152]


@pytest.mark.parametrize("audio_format", FORMATS)
def test_audio_beyond_full_scale_is_scaled_down_in_each_format(
    tmp_path: Path, audio_format: AudioFormat
) -> None:
    path = tmp_path / f"a.{audio_format.name}"
    assert write_audio(path, sine(2, 3200, peak=3), 32000, audio_format) == pytest.approx(3)
    read, _ = soundfile.read(path)
    assert np.abs(read).max() == pytest.approx(1, abs=0.03)


def test_minutes_of_ogg_can_be_written(tmp_path: Path) -> None:
    # In another process, because libsndfile crashes on large blocks.
    script = f"""
from pathlib import Path
import numpy as np
from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.write import write_audio
silence = np.zeros((2, 8_000_000), np.float32)
write_audio(Path({str(tmp_path / "a.ogg")!r}), silence, 32000, AudioFormat("ogg", None))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert soundfile.info(tmp_path / "a.ogg").frames == 8_000_000


def test_more_channels_than_the_format_has_are_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.mp3: mp3 can't hold this audio .*; try wav$"):
        write_audio(tmp_path / "a.mp3", sine(5), 32000, AudioFormat("mp3", None))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "chosen", "bits", "expected"),
    [
        ("a.wav", None, None, AudioFormat("wav", 16)),
        ("a.b.FLAC", None, None, AudioFormat("flac", 16)),
        ("a.mp3", None, None, AudioFormat("mp3", None)),
        ("a.ogg", "ogg", None, AudioFormat("ogg", None)),
        ("a", "flac", 24, AudioFormat("flac", 24)),
        ("a.wav", None, 32, AudioFormat("wav", 32)),
        ("a.tmp", "mp3", None, AudioFormat("mp3", None)),
    ],
)
def test_the_format_is_chosen_by_name_or_extension(
    name: str, chosen: str | None, bits: int | None, expected: AudioFormat
) -> None:
    assert choose_format(Path(name), chosen, bits) == expected


@pytest.mark.parametrize(
    ("name", "chosen", "bits", "message"),
    [
        (
            "a.m4a",
            None,
            None,
            r"^a\.m4a doesn't end in the name of a format; choose one of wav, flac, mp3, ogg$",
        ),
        ("a", None, None, r"^a doesn't end"),
        ("a.wav", "aiff", None, r"^the format must be one of wav, flac, mp3, ogg, not 'aiff'$"),
        ("a.wav", "mp3", None, r"^a\.wav ends in \.wav, but the format is mp3; change one of them$"),
        ("a.mp3", None, 16, r"^mp3 has no bit depth; 16 can't be chosen$"),
        ("a.ogg", None, 24, r"^ogg has no bit depth; 24 can't be chosen$"),
        ("a.flac", None, 32, r"^flac has 16 or 24 bits per sample; 32 can't be chosen$"),
        ("a.wav", None, 0, r"^wav has 16 or 24 or 32 bits per sample; 0 can't be chosen$"),
    ],
)
def test_unknown_and_conflicting_formats_are_refused(
    name: str, chosen: str | None, bits: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_format(Path(name), chosen, bits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_are_refused(tmp_path: Path, bad: float) -> None:
    audio = sine()
    audio[0, 7] = bad
    with pytest.raises(OutputError, match=r"a\.wav.*finite"):
        write_wav(tmp_path / "a.wav", audio, 32000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("shape", [(640,), (1, 1, 640), (1, 0), (0, 640)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"channels, samples"):
        write_wav(tmp_path / "a.wav", np.zeros(shape, np.float32), 32000)


def test_more_than_4_gib_of_wav_are_refused(tmp_path: Path) -> None:
    for bits, samples in ((16, 2**30), (24, 2**32 // 6), (32, 2**29)):
        check_wav_size(tmp_path / "a.wav", AudioFormat("wav", bits), 2, samples - 2**18)
        with pytest.raises(OutputError, match="4 GiB"):
            check_wav_size(tmp_path / "a.wav", AudioFormat("wav", bits), 2, samples)
    check_wav_size(tmp_path / "a.flac", AudioFormat("flac", 16), 2, 2**30)


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("old")
    write_wav(tmp_path / "a.wav", sine(), 32000)
    assert soundfile.info(tmp_path / "a.wav").frames == 640
    assert names(tmp_path) == ["a.wav"]


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_wav(tmp_path / "a.wav", sine(), 32000)
    assert (tmp_path / "a.wav").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        raise error

    (tmp_path / "a.wav").write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        write_wav(tmp_path / "a.wav", sine(), 32000)
    assert names(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_short_write_is_reported_and_cleaned_up(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk: the write ends in the middle.
    script = f"""
import resource, signal
from pathlib import Path
import numpy as np
from audiocraft_mlx.audio.write import write_wav
from audiocraft_mlx.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_wav(Path({str(tmp_path / "a.wav")!r}), np.zeros((1, 32000), np.float32), 32000)
except OutputError as error:
    print(error)
"""
    # -B: a module that is imported behind the limit would leave a damaged .pyc.
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'a.wav'} can't be written: File too large; free some space\n"
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
@pytest.mark.parametrize("audio_format", [AudioFormat("wav", 16), AudioFormat("flac", 24)])
def test_a_killed_writer_leaves_a_complete_file(tmp_path: Path, audio_format: AudioFormat) -> None:
    # In a process without threads, so that it can fork the writers that it kills: they write two clips in
    # turn, and the file must always be exactly one of them.
    path = tmp_path / f"a.{audio_format.name}"
    script = f"""
import os, random, signal, time
from pathlib import Path
import numpy as np
from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.tags import AudioTags
from audiocraft_mlx.audio.write import write_audio
path, audio_format = Path({str(path)!r}), {audio_format!r}
noise = np.random.default_rng(0).uniform(-1, 1, (2, 48000)).astype(np.float32)
clips = [noise[:, :24000], noise]
def write(clip):
    write_audio(path, clip, 32000, audio_format, AudioTags("rock", "{{}}"))
complete = set()
for clip in clips:
    write(clip)
    complete.add(path.read_bytes())
random.seed(0)
for turn in range(25):
    child = os.fork()
    if child == 0:
        while True:
            for clip in clips:
                write(clip)
    time.sleep(random.uniform(0.002, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if path.read_bytes() not in complete:
        raise SystemExit(f"a partial file after turn {{turn}}")
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert done.returncode == 0
    # The killed process' temporary files remain: hidden, and with a name that no clip has.
    assert all(name == path.name or name.endswith(".part") for name in names(tmp_path))


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_failure_leaves_the_old_file_in_each_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audio_format: AudioFormat
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"a.{audio_format.name}"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"can't be written: No space left on device; free some space$"):
        write_audio(path, sine(), 32000, audio_format, AudioTags("rock", "{}"))
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda path, mode: io.FileIO("/dev/full", "w"))
    with pytest.raises(
        OutputError, match=r"a\.wav can't be written: No space left on device; free some space$"
    ):
        write_wav(tmp_path / "a.wav", sine(), 32000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_disk_that_fills_up_is_one_error_and_no_noise(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    audio_format: AudioFormat,
) -> None:
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # a module imported below the limit would be damaged
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 200_000)).astype(np.float32)
    for limit in (5_000, 70_000):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OutputError, match=r"can't be written: File too large; free some space$"):
                write_audio(tmp_path / "a", noise, 32000, audio_format, AudioTags("rock", "{}"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_checking_a_path_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "old.wav").write_text("old")
    check_writable(tmp_path / "new.wav")
    check_writable(tmp_path / "old.wav")
    assert names(tmp_path) == ["old.wav"]
    assert (tmp_path / "old.wav").read_text() == "old"


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none does not exist; choose another folder or create it$"):
        check_writable(tmp_path / "none" / "a.wav")


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file is not a folder;"):
        check_writable(tmp_path / "file" / "a.wav")
    with pytest.raises(OutputError, match=r"Not a directory;"):
        check_writable(tmp_path / "file" / "deeper" / "a.wav")


def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(OutputError, match=r"a\.wav is a folder; give the name of a file in it$"):
        check_writable(tmp_path / "a.wav")


def test_a_device_in_place_of_the_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.wav").symlink_to("/dev/null")
    with pytest.raises(OutputError, match="not a regular file"):
        check_writable(tmp_path / "a.wav")


def test_a_name_that_is_too_long_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300 + ".wav"))


def test_the_longest_name_works(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".wav")
    check_writable(path)
    write_wav(path, sine(), 32000)
    assert names(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, exist_ok: bool) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", deny)
    with pytest.raises(OutputError, match=r"a\.wav can't be written: Permission denied; choose another"):
        check_writable(tmp_path / "a.wav")


def test_the_next_free_name_counts_up(tmp_path: Path) -> None:
    path = tmp_path / "clip.v1.wav"
    taken = []
    for _ in range(3):
        taken.append(next_free_path(path).name)
        next_free_path(path).touch()
    assert taken == ["clip.v1.wav", "clip.v1-2.wav", "clip.v1-3.wav"]


def test_a_dangling_link_counts_as_used(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").symlink_to(tmp_path / "nowhere")
    assert next_free_path(tmp_path / "clip.wav").name == "clip-2.wav"
