"""Joins: their spectral flux, beats, and where a cross-fade is heard least."""

from __future__ import annotations

import numpy as np
import pytest

from audiocraft_mlx.audio.beat import beat_times, find_beat, phase_error
from audiocraft_mlx.audio.flux import log_spectra, onset_strength, spectral_flux
from audiocraft_mlx.audio.join import beat_flux, choose_crossfade, crossfade, join_flux, measure_join

RATE = 16_000


def tone(hertz: float, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)[None] * 0.3


def beats(bpm: float, seconds: float, first: float = 0.1) -> np.ndarray:
    """Short bursts of noise, over a quiet tone."""
    audio = 0.1 * tone(220, seconds)
    burst = np.random.default_rng(0).normal(size=800) * np.exp(-np.arange(800) / 200) * 0.3
    for at in np.arange(first, seconds - 0.06, 60 / bpm):
        place = round(at * RATE)
        audio[0, place : place + 800] += burst.astype(np.float32)
    return audio


def test_the_flux_is_where_the_sound_changes() -> None:
    spectra = log_spectra(np.concatenate([tone(440, 1), tone(880, 1)], axis=1), RATE)
    flux = spectral_flux(spectra)
    assert abs(flux[20:-20].argmax() + 20 - 200) <= 3  # of 5 ms
    assert flux[20:180].max() < 0.1 * flux[190:210].max()
    assert join_flux(spectra, 0.99, 1.01) == flux[190:210].max()


def test_the_flux_doesnt_depend_on_the_level() -> None:
    audio = beats(120, 2)
    assert np.allclose(
        spectral_flux(log_spectra(audio, RATE)), spectral_flux(log_spectra(0.01 * audio, RATE)), atol=1e-3
    )


@pytest.mark.parametrize("bpm", [75, 93.7, 120, 150])
def test_a_beat_is_found_to_a_fraction_of_a_millisecond(bpm: float) -> None:
    found = find_beat(log_spectra(beats(bpm, 8, first=0.13), RATE))
    assert found is not None
    assert 60 / found.period == pytest.approx(bpm, rel=1e-3)
    times = beat_times(found, 8)
    assert np.abs(times - np.arange(0.13, 8, 60 / bpm)[: len(times)]).max() < 0.02


@pytest.mark.parametrize("audio", [np.zeros((1, 4 * RATE), np.float32), tone(300, 4), tone(300, 0.1)])
def test_what_has_no_beat_has_none(audio: np.ndarray) -> None:
    assert find_beat(log_spectra(audio, RATE)) is None


def test_noise_has_no_beat() -> None:
    noise = np.random.default_rng(1).normal(size=(1, 4 * RATE)).astype(np.float32)
    assert find_beat(log_spectra(noise, RATE)) is None


@pytest.mark.parametrize("late", [-0.08, 0.0, 0.05, 0.1])
def test_the_phase_of_beats_is_followed_over_a_join(late: float) -> None:
    """Beats of 0.5 s, the last of them 0.2 s before the join."""
    before = onset_strength(log_spectra(beats(120, 3, first=0.3), RATE))
    after = onset_strength(log_spectra(beats(120, 3, first=0.3 + late), RATE))
    error = phase_error(before[:600], after[:600], 0.005, 0.5)
    assert error == pytest.approx(late, abs=0.004)


def test_beats_are_what_a_join_is_compared_with() -> None:
    audio = beats(120, 6)
    spectra = log_spectra(audio, RATE)
    loudest = spectral_flux(spectra).max()
    assert 0.8 * loudest < beat_flux(spectra, 0.02, find_beat(spectra)) <= loudest
    assert 0.8 * loudest < beat_flux(spectra) <= loudest


def test_a_cut_into_another_sound_is_heard_more_than_a_crossfade() -> None:
    before, after = tone(440, 2), tone(470, 2)
    cut = np.concatenate([before, after], axis=1)
    place, length = 2 * RATE, RATE // 20
    faded = np.concatenate(
        [
            before[:, :-length],
            crossfade(before[:, -length:], after[:, :length]),
            after[:, length:],
        ],
        axis=1,
    )
    of_cut = measure_join(cut, RATE, place, place)
    of_fade = measure_join(faded, RATE, place - length, place)
    assert of_fade.flux < of_cut.flux
    assert of_fade.score < of_cut.score


def test_a_click_is_told_by_its_step() -> None:
    audio = tone(200, 2)
    broken = audio.copy()
    broken[:, RATE:] *= -1
    place = RATE + 20  # near a crest of the wave
    broken[:, place:] = -broken[:, place:]
    assert measure_join(broken, RATE, place, place).clicks
    assert not measure_join(audio, RATE, RATE, RATE).clicks


def test_the_power_of_a_crossfade_is_equal_for_other_and_for_the_same_sound() -> None:
    noise = np.random.default_rng(2).normal(size=(2, RATE)).astype(np.float32)
    for before, after in ((noise[:1], noise[1:]), (noise[:1], noise[:1])):
        mixed = crossfade(before, after)
        parts = np.square(mixed).reshape(8, -1).mean(axis=1)
        assert np.abs(parts - 1).max() < 0.15
    assert np.allclose(crossfade(noise[:1], noise[:1]), noise[:1], atol=1e-6)
    assert crossfade(noise[:, :0], noise[:, :0]).shape == (2, 0)


def test_the_crossfade_is_where_both_sound_alike() -> None:
    """They differ but for a stretch from 0.08 to 0.2 s."""
    before, after = tone(440, 0.3), tone(440, 0.3)
    same = slice(round(0.08 * RATE), round(0.2 * RATE))
    other = tone(660, 0.3)
    other[:, same] = after[:, same]
    place = choose_crossfade(before, other, RATE, round(0.02 * RATE))
    assert 0.08 * RATE <= place <= 0.18 * RATE


def test_without_room_the_crossfade_begins_at_once() -> None:
    audio = tone(440, 0.02)
    assert choose_crossfade(audio, audio, RATE, audio.shape[1]) == 0
    assert choose_crossfade(audio, audio, RATE, 2 * audio.shape[1]) == 0
