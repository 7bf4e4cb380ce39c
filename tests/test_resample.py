import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx.audio.resample import convert_audio, convert_audio_channels, resample
from audiocraft_mlx.errors import UsageError


def sine(frequency: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def filtered(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Each output by itself, of the inputs around it, at the reference's times: what `resample` should be."""
    length = len(wav) * to_rate // from_rate
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor
    lower = np.float32(min(old, new) * 0.945)
    reach = math.ceil(24 * old / lower)
    outputs = []
    for place in range(length):
        period, phase = divmod(place, new)
        around = np.arange(phase * old // new - reach - 1, phase * old // new + reach + 3)
        time = around.astype(np.float32) / np.float32(old) - np.float32(phase / new)
        crossings = np.clip(time * lower, -24, 24).astype(np.float64)
        taps = np.sinc(crossings) * np.cos(crossings * np.pi / 48) ** 2
        inputs = wav[np.clip(period * old + around, 0, len(wav) - 1)]
        outputs.append(taps @ inputs / taps.sum())
    return np.array(outputs)


@pytest.mark.parametrize(
    "case",
    ["44100_32000_1", "48000_32000_2", "32000_44100_2", "32000_24000_1"],
)
def test_conversion_equals_the_reference(goldens: Path, case: str) -> None:
    with np.load(goldens / "goldens" / "audio.npz") as file:
        wav, expected = file["wav"][:, :8000], file[f"convert.{case}"]
    from_rate, to_rate, channels = map(int, case.split("_"))
    converted = convert_audio(wav, from_rate, to_rate, channels)
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("from_rate", "to_rate", "length"),
    [
        (44100, 32000, 2001),
        (32000, 24000, 1),
        (22050, 16000, 2),
        (8000, 32000, 100),
        (192000, 32000, 1500),
        (11127, 12007, 999),
        (47952, 48000, 1013),
    ],
)
def test_any_rates_and_lengths_equal_filtering_each_output(from_rate: int, to_rate: int, length: int) -> None:
    wav = noise(length)
    resampled = resample(wav, from_rate, to_rate)
    np.testing.assert_allclose(resampled, filtered(wav, from_rate, to_rate), atol=1e-5)


def test_blocks_of_long_audio_join_without_seams() -> None:
    rate, seconds = 44100, 60
    wav = sine(440, rate, seconds)
    resampled = resample(wav, rate, 32000)
    np.testing.assert_allclose(resampled[100:-100], sine(440, 32000, seconds)[100:-100], atol=1e-4)


def test_rows_are_independent() -> None:
    wav = noise(2, 3, 999)
    together = resample(wav, 44100, 32000)
    assert together.shape == (2, 3, 724)
    for row in np.ndindex(2, 3):
        np.testing.assert_allclose(together[row], resample(wav[row], 44100, 32000), atol=1e-6)


def test_frequencies_above_the_lower_rate_are_removed() -> None:
    resampled = resample(sine(15000, 48000, 0.2), 48000, 24000)
    assert np.abs(resampled[100:-100]).max() < 1e-3


def test_the_same_rate_changes_nothing() -> None:
    wav = noise(2, 77)
    np.testing.assert_array_equal(resample(wav, 32000, 32000), wav)


def test_float16_becomes_float32() -> None:
    resampled = resample(np.ones((1, 50), np.float16), 16000, 32000)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, 1, atol=1e-6)


def test_empty_audio_stays_empty() -> None:
    assert resample(np.zeros((2, 0), np.float32), 44100, 32000).shape == (2, 0)


def test_long_audio_takes_little_more_memory_than_itself_and_its_result() -> None:
    wav = np.zeros((1, 44100 * 240), np.float32)
    result = wav.nbytes * 32000 // 44100
    resample(wav[:, :1000], 44100, 32000)
    tracemalloc.start()
    try:
        resample(wav, 44100, 32000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < result + 25e6


@pytest.mark.parametrize("rate", [0, -44100, 999, 768001, 44100.5, True, "44100", None])
def test_impossible_rates_are_refused(rate: object) -> None:
    for rates in ((rate, 32000), (32000, rate)):
        with pytest.raises(UsageError, match=r"sample rate must be an integer from 1000 to 768000 Hz"):
            resample(np.zeros((1, 10), np.float32), *rates)


def test_channels_are_mixed_repeated_or_dropped() -> None:
    wav = noise(3, 8)
    np.testing.assert_allclose(convert_audio_channels(wav, 1), wav.mean(0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(convert_audio_channels(wav, 2), wav[:2])
    np.testing.assert_array_equal(convert_audio_channels(wav, 3), wav)
    np.testing.assert_array_equal(convert_audio_channels(wav[:1], 2), np.concatenate([wav[:1], wav[:1]]))
    assert convert_audio_channels(wav[None], 1).shape == (1, 1, 8)


def test_missing_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="2 channels"):
        convert_audio_channels(np.zeros((2, 10)), 3)
