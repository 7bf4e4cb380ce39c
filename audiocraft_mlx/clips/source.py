"""The audio that a clip is generated from: a melody or a style, or a clip to continue."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.audio.formats import BIT_DEPTHS, AudioFormat
from audiocraft_mlx.audio.level import require_non_silent, without_cancellation
from audiocraft_mlx.audio.resample import convert_audio, resample
from audiocraft_mlx.audio.splice import broadcast_channels
from audiocraft_mlx.clips.codes import ClipCodes, is_lossless, read_codes
from audiocraft_mlx.conditioning.midi import is_midi
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath

# MP3 has no others.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# A melody or style is read for the clip's duration and this: at most one window, and what separation needs
# around it (`GenModel.max_condition_duration`).
_EXTRA_SECONDS = 90.0


@dataclass(frozen=True, eq=False)
class AudioInput:
    """A melody or a style: float32 `[channels, samples]` at `rate`. Rows that share one encode it once."""

    audio: np.ndarray
    rate: int
    name: str | None = None
    """Its file, for the metadata."""

    def require_samples(self, rate: int) -> None:
        """Raise `UsageError` if it has less than one sample at the model's `rate`."""
        _require_samples(self.audio, self.rate, rate, self.name or "the melody or style")


@dataclass(frozen=True, eq=False)
class SourceClip:
    """A clip to continue: float32 `[channels, samples]`, mono or stereo, at `rate`."""

    audio: np.ndarray
    rate: int
    bits: int = 16
    """Per sample, that a file needs to keep it unchanged."""
    name: str | None = None
    """Its file, for the metadata."""
    codes: ClipCodes | None = None
    """What it was decoded from, if it is a clip of ours and unchanged."""
    follows_exactly: bool = False
    """Its samples and those that continue it are of one decoding: nothing is to be smoothed between them."""

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.rate

    def prompt_audio(self, seconds: float, rate: int, channels: int, hop: int) -> np.ndarray:
        """The last `seconds` at the model's `rate`, in whole frames of `hop` samples if there is one.

        Less than one frame is taken as it is, with a warning: the codec pads it, as audiocraft's does.

        Raises `UsageError` if it has less than one sample at that rate.
        """
        _require_samples(self.audio, self.rate, rate, self.name or "the source")
        least = -(-self.rate // rate)
        end = self.audio[:, -max(least, int(min(seconds * self.rate, self.audio.shape[1]))) :]
        if channels == 1:
            end = without_cancellation(end)
        audio = convert_audio(end, self.rate, rate, channels)
        if audio.shape[1] < hop:
            warnings.warn(
                f"only {audio.shape[1] / rate:.4f} s of {self.name or 'the source'} are continued, less than"
                f" one frame of codes ({hop / rate:g} s): the result hardly depends on them; give more",
                RuntimeWarning,
                stacklevel=2,
            )
        # The codec pads the last frame: whole frames end where the source ends.
        return audio[:, audio.shape[1] % hop if audio.shape[1] > hop else 0 :]

    def lossless_format(self, chosen: AudioFormat) -> AudioFormat:
        """`chosen` with bits enough to keep the samples, or the most that it has."""
        depths = BIT_DEPTHS[chosen.name]
        if not depths:
            return chosen
        return AudioFormat(chosen.name, next((depth for depth in depths if depth >= self.bits), depths[-1]))

    def output_rate(self, audio_format: AudioFormat, model_rate: int) -> int:
        """The sample rate of a file with its continuation: its own, if the format has it."""
        return model_rate if audio_format.name == "mp3" and self.rate not in _MP3_RATES else self.rate

    def resampled(self, rate: int, channels: int) -> np.ndarray:
        """The whole clip at `rate`, mono repeated to `channels`."""
        return broadcast_channels(resample(self.audio, self.rate, rate), channels)


def _require_samples(audio: np.ndarray, rate: int, model_rate: int, name: str) -> None:
    samples = audio.shape[1]
    if samples * model_rate // rate == 0:
        raise UsageError(
            f"{name} is too short: {samples} sample(s) at {rate} Hz, which is less than one at"
            f" {model_rate} Hz; give longer audio"
        )


def _require_audio(path: StrPath) -> None:
    if is_midi(path):
        raise UsageError(f"{path} is MIDI, which has notes and no sound; give it as a melody, or give audio")


def read_source(path: StrPath, with_codes: bool = False) -> SourceClip:
    """Raises `UsageError` if it can't be read, or has more than two channels.

    `with_codes` reads its tags, too, for the codes of a clip of ours.
    """
    from audiocraft_mlx.audio.read import decode_audio

    _require_audio(path)
    decoded = decode_audio(path)
    if len(decoded.audio) > 2:
        raise UsageError(f"{path} has {len(decoded.audio)} channels; mix it to mono or stereo")
    codes = read_codes(path) if with_codes else None
    lossless = codes is not None and is_lossless(path)
    return SourceClip(decoded.audio, decoded.rate, decoded.bits, str(path), codes, lossless)


def read_condition_audio(path: StrPath, duration: float) -> AudioInput:
    """A melody or style for a clip of `duration` seconds: no more of a long file than is used.

    Raises `UsageError`.
    """
    from audiocraft_mlx.audio.read import read_audio

    _require_audio(path)
    audio, rate = read_audio(path, seconds=duration + _EXTRA_SECONDS)
    audio = without_cancellation(audio)  # the model takes the channels' mean
    require_non_silent(audio.mean(axis=0, keepdims=True), str(path))
    return AudioInput(audio, rate, str(path))
