"""Music that goes on from a file: what of it the model hears, and how the two are joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audiocraft_mlx.audio.formats import BIT_DEPTHS, AudioFormat
from audiocraft_mlx.audio.read import read_audio
from audiocraft_mlx.audio.resample import convert_audio, resample
from audiocraft_mlx.errors import UsageError

# Over so long the step between the original and the new music is levelled.
_JOINT_SECONDS = 0.01
# Bits that hold a file's samples as they are; others fit into 16.
_BITS = {"PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 32}
# MP3 has no others.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class SourceClip:
    """What is gone on from: float32 `[channels, samples]`, mono or stereo, at `rate`."""

    audio: np.ndarray
    rate: int
    bits: int
    """Per sample, that the file needs in order to be kept as it is."""

    def tail(self, seconds: float, rate: int, channels: int, hop: int) -> np.ndarray:
        """The last `seconds` at the model's rate, in whole frames of `hop` samples if there is one."""
        heard = self.audio[:, -max(1, int(min(seconds * self.rate, self.audio.shape[1]))) :]
        audio = np.asarray(convert_audio(heard, self.rate, rate, channels))
        # The codec fills up the last frame: whole ones end where the original ends.
        return audio[:, audio.shape[1] % hop if audio.shape[1] > hop else 0 :]

    def format(self, chosen: AudioFormat, bits: int | None) -> AudioFormat:
        """`chosen`, with bits enough to keep the original, if the format has them and none were asked for."""
        depths = BIT_DEPTHS[chosen.name]
        if bits is not None or not depths:
            return chosen
        return AudioFormat(chosen.name, next((depth for depth in depths if depth >= self.bits), depths[-1]))

    def rate_in(self, format: AudioFormat, model_rate: int) -> int:
        """The rate of a file of both: the original's, so that it stays as it is, if the format has it."""
        return model_rate if format.name == "mp3" and self.rate not in _MP3_RATES else self.rate

    def at(self, rate: int, channels: int) -> np.ndarray:
        """All of it, with at least so many channels."""
        audio = self.audio if rate == self.rate else np.asarray(resample(self.audio, self.rate, rate))
        return broadcast_channels(audio, channels)


def read_source(path: Path) -> SourceClip:
    """Raises `UsageError` for what is no audio, or has more than two channels."""
    audio, rate = read_audio(path)
    if len(audio) > 2:
        raise UsageError(f"{path} has {len(audio)} channels; mix it to mono or stereo")
    with path.open("rb") as stream, soundfile.SoundFile(stream.fileno(), closefd=False) as file:
        return SourceClip(audio, rate, _BITS.get(file.subtype, 16))


def append_continuation(original: SourceClip, new: np.ndarray, model_rate: int, rate: int) -> np.ndarray:
    """The original and what the model made after it, float32 `[channels, samples]` at `rate`.

    Where the rate is the original's, so are its samples. The new music alone is scaled down if it goes
    beyond full scale.
    """
    new = new / max(1.0, float(np.abs(new).max()))
    new = new if rate == model_rate else np.asarray(resample(new, model_rate, rate))
    before = original.at(rate, len(new))
    return np.concatenate([before, smooth_joint(before, broadcast_channels(new, len(before)), rate)], axis=1)


def smooth_joint(before: np.ndarray, new: np.ndarray, rate: int) -> np.ndarray:
    """`new` float `[channels, n]`, beginning where `before` ends.

    Its waveform starts elsewhere, since the codec hears the original only about right: a click. A crossfade
    would need the original's place, and a fade-in falls to zero at once, a click again. So the step itself is
    taken out and let in again within milliseconds.
    """
    length = min(round(_JOINT_SECONDS * rate), new.shape[1])
    fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(length, dtype=np.float32) / length)
    levelled = new.copy()
    levelled[:, :length] += (before[:, -1:] - new[:, :1]) * fade
    return np.clip(levelled, -1, 1)


def broadcast_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Mono as so many channels; what has more than one stays as it is."""
    return np.repeat(audio, channels, axis=0) if len(audio) < channels else audio
