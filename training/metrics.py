"""Features of a clip's audio, and classifiers of its attributes trained on rendered loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from codec import mel_filters
from compose import DRUMS, FRAMES_PER_BEAT, INSTRUMENTS, SCALES
from torch import nn

SAMPLE_RATE = 32000
CLASSES = {
    "tempo": tuple(FRAMES_PER_BEAT),
    "drums": ("none", "some"),
    "instrument": INSTRUMENTS,
    "mode": tuple(SCALES),
}


def target(task: str, attributes: dict[str, object], classes: Sequence[str]) -> int:
    value = attributes[task]
    if task == "drums":
        assert value in DRUMS
        value = "none" if value == "none" else "some"
    return classes.index(str(value))


def spectrogram(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Magnitudes `[bins, frames]`."""
    window = torch.hann_window(n_fft)
    return torch.stft(torch.tensor(audio), n_fft, hop, window=window, return_complex=True).abs().numpy()


def onset_strength(audio: np.ndarray) -> np.ndarray:
    """Rise of the log-mel spectrum from one codec frame (20 ms) to the next, mean of all bands."""
    mel = mel_filters(1024, 40).numpy() @ spectrogram(audio, 1024, 640)
    rise = np.maximum(0, np.diff(np.log(mel + 1e-2), axis=1))
    return rise.mean(axis=0)


def onset_autocorrelation(audio: np.ndarray, lags: int = 130) -> np.ndarray:
    """Autocorrelation of the onset strength at lags of 0 … `lags` - 1 frames, normalized to 1 at lag 0."""
    strength = onset_strength(audio)
    strength = strength - strength.mean()
    full = np.correlate(strength, strength, "full")[len(strength) - 1 :]
    return full[:lags] / (full[0] + 1e-9)


def beat_peak(audio: np.ndarray, tempo: str) -> float:
    """How clear the beat is: the autocorrelation's maximum within one frame of the beat's period."""
    period = FRAMES_PER_BEAT[tempo]
    return float(onset_autocorrelation(audio)[period - 1 : period + 2].max())


def chroma(audio: np.ndarray) -> np.ndarray:
    """Energy of the 12 pitch classes from C2 to C6, normalized to sum 1."""
    magnitudes = spectrogram(audio, 8192, 2048)
    hertz = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    used = (hertz > 63) & (hertz < 1060)
    classes = np.round(12 * np.log2(hertz[used] / 440) + 69).astype(int) % 12
    energy = (magnitudes[used] ** 2).sum(axis=1)
    result = np.bincount(classes, energy, 12)
    return result / (result.sum() + 1e-9)


def features(audio: np.ndarray) -> np.ndarray:
    mel = np.log(mel_filters(1024, 64).numpy() @ spectrogram(audio, 1024, 320) + 1e-3)
    change = np.diff(mel, axis=1)
    parts = [mel.mean(1), mel.std(1), change.std(1), np.percentile(mel, 90, axis=1)]
    return np.concatenate([*parts, onset_autocorrelation(audio), 3 * chroma(audio)]).astype(np.float32)


class AttributeClassifier:
    """A small network for each attribute, trained on features of rendered loops through the codec."""

    def __init__(
        self,
        clips: list[np.ndarray],
        attributes: list[dict[str, object]],
        seed: int = 0,
        classes: Mapping[str, Sequence[str]] = CLASSES,
    ) -> None:
        torch.manual_seed(seed)
        self.classes = classes
        x = torch.tensor(np.stack([features(clip) for clip in clips]))
        self.mean, self.std = x.mean(0), x.std(0) + 1e-3
        self.networks = {}
        for task, names in classes.items():
            y = torch.tensor([target(task, a, names) for a in attributes])
            network = nn.Sequential(
                nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, len(names))
            )
            optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
            for _ in range(300):
                noisy = self.scaled(x) + 0.1 * torch.randn_like(x)
                loss = nn.functional.cross_entropy(network(noisy), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self.networks[task] = network.eval()

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std

    @torch.no_grad()
    def is_correct(
        self, clips: list[np.ndarray], attributes: list[dict[str, object]]
    ) -> dict[str, np.ndarray]:
        """For each attribute, which clips are classified as `attributes` says: bool `[clips]`."""
        x = self.scaled(torch.tensor(np.stack([features(clip) for clip in clips])))
        return {
            task: network(x).argmax(1).numpy()
            == np.array([target(task, a, self.classes[task]) for a in attributes])
            for task, network in self.networks.items()
        }
