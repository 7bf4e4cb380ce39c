"""Music that goes on from a file: what of it the model hears, and how the two are joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audiocraft_mlx.audio.formats import BIT_DEPTHS, AudioFormat
from audiocraft_mlx.audio.read import read_audio
from audiocraft_mlx.audio.resample import convert_audio, resample
from audiocraft_mlx.audio.splice import broadcast_channels
from audiocraft_mlx.errors import UsageError

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
        audio = convert_audio(heard, self.rate, rate, channels)
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
        return broadcast_channels(resample(self.audio, self.rate, rate), channels)


def read_source(path: Path) -> SourceClip:
    """Raises `UsageError` for what is no audio, or has more than two channels."""
    audio, rate = read_audio(path)
    if len(audio) > 2:
        raise UsageError(f"{path} has {len(audio)} channels; mix it to mono or stereo")
    with path.open("rb") as stream, soundfile.SoundFile(stream.fileno(), closefd=False) as file:
        return SourceClip(audio, rate, _BITS.get(file.subtype, 16))
