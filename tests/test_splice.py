"""The joint of a source clip and its continuation."""

from __future__ import annotations

import numpy as np
import pytest

from audiocraft_mlx.audio.splice import append_continuation, broadcast_channels, smooth_joint

RATE = 32000


def sine(hertz: float, seconds: float = 0.5, phase: float = 0.0, rate: int = RATE) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate + phase)
    return wave[None].astype(np.float32)


@pytest.mark.parametrize("phase", [0.0, 1.5, 3.0, 4.5])
def test_there_is_no_click_at_the_joint(phase: float) -> None:
    before, new = sine(200), sine(200, phase=phase)
    joined = np.concatenate([before, smooth_joint(before, new, RATE)], axis=1)[0]
    normal = np.abs(np.diff(before[0])).max()
    assert np.abs(np.diff(joined)).max() < 1.3 * normal
    # Only the first hundredth of a second of the new part is changed.
    np.testing.assert_array_equal(joined[before.shape[1] + 320 :], new[0, 320:])
    np.testing.assert_array_equal(joined[: before.shape[1]], before[0])


def test_audio_that_starts_where_the_other_ends_is_unchanged() -> None:
    new = sine(200)
    np.testing.assert_array_equal(smooth_joint(new[:, :1], new, RATE), new)


def test_the_source_keeps_its_samples_and_the_new_part_its_length() -> None:
    source = sine(200, 1, rate=44100)
    joined = append_continuation(source, 44100, sine(200, 1), RATE, 44100)
    assert joined.shape == (1, 88200)
    np.testing.assert_array_equal(joined[:, :44100], source)
    joined = append_continuation(source, 44100, sine(200, 1), RATE, RATE)
    assert joined.shape == (1, 64000)


def test_loud_music_does_not_change_the_source() -> None:
    source = sine(200)
    joined = append_continuation(source, RATE, 4 * sine(300), RATE, RATE)
    np.testing.assert_array_equal(joined[:, : source.shape[1]], source)
    assert 0.9 < np.abs(joined).max() <= 1


def test_mono_gets_the_channels_of_the_other_part() -> None:
    mono, stereo = sine(200), np.concatenate([sine(300), sine(400)])
    for source, new in ((mono, stereo), (stereo, mono)):
        joined = append_continuation(source, RATE, new, RATE, RATE)
        assert joined.shape == (2, 32000)
        np.testing.assert_array_equal(joined[:, :16000], broadcast_channels(source, 2))
        np.testing.assert_array_equal(joined[:, 16320:], broadcast_channels(new, 2)[:, 320:])
