"""Audio kept on disk until it is written."""

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


def spooled(folder: Path, audio: np.ndarray = NOISE, chunk: int = 7001) -> AudioSpool:
    spool = AudioSpool(len(audio), folder / "a.wav")
    for start in range(0, audio.shape[1], chunk):
        spool.append(audio[:, start : start + chunk])
    return spool


def test_appended_audio_is_read_back(tmp_path: Path) -> None:
    spool = spooled(tmp_path)
    assert (spool.channels, spool.samples) == NOISE.shape
    assert spool.peak == np.abs(NOISE).max()
    np.testing.assert_array_equal(spool.read(), NOISE)
    np.testing.assert_array_equal(np.concatenate(list(spool.blocks()), axis=1), NOISE)
    assert list(tmp_path.iterdir()) == [], "it has no name"


def test_an_empty_spool_is_empty(tmp_path: Path) -> None:
    spool = AudioSpool(2, tmp_path / "a.wav")
    assert spool.read().shape == (2, 0)
    with pytest.raises(UsageError, match="not empty"):
        write_audio(tmp_path / "a.wav", spool, 32000)


@pytest.mark.parametrize(
    "audio_format", [AudioFormat("wav", 16), AudioFormat("flac", 24), AudioFormat("ogg", None)]
)
def test_a_spool_is_written_like_an_array(tmp_path: Path, audio_format: AudioFormat) -> None:
    for name, audio in (("array", NOISE * 3), ("spool", spooled(tmp_path, NOISE * 3))):
        assert write_audio(tmp_path / name, audio, 32000, audio_format) == pytest.approx(1.5, rel=1e-3)
    array, spool = (soundfile.read(tmp_path / name)[0] for name in ("array", "spool"))
    np.testing.assert_array_equal(array, spool)


def test_length_costs_no_memory(tmp_path: Path) -> None:
    peaks = []
    for times in (1, 8):
        spool = AudioSpool(2, tmp_path / "a.wav")
        tracemalloc.start()
        for _ in range(times):
            spool.append(NOISE)
        write_audio(tmp_path / "a.wav", spool, 32000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_nan_is_never_lost(tmp_path: Path) -> None:
    audio = NOISE[:, :100].copy()
    audio[1, 3] = np.nan
    spool = spooled(tmp_path, audio, chunk=10)
    assert math.isnan(spool.peak)
    with pytest.raises(OutputError, match="NaN or infinite samples"):
        write_audio(tmp_path / "a.wav", spool, 32000)


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, "No space left on device")
    spool = AudioSpool(2, tmp_path / "a.wav")
    monkeypatch.setattr(spool, "_file", type("Full", (), {"seek": raiser(full)})())
    with pytest.raises(OutputError, match=r"a\.wav can't be written: No space left on device; free some"):
        spool.append(NOISE)
    monkeypatch.setattr(tempfile, "TemporaryFile", raiser(full))
    with pytest.raises(OutputError, match=r"a\.wav can't be written"):
        AudioSpool(2, tmp_path / "a.wav")
