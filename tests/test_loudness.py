"""Normalization equal to audiocraft's, loudness after BS.1770, and edge cases."""

from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx.audio import loudness
from audiocraft_mlx.audio.loudness import (
    STRATEGIES,
    fade_out,
    integrated_loudness,
    normalize_audio,
    to_loudness,
    to_peak,
)
from audiocraft_mlx.errors import UsageError

from .conftest import load_arrays

RATE = 32000


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, np.ndarray]:
    return load_arrays(goldens / "goldens" / "audio.npz")


def wave(golden: dict[str, np.ndarray], channels: int, scale: float) -> np.ndarray:
    return golden["wav"][:channels, :16000] * np.float32(scale)


def check(result: np.ndarray, expected: np.ndarray) -> None:
    # Every 4th sample was kept, and of those maybe just the first ones.
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:, ::4][:, : expected.shape[1]], expected, atol=1e-4)


def sine(seconds: float, peak: float, rate: int = RATE, frequency: float = 997) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]


@pytest.mark.parametrize(("level", "scale"), [("loud", 4.0), ("quiet", 0.05)])
@pytest.mark.parametrize("boost_quiet", [True, False])
def test_levels_equal_audiocraft(
    golden: dict[str, np.ndarray], level: str, scale: float, boost_quiet: bool
) -> None:
    audio = wave(golden, 1, scale)
    end = f"{level}.{int(boost_quiet)}"
    check(to_peak(audio, boost_quiet=boost_quiet), golden[f"normalize.peak.{end}"])
    check(to_loudness(audio, RATE), golden[f"normalize.loudness.{end}"])


def test_loudness_of_stereo_equals_audiocraft(golden: dict[str, np.ndarray]) -> None:
    check(to_loudness(wave(golden, 2, 1), RATE), golden["normalize.loudness.stereo"])


def test_the_compressor_equals_audiocraft(golden: dict[str, np.ndarray]) -> None:
    check(to_loudness(wave(golden, 1, 1), RATE, compress=True), golden["normalize.loudness.compressor"])


def test_below_the_floor_loudness_is_left_as_in_audiocraft(golden: dict[str, np.ndarray]) -> None:
    check(to_loudness(wave(golden, 1, 0.001), RATE), golden["normalize.loudness.below_floor"])


@pytest.mark.parametrize("rate", [16000, 24000, 32000, 44100, 48000])
def test_a_sine_is_as_loud_as_the_standard_says(rate: int) -> None:
    # BS.1770: a sine of 997 Hz at full scale in one channel has -3.01 LUFS; both channels add up.
    assert integrated_loudness(sine(2, 0.1, rate), rate) == pytest.approx(-23.01, abs=0.1)
    assert integrated_loudness(np.tile(sine(2, 0.1, rate), (2, 1)), rate) == pytest.approx(-20.0, abs=0.1)


def test_silence_between_notes_does_not_count() -> None:
    notes = sine(2, 0.1)
    with_rests = np.concatenate([notes, np.zeros_like(notes), notes, notes * np.float32(0.01)], axis=1)
    assert integrated_loudness(with_rests, RATE) == pytest.approx(integrated_loudness(notes, RATE), abs=0.5)


def test_long_audio_is_measured_in_chunks_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = sine(5, 0.1, frequency=40)  # a low note, on which the filters' memory is longest
    whole = integrated_loudness(audio, RATE)
    monkeypatch.setattr(loudness, "_CHUNK_HOPS", 7)
    assert integrated_loudness(audio, RATE) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("lufs", [-23.0, -14.0])
def test_loudness_comes_out_as_asked(lufs: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 3 * RATE)).astype(np.float32)
    assert integrated_loudness(to_loudness(noise, RATE, lufs), RATE) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("samples", [1, 3, 4, 5, 100, 12799, 12801])
def test_short_and_silent_audio_is_fine(strategy: str, samples: int) -> None:
    for audio in (sine(1, 0.5)[:, 7 : 7 + samples], np.zeros((2, samples), np.float32)):
        result = normalize_audio(audio, RATE, strategy)
        assert result.shape == audio.shape
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
        assert audio.any() or not result.any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_input_is_not_modified(strategy: str) -> None:
    audio = sine(1, 2.0)
    before = audio.copy()
    fade_out(normalize_audio(audio, RATE, strategy), RATE, 0.5)
    np.testing.assert_array_equal(audio, before)


@pytest.mark.parametrize(
    ("strategy", "peak"),
    [("none", 0.95), ("peak", 0.891), ("loudness", 0.275)],
)
def test_each_strategy_has_its_own_peak(strategy: str, peak: float) -> None:
    assert np.abs(normalize_audio(sine(1, 0.95), RATE, strategy)).max() == pytest.approx(peak, rel=0.05)


def test_a_target_in_lufs_reaches_the_loudness() -> None:
    results = [normalize_audio(sine(1, 0.1), RATE, "loudness", lufs) for lufs in (-30, -24)]
    assert np.abs(results[1]).max() / np.abs(results[0]).max() == pytest.approx(10 ** (6 / 20), rel=0.01)


def decaying_notes(decay: float, channels: int = 1) -> np.ndarray:
    """Bursts of noise, two a second: the shorter the `decay` in seconds, the higher their peaks stand out."""
    time = np.arange(4 * RATE) / RATE
    noise = np.random.default_rng(3).normal(0, 0.3, (channels, 4 * RATE))
    return (noise * np.exp(-(time % 0.5) / decay)).astype(np.float32)


@pytest.mark.parametrize("lufs", [-60.0, -23.0, -14.0, -9.0])
@pytest.mark.parametrize("decay", [0.02, 0.1, 10.0])
def test_a_target_is_reached_where_peaks_must_be_limited(decay: float, lufs: float) -> None:
    result = normalize_audio(decaying_notes(decay, channels=2), RATE, "loudness", lufs)
    assert integrated_loudness(result, RATE) == pytest.approx(lufs, abs=0.2)
    assert np.abs(result).max() <= 1


def test_a_target_beyond_any_limiter_is_approached() -> None:
    clicks = np.zeros((1, 4 * RATE), np.float32)
    clicks[:, ::16000] = 0.9
    clicks += np.random.default_rng(4).normal(0, 1e-4, clicks.shape).astype(np.float32)
    before = integrated_loudness(clicks, RATE)
    result = normalize_audio(clicks, RATE, "loudness", -14)
    assert before < integrated_loudness(result, RATE) < -14.5
    assert np.abs(result).max() <= 1


def test_limiting_leaves_what_is_below_its_knee_alone() -> None:
    audio = decaying_notes(0.1)
    result = normalize_audio(audio, RATE, "loudness", -14)
    quiet = np.abs(result) < 0.9
    assert not quiet.all()  # some are limited
    gains = result[quiet & (np.abs(audio) > 1e-3)] / audio[quiet & (np.abs(audio) > 1e-3)]
    np.testing.assert_allclose(gains, gains[0], rtol=1e-5)


def test_the_limiter_is_smooth_and_keeps_the_order_of_samples() -> None:
    ramp = np.linspace(-3, 3, 6001, dtype=np.float32)[None]
    limited = loudness._limit(ramp)
    slopes = np.diff(limited.astype(np.float64)) / np.diff(ramp.astype(np.float64))
    assert (slopes > -1e-4).all()
    assert np.abs(np.diff(slopes)).max() < 0.02
    np.testing.assert_array_equal(limited, -limited[:, ::-1])


def test_full_scale_treble_is_measured_without_clipping() -> None:
    # K-weighting amplifies it by 4 dB, beyond full scale.
    treble = sine(2, 1.0, frequency=6000)
    quiet = integrated_loudness(treble * np.float32(0.1), RATE)
    assert integrated_loudness(treble, RATE) == pytest.approx(quiet + 20, abs=0.01)


def test_other_strategies_and_targets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must be one of none, peak, loudness, not 'loud'$"):
        normalize_audio(sine(1, 0.1), RATE, "loud")
    for lufs in (1.0, -71, float("nan")):
        with pytest.raises(UsageError, match="lufs must be a number from -70 to 0"):
            normalize_audio(sine(1, 0.1), RATE, "loudness", lufs)


def test_a_fade_falls_steadily_to_silence_at_the_end_alone() -> None:
    faded = fade_out(np.ones((2, 1000), np.float32), 1000, 0.4)
    assert faded.dtype == np.float32
    assert (faded[:, :600] == 1).all()
    assert (np.diff(faded[:, 600:]) < 0).all()
    assert (faded[:, -1] == 0).all()
    np.testing.assert_allclose(faded[:, 800], 0.5, atol=0.01)


@pytest.mark.parametrize(("seconds", "silent"), [(0, 0), (0.001, 0), (1, 1), (99, 1)])
def test_a_fade_may_be_empty_or_longer_than_the_audio(seconds: float, silent: int) -> None:
    faded = fade_out(np.ones((1, 1000), np.float32), 1000, seconds)
    assert faded.shape == (1, 1000)
    assert (faded == 0).sum() == silent


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_impossible_fades_are_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="the fade-out must be a number of seconds, 0 or more"):
        fade_out(sine(1, 0.1), RATE, seconds)
