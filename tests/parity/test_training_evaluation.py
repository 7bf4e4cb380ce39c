"""The measures of the demo model's evaluation, on signals with known answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("librosa")

TRAINING = Path(__file__).parents[2] / "training"
RATE = 32000


@pytest.fixture(scope="module")
def training() -> Iterator[SimpleNamespace]:
    """The training scripts' modules, which aren't a package: they import each other by their bare names."""
    known = set(sys.modules)
    sys.path.insert(0, str(TRAINING))
    try:
        import attributes
        import estimators
        import measures
        import spectra

        yield SimpleNamespace(
            attributes=attributes, estimators=estimators, measures=measures, spectra=spectra
        )
    finally:
        sys.path.remove(str(TRAINING))
        for name in set(sys.modules) - known:
            if str(TRAINING) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def note(key: float, seconds: float, level: float = 0.2) -> np.ndarray:
    """Five partials that decay within a third of a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((key - 69) / 12)
    tone = sum(np.sin(2 * np.pi * hertz * partial * time) / partial for partial in range(1, 6))
    return (level * tone * np.exp(-3 * time) * np.minimum(1, time / 0.005)).astype(np.float32)


def clicks(bpm: float, seconds: float = 10.0, seed: int = 0) -> np.ndarray:
    """A burst of noise on each beat, a softer one between."""
    audio = noise(seconds, 0.001, seed)
    for number in range(int(seconds * bpm / 30)):
        start = round(number * 30 / bpm * RATE)
        burst = noise(0.03, 0.3 if number % 2 == 0 else 0.1, seed + 1)[: len(audio) - start]
        audio[start : start + len(burst)] += burst
    return audio


def chords(roots: tuple[int, ...], third: int, bpm: float = 120.0, beats: int = 4) -> np.ndarray:
    """Triads, struck on every beat; each root lasts for `beats`."""
    struck = []
    for root in roots:
        triad = sum(note(48 + root + interval, 60 / bpm) for interval in (0, third, 7))
        struck += [triad] * beats
    return np.concatenate(struck)


def test_comb_is_found_and_absent_from_noise_and_music(training: SimpleNamespace) -> None:
    comb = training.measures.comb
    audio = noise(10)
    time = np.arange(len(audio)) / RATE
    lines = sum(np.sin(2 * np.pi * 50 * line * time + line) for line in range(1, 161)).astype(np.float32)
    assert abs(comb(audio)) < 1
    assert abs(comb(chords((0, 5, 7, 0, 9), 4)[: 10 * RATE])) < 1
    assert comb(audio + 0.005 * lines) > 5


def test_full_scale_share_counts_samples_that_a_file_would_clip(training: SimpleNamespace) -> None:
    audio = np.array([0.5, -1.0, 1.2, 0.999], np.float32)
    assert training.measures.full_scale_share(audio) == 0.5


@pytest.mark.parametrize("bpm", [75, 120, 160])
def test_beats_are_the_clicks(training: SimpleNamespace, bpm: int) -> None:
    sound = training.spectra.spectra(clicks(bpm))
    assert training.measures.refined_bpm(sound, bpm * 1.02) == pytest.approx(bpm, rel=0.005)
    times = training.measures.beats(sound, bpm)
    away = (times + 30 / bpm) % (60 / bpm) - 30 / bpm
    assert np.abs(away).max() < 0.03


def test_tempo_is_learned_from_clicks(training: SimpleNamespace) -> None:
    estimators, spectra = training.estimators, training.spectra.spectra
    tempi = np.linspace(62, 168, 24)
    sounds = [spectra(clicks(bpm, seed=number)) for number, bpm in enumerate(tempi)]
    estimate = estimators.TempoEstimator(sounds, tempi)
    for bpm in (80, 120, 150):
        assert estimators.is_tempo(estimate(spectra(clicks(bpm, seed=99))), bpm)


def test_double_and_half_tempo_are_right_and_three_halves_is_not(training: SimpleNamespace) -> None:
    is_tempo = training.estimators.is_tempo
    assert [is_tempo(bpm, 100) for bpm in (103, 50, 200, 150, 106)] == [True, True, True, False, False]


def test_key_is_learned_from_progressions(training: SimpleNamespace) -> None:
    estimators, spectra = training.estimators, training.spectra.spectra
    examples = {
        (tonic, mode): spectra(chords(tuple(tonic + step for step in (0, 5, 7, 0)), third))
        for tonic in (2, 5, 8, 11)
        for mode, third in (("major", 4), ("minor", 3))
    }
    attributes = [SimpleNamespace(tonic=tonic, mode=mode) for tonic, mode in examples]
    estimate = estimators.KeyEstimator(list(examples.values()), attributes)
    assert estimate(spectra(chords((0, 5, 7, 0), 4))) == (0, "major")
    assert estimate(spectra(chords((9, 14, 16, 9), 3))) == (9, "minor")


def test_relative_keys_are_right_and_neighbours_are_not(training: SimpleNamespace) -> None:
    is_key = training.estimators.is_key
    assert is_key((9, "minor"), 0, "major")  # A minor in C major
    assert is_key((2, "dorian"), 0, "major")  # the same scale
    assert is_key((2, "minor"), 2, "dorian")  # the same tonic and third
    assert not is_key((0, "minor"), 0, "major")
    assert not is_key((7, "major"), 0, "major")


def test_chords_that_change_with_bars_change_on_bar_lines(training: SimpleNamespace) -> None:
    changes, spectra = training.measures.changes_on_bars, training.spectra.spectra
    share, chance = changes(spectra(chords((0, 5, 7, 9, 2), 4)), 120, "4/4")
    assert share == 1
    assert chance < 0.8
    share, chance = changes(spectra(noise(10)), 120, "4/4")
    assert share - chance < 0.3


def test_held_note_is_measured_and_a_repeated_one_is_not(training: SimpleNamespace) -> None:
    longest, spectra = training.measures.longest_held, training.spectra.spectra
    time = np.arange(10 * RATE) / RATE
    assert longest(spectra((0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32))) > 9
    assert longest(spectra(np.tile(note(69, 0.5), 20))) < 1
    assert longest(spectra(np.zeros(10 * RATE, np.float32))) == 0


def test_bars_of_a_loop_are_similar_and_those_of_noise_are_not(training: SimpleNamespace) -> None:
    similarity, spectra = training.measures.self_similarity, training.spectra.spectra
    bar = np.concatenate([note(key, 0.5) for key in (60, 64, 67, 72)])
    assert similarity(spectra(np.tile(bar, 5)), 120, "4/4") > 0.9
    assert abs(similarity(spectra(noise(10)), 120, "4/4")) < 0.2


def test_a_copy_is_near_wherever_it_begins_and_other_music_is_not(training: SimpleNamespace) -> None:
    nearest, spectra = training.measures.nearest, training.spectra.spectra
    long = chords((0, 5, 7, 0, 9, 2, 4, 7, 5, 11), 4)
    copy, other = long[2 * RATE : 12 * RATE] + noise(10, 1e-3), chords((3, 6, 1, 10, 8), 3, 96)[: 10 * RATE]
    distances = nearest([spectra(copy), spectra(other)], [spectra(long)])
    assert distances[0, 0] < 0.1
    assert distances[1, 0] > 0.4


def test_classifiers_learn_style_drums_and_lead(training: SimpleNamespace) -> None:
    spectra = training.spectra.spectra

    def clip(drums: bool, seed: int) -> np.ndarray:
        tune = chords((0, 5, 7, 0, 9), 4)[: 10 * RATE] * (0.8 + 0.1 * seed)
        return tune + clicks(120, seed=seed) if drums else tune + noise(10, 1e-3, seed)

    kinds = {
        True: SimpleNamespace(style="house", drums=True, family="synth"),
        False: SimpleNamespace(style="waltz", drums=False, family="piano"),
    }
    made = [(spectra(clip(drums, seed)), kinds[drums]) for seed in range(4) for drums in kinds]
    classifiers = training.estimators.Classifiers([sound for sound, _ in made[:6]], [a for _, a in made[:6]])
    assert classifiers([sound for sound, _ in made[6:]]) == {
        "style": ["house", "waltz"],
        "drums": ["drums", "none"],
        "family": ["synth", "piano"],
    }
