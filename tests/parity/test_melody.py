"""Equal to transformers' `MusicgenMelody` at a medium size: with and without melody, in mono and stereo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import MusicgenMelodyDecoderConfig, T5Config

from audiocraft_mlx.conditioning.chroma import ChromaConfig, chroma, chroma_filters, melody_chroma

from .pair import LONG_PROMPT, SHORT_PROMPT, Melody, Pair, build, encodec_32khz
from .test_tiny import save

RATE = 32000
# By the module's full name: transformers exports a placeholder class if torchaudio is not installed.
feature_extraction = import_module("transformers.models.musicgen_melody.feature_extraction_musicgen_melody")
Extractor = feature_extraction.MusicgenMelodyFeatureExtractor


class Spectrogram:
    """torchaudio's `Spectrogram`, so that torchaudio isn't needed."""

    def __init__(self, n_fft: int, hop_length: int, **others: object) -> None:
        expected = {"win_length": n_fft, "power": 2, "center": True, "pad": 0, "normalized": True}
        assert others == expected
        self.n_fft, self.hop_length = n_fft, hop_length

    def __call__(self, wav: torch.Tensor) -> torch.Tensor:
        """`[B, T]` → `[B, frequencies, frames]`."""
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(wav, self.n_fft, self.hop_length, window=window, return_complex=True)
        return (spectrum / window.norm()).abs().square()


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    """transformers' feature extractor; audio at the model's rate needs nothing else of torchaudio."""
    with pytest.MonkeyPatch.context() as patch:
        torchaudio = SimpleNamespace(transforms=SimpleNamespace(Spectrogram=Spectrogram))
        patch.setattr(feature_extraction, "torchaudio", torchaudio, raising=False)
        return Extractor()


def tones(samples: int, seed: int) -> np.ndarray:
    """Chords that change every quarter of a second over some noise: float32 `[samples]`."""
    rng = np.random.default_rng(seed)
    length = RATE // 4
    chords = -(-samples // length)
    pitches = 220 * 2 ** (rng.integers(0, 24, (chords, 3)) / 12)
    loudness = rng.uniform(0.2, 1, (chords, 3))
    time = np.arange(length) / RATE
    wav = (loudness[..., None] * np.sin(2 * np.pi * pitches[..., None] * time)).sum(axis=1).reshape(-1)
    return (wav[:samples] + 0.1 * rng.standard_normal(samples)).astype(np.float32)


def features(extractor: Extractor, wav: np.ndarray) -> torch.Tensor:
    """Chroma `[frames, 12]` of `wav` `[samples]` by transformers, not truncated."""
    return extractor(wav, sampling_rate=RATE, truncation=False)["input_features"][0]


@pytest.mark.parametrize("kind", ["tones", "noise"])
@pytest.mark.parametrize("samples", [1, 1000, 16383, 16384, 16385, 20480, 65535, 30 * RATE, 31 * RATE + 7])
def test_chroma(extractor: Extractor, samples: int, kind: str) -> None:
    rng = np.random.default_rng(samples)
    wav = tones(samples, samples) if kind == "tones" else rng.standard_normal(samples).astype(np.float32)
    config, audio = ChromaConfig(), mx.array(wav[None])
    wanted = features(extractor, wav).numpy()
    ours = np.array(chroma(audio, config)[0])
    assert ours.shape == wanted.shape
    # Where two classes are equally strong, rounding decides which one is set.
    strength = np.sort(chroma(audio, replace(config, one_hot=False))[0], axis=1)
    clear = strength[:, -1] - strength[:, -2] > 1e-4
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(ours[clear], wanted[clear])
    # Not the same class throughout, if the audio is long enough.
    assert len(np.unique(wanted.argmax(axis=1))) >= len(wanted) // 40


def test_chroma_of_silence(extractor: Extractor) -> None:
    silence = np.zeros(40000, np.float32)
    np.testing.assert_array_equal(
        chroma(mx.array(silence[None]), ChromaConfig())[0], features(extractor, silence)
    )


def test_chroma_filters(extractor: Extractor) -> None:
    np.testing.assert_allclose(chroma_filters(RATE, 16384, 12), extractor.chroma_filters, atol=1e-6)


@dataclass(frozen=True)
class Shape:
    """A model; `half` and `layout` are the dtype and format of its checkpoint."""

    seed: int
    channels: int = 1
    half: bool = False
    layout: str = "safetensors"


SHAPES = {
    "mono": Shape(seed=30),
    "stereo": Shape(seed=31, channels=2),
    "sharded torch half": Shape(seed=32, half=True, layout="sharded torch"),
}


@pytest.fixture(scope="module", params=list(SHAPES.values()), ids=list(SHAPES))
def pair(request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    shape: Shape = request.param
    theirs = build(
        T5Config(vocab_size=32128, d_model=64, d_kv=16, d_ff=256, num_layers=3, num_heads=4),
        MusicgenMelodyDecoderConfig(
            hidden_size=256,
            num_attention_heads=8,
            num_hidden_layers=6,
            ffn_dim=1024,
            num_codebooks=4 * shape.channels,
            audio_channels=shape.channels,
        ),
        encodec_32khz(num_filters=8, hidden_size=32),
        seed=shape.seed,
    )
    folder = tmp_path_factory.mktemp("melody")
    if shape.half:
        theirs = theirs.half()
    save(theirs, folder, shape.layout)
    return Pair(theirs.float(), folder, goldens / "goldens" / "t5" / "tokenizer.json")


@pytest.fixture(autouse=True)
def _without_source_separation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes the chroma of the whole mix, as transformers does."""
    if "pair" not in request.fixturenames:
        return
    conditioner = request.getfixturevalue("pair").ours.audio_conditioner
    monkeypatch.setattr(
        conditioner,
        "chroma",
        lambda melody: melody_chroma(melody.mean(axis=0, keepdims=True), conditioner.config)[0],
    )


@pytest.fixture(scope="module")
def melodies(extractor: Extractor) -> list[Melody]:
    """Two shorter than the longest melody that a model is conditioned on, and one longer."""
    wavs = [tones(seconds * RATE, seed) for seed, seconds in enumerate((3, 3, 33))]
    return [Melody(wav[None], features(extractor, wav)) for wav in wavs]


def test_logits(pair: Pair, melodies: list[Melody]) -> None:
    pair.check_logits([SHORT_PROMPT], steps=24, melodies=melodies[:1])


def test_logits_with_a_melody_that_is_truncated(pair: Pair, melodies: list[Melody]) -> None:
    pair.check_logits([SHORT_PROMPT], steps=4, melodies=melodies[2:])


def test_logits_of_the_longest_prompt_in_a_batch(pair: Pair, melodies: list[Melody]) -> None:
    pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=24, melodies=melodies[:2])


@pytest.mark.parametrize("guidance", [3, 1])
def test_twenty_steps(pair: Pair, melodies: list[Melody], guidance: int) -> None:
    frames = 21 - pair.num_codebooks // pair.channels
    with_melody = pair.check_greedy([LONG_PROMPT], frames, guidance, melodies[:1])
    text_only = pair.check_greedy([LONG_PROMPT], frames, guidance)
    # Not the same code throughout, on which any two models might agree; and the melody has an effect.
    assert len(np.unique(with_melody.codes)) > 30
    assert (with_melody.codes != text_only.codes).mean() > 0.25


def test_melody_only_and_unconditional(pair: Pair, melodies: list[Melody]) -> None:
    melody_only = pair.check_greedy([None], 6, 3, melodies[:1])
    unconditional = pair.check_greedy([None], 6, guidance=3)
    assert (melody_only.codes != unconditional.codes).any()


def test_a_batch(pair: Pair, melodies: list[Melody]) -> None:
    output = pair.check_greedy([LONG_PROMPT, SHORT_PROMPT, LONG_PROMPT], 8, 3, [*melodies[:2], melodies[1]])
    assert (output.codes[0] != output.codes[2]).any()
    pair.check_greedy([SHORT_PROMPT, LONG_PROMPT], 8, guidance=3)
