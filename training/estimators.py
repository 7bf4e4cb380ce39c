"""Style, drums, lead's family, tempo and key of a clip: what is learned from renders, with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from attributes import MODES, Attributes
from measures import autocorrelation, onset_strength
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from spectra import LOWEST_KEY, MEL_HOP, SAMPLE_RATE, Spectra, fold
from theory import scale

TASKS: dict[str, Callable[[Attributes], str]] = {
    "style": lambda attributes: attributes.style,
    "drums": lambda attributes: "drums" if attributes.drums else "none",
    "family": lambda attributes: attributes.family,
}
LAGS = 200  # frames of 10 ms
MELODY = slice(22, 62)  # among the keys: D3 to G#6
OVERTONES = (-12, 0, 12, 19, 24, 28, 31, 34, 36)  # semitones
# Parts and multiples of a beat at which music repeats.
RATIOS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2, 3, 4, 6, 8)
TEMPI = np.exp(np.arange(math.log(58), math.log(175), 0.01))
RIGHT = 0.04  # of the tempo
BRIGHT = ("major", "mixolydian")


class Classifiers:
    """A support vector machine for each of `TASKS`: which style, drums or none, the family of the lead."""

    def __init__(self, sounds: Sequence[Spectra], attributes: Sequence[Attributes]) -> None:
        rows = np.stack([features(sound) for sound in sounds])
        self._machines = {
            task: classifier(rows, [label(each) for each in attributes]) for task, label in TASKS.items()
        }

    def __call__(self, sounds: Sequence[Spectra]) -> dict[str, list[str]]:
        """For each task the class of each clip."""
        rows = np.stack([features(sound) for sound in sounds])
        return {
            task: [str(name) for name in machine.predict(rows)] for task, machine in self._machines.items()
        }


def classifier(rows: np.ndarray, labels: Sequence[str]) -> Pipeline:
    """Learned from the `features` of clips, `[clips, 1335]`."""
    return make_pipeline(StandardScaler(), SVC(C=10, gamma=3e-4)).fit(rows, labels)


def features(sound: Spectra) -> np.ndarray:
    """Float32 `[1335]`: statistics of the spectrograms and their changes, rhythm, overtones of loud notes."""
    mel, level = sound.mel, 20 * np.log10(sound.keys + 1e-3)
    step, slope = np.diff(mel, axis=1), mel[:, 10:] - mel[:, :-10]
    onsets = onset_strength(sound)
    rhythm = autocorrelation(onsets, LAGS)[:, 5:].reshape(len(onsets), -1, 5).max(axis=2)
    loudest = level[MELODY].argmax(axis=0) + MELODY.start
    overtones = np.minimum(loudest + np.array(OVERTONES)[:, None], len(level) - 1)
    spectrum = np.take_along_axis(level, overtones, 0)
    clear = spectrum[1] > np.percentile(spectrum[1], 40)
    relative = (spectrum - spectrum[1])[:, clear]
    notes = np.bincount(loudest[clear] - MELODY.start, minlength=MELODY.stop - MELODY.start)
    parts = [
        mel.mean(1),
        mel.std(1),
        np.percentile(mel, 10, axis=1),
        np.percentile(mel, 90, axis=1),
        step.std(1),
        np.maximum(step, 0).mean(1),
        slope.std(1),
        np.percentile(slope, 95, axis=1),
        np.percentile(slope, 5, axis=1),
        rhythm.ravel(),
        level.mean(1),
        level.std(1),
        np.percentile(level, 90, axis=1),
        relative.mean(1),
        relative.std(1),
        np.percentile(relative, 90, axis=1),
        notes / max(1, clear.sum()),
        onsets.mean(1),
        onsets.std(1),
    ]
    return np.concatenate(parts).astype(np.float32)


class TempoEstimator:
    """Chooses among tempi from 58 to 175 bpm by how onsets repeat at parts and multiples of their beat."""

    def __init__(self, sounds: Sequence[Spectra], bpm: Sequence[float]) -> None:
        rows, targets = [], []
        for sound, true in zip(sounds, bpm, strict=True):
            away = np.abs(np.log(TEMPI / true))
            right, wrong = away < 0.02, away > 0.05
            rows.append(tempo_features(sound)[right | wrong])
            targets.append(right[right | wrong])
        self._model = HistGradientBoostingClassifier(max_iter=150, random_state=0)
        self._model.fit(np.concatenate(rows), np.concatenate(targets))

    def __call__(self, sound: Spectra) -> float:
        """Beats a minute."""
        return float(TEMPI[np.argmax(self._model.predict_proba(tempo_features(sound))[:, 1])])


def tempo_features(sound: Spectra) -> np.ndarray:
    """The onsets' autocorrelation at `RATIOS` of the beat of each of `TEMPI`, in all bands: `[tempi, 52]`."""
    beat = 60 / TEMPI * SAMPLE_RATE / MEL_HOP  # frames
    correlations = autocorrelation(onset_strength(sound), 1000)
    lags = np.arange(1000)
    columns = []
    for ratio in RATIOS:
        for correlation in correlations:
            near = [np.interp(beat * ratio * bend, lags, correlation, right=0) for bend in (0.99, 1, 1.01)]
            columns.append(np.max(near, axis=0))
    return np.stack(columns, axis=1)


def is_tempo(estimate: float, bpm: float) -> bool:
    """Within 4 % of the tempo, its double or its half. 6/8's beat is the dotted quarter, and 3/2 is wrong."""
    return any(abs(estimate / (bpm * ratio) - 1) <= RIGHT for ratio in (0.5, 1, 2))


class KeyEstimator:
    """Tonic and mode by key profiles, as Krumhansl and Kessler's (1982), but learned, of four modes.

    On held-out renders Krumhansl and Kessler's find the scale of 39 %: dorian, mixolydian and sevenths
    aren't in them.
    """

    def __init__(self, sounds: Sequence[Spectra], attributes: Sequence[Attributes]) -> None:
        rows = np.concatenate([key_features(sound) for sound in sounds])
        targets = [each.mode if tonic == each.tonic else "none" for each in attributes for tonic in range(12)]
        self._model = make_pipeline(StandardScaler(), LogisticRegression(C=1, max_iter=400))
        self._model.fit(rows, targets)

    def __call__(self, sound: Spectra) -> tuple[int, str]:
        """Semitones above C, and the name of the mode."""
        classes = list(self._model.classes_)
        scores = self._model.predict_log_proba(key_features(sound))
        scores = scores - scores[:, [classes.index("none")]]
        scores[:, classes.index("none")] = -np.inf
        tonic, mode = np.unravel_index(np.argmax(scores), scores.shape)
        return int(tonic), str(classes[mode])


def key_features(sound: Spectra) -> np.ndarray:
    """Float `[12, 48]`: as seen from each tonic the chroma of all, of the bass, of logarithms, of peaks."""
    keys = sound.keys
    bass = np.where(np.arange(len(keys))[:, None] < 52 - LOWEST_KEY, keys, 0)
    peaks = keys.copy()
    peaks[1:-1] *= (keys[1:-1] >= keys[:-2]) & (keys[1:-1] >= keys[2:])
    logarithm = fold(np.log1p(100 * keys)).mean(axis=1)
    profiles = np.stack(
        [
            np.sqrt(normalized(fold(keys).mean(axis=1))),
            np.sqrt(normalized(fold(bass).mean(axis=1))),
            logarithm - logarithm.mean(),
            normalized(fold(np.sqrt(peaks)).mean(axis=1)),
        ]
    )
    return np.stack([np.roll(profiles, -tonic, axis=1).ravel() for tonic in range(12)])


def normalized(values: np.ndarray) -> np.ndarray:
    return values / (values.sum() + 1e-9)


def is_key(estimate: tuple[int, str], tonic: int, mode: str) -> bool:
    """Right or relative: the same tonic and third (dorian is a minor, mixolydian a major), or the same scale.

    Of all keys in major and minor two of 24 are.
    """
    assert estimate[1] in MODES
    same_tonic = estimate[0] == tonic and (estimate[1] in BRIGHT) == (mode in BRIGHT)
    return same_tonic or scale(*estimate) == scale(tonic, mode)
