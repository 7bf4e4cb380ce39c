"""Audio that waits on disk."""

from __future__ import annotations

import math
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.errors import OutputError, UsageError

from .fake_model import raiser

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 600_000)).astype(np.float32)


def recorded(folder: Path, audio: np.ndarray = NOISE, piece: int = 7001) -> AudioSpool:
    recording = AudioSpool(len(audio), folder / "a.wav")
    for start in range(0, audio.shape[1], piece):
        recording.append(audio[:, start : start + piece])
    return recording


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    recording = recorded(tmp_path)
    assert (recording.channels, recording.samples) == NOISE.shape
    assert recording.peak == np.abs(NOISE).max()
    np.testing.assert_array_equal(recording.read(), NOISE)
    np.testing.assert_array_equal(np.concatenate(list(recording.blocks()), axis=1), NOISE)
    assert list(tmp_path.iterdir()) == [], "it has no name"


def test_an_empty_one_is_empty(tmp_path: Path) -> None:
    recording = AudioSpool(2, tmp_path / "a.wav")
    assert recording.read().shape == (2, 0)
    with pytest.raises(UsageError, match="not empty"):
        write_audio(tmp_path / "a.wav", recording, 32000)


@pytest.mark.parametrize(
    "format", [AudioFormat("wav", 16), AudioFormat("flac", 24), AudioFormat("ogg", None)]
)
def test_it_is_written_like_an_array(tmp_path: Path, format: AudioFormat) -> None:
    for name, audio in (("array", NOISE * 3), ("recording", recorded(tmp_path, NOISE * 3))):
        assert write_audio(tmp_path / name, audio, 32000, format) == pytest.approx(1.5, rel=1e-3)
    array, recording = (soundfile.read(tmp_path / name)[0] for name in ("array", "recording"))
    np.testing.assert_array_equal(array, recording)


def test_its_length_costs_no_memory(tmp_path: Path) -> None:
    peaks = []
    for times in (1, 8):
        recording = AudioSpool(2, tmp_path / "a.wav")
        tracemalloc.start()
        for _ in range(times):
            recording.append(NOISE)
        write_audio(tmp_path / "a.wav", recording, 32000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_a_value_that_is_no_number_is_never_lost(tmp_path: Path) -> None:
    audio = NOISE[:, :100].copy()
    audio[1, 3] = np.nan
    recording = recorded(tmp_path, audio, piece=10)
    assert math.isnan(recording.peak)
    with pytest.raises(OutputError, match="no finite numbers"):
        write_audio(tmp_path / "a.wav", recording, 32000)


def test_a_place_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, "No space left on device")
    recording = AudioSpool(2, tmp_path / "a.wav")
    monkeypatch.setattr(recording, "_file", type("Full", (), {"seek": raiser(full)})())
    with pytest.raises(OutputError, match=r"a\.wav can't be written: No space left on device; free some"):
        recording.append(NOISE)
    monkeypatch.setattr(tempfile, "TemporaryFile", raiser(full))
    with pytest.raises(OutputError, match=r"a\.wav can't be written"):
        AudioSpool(2, tmp_path / "a.wav")
