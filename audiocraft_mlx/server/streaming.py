"""A clip's audio as bytes of a format, chunk by chunk, while it is generated or afterwards."""

from __future__ import annotations

import asyncio
import io
import math
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from audiocraft_mlx.audio.resample import convert_audio_channels, resample
from audiocraft_mlx.audio.write import to_pcm
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.server.mp3_header import INFO_KBPS, has_info_frame, info_frame
from audiocraft_mlx.server.service import ClipAudio

WAV_HEADER_BYTES = 44
# Samples that are encoded at a time: a finished clip may come as one block.
_MAX_BLOCK = 2**15
# Rates, in Hz, that LAME has; with the bit rates that libsndfile can be asked for.
_MP3_RATES = {
    **dict.fromkeys((32_000, 44_100, 48_000), (32, 320)),
    **dict.fromkeys((16_000, 22_050, 24_000), (8, 160)),
    **dict.fromkeys((8_000, 11_025, 12_000), (8, 64)),
}
_OPUS_RATE = 48_000
_TELEPHONE = {"ulaw": "ULAW", "alaw": "ALAW"}
_MEDIA_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "ulaw": "audio/basic",
    "alaw": "audio/x-alaw-basic",
}


@dataclass(frozen=True)
class StreamFormat:
    """A format that can be sent while a clip is generated. None: as the clip.

    Attributes:
        name: pcm and wav (16 bits, little endian), mp3 (constant bit rate), opus (in Ogg), ulaw, alaw.
        kbps: of mp3 (default: the highest) and opus.
    """

    name: str
    sample_rate: int | None = None
    channels: int | None = None
    kbps: int | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for what the format doesn't have."""
        rate, kbps = self.sample_rate, self.kbps
        if rate is None:
            return
        if self.name == "mp3":
            if rate not in _MP3_RATES:
                raise UsageError(f"mp3 has no sample rate of {rate} Hz; choose 44100")
            lowest, highest = _MP3_RATES[rate]
            if kbps is not None and not lowest <= kbps <= highest:
                raise UsageError(f"mp3 at {rate} Hz has {lowest} to {highest} kbit/s, not {kbps}")
        elif self.name == "opus":
            if rate != _OPUS_RATE:
                raise UsageError(f"opus has {_OPUS_RATE} Hz, not {rate}")
            if kbps is not None and not 8 <= kbps <= 256:
                raise UsageError(f"opus has 8 to 256 kbit/s, not {kbps}")

    def of(self, clip: ClipAudio) -> StreamFormat:
        """All that this leaves open filled in."""
        rate, kbps = self.sample_rate or clip.sample_rate, self.kbps
        if self.name == "mp3":
            rate = rate if rate in _MP3_RATES else 44_100
            kbps = kbps or _MP3_RATES[rate][1]
        elif self.name == "opus":
            rate, kbps = _OPUS_RATE, kbps or 128
        return replace(self, sample_rate=rate, channels=self.channels or clip.channels, kbps=kbps)

    @property
    def media_type(self) -> str:
        if self.name == "pcm":
            return f"audio/pcm;rate={self.sample_rate};channels={self.channels}"
        return _MEDIA_TYPES[self.name]


class Encoder(Protocol):
    """Takes float32 `[C, n]`, gives bytes; those of all calls together are the file."""

    def encode(self, audio: np.ndarray) -> bytes: ...

    def finish(self) -> bytes: ...


class PcmEncoder:
    def encode(self, audio: np.ndarray) -> bytes:
        return to_pcm(audio, 16).T.astype("<i2", order="C").tobytes()

    def finish(self) -> bytes:
        return b""


class _Sink:
    """What libsndfile writes to: keeps what is new, and drops what it writes again at the end."""

    def __init__(self) -> None:
        self._new = bytearray()
        self._position = self._end = 0

    def write(self, data: bytes) -> int:
        size = len(data)
        known = self._end - self._position
        if size > known:
            self._new += bytes(data)[max(0, known) :]
        self._position += size
        self._end = max(self._end, self._position)
        return size

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        return b""

    def take(self) -> bytes:
        data = bytes(self._new)
        self._new.clear()
        return data


class LibsndfileEncoder:
    """mp3, opus, ulaw and alaw. For mp3 the number of samples must be known: see `mp3_header.py`."""

    def __init__(self, target: StreamFormat, samples: int) -> None:
        self._sink = _Sink()
        self._file = _open(self._sink, target)
        self._first_frame, self._replaced = b"", 0
        if target.name == "mp3":
            self._first_frame, self._replaced = _first_frame(target, samples)
        self._head = bytearray()

    def encode(self, audio: np.ndarray) -> bytes:
        self._file.write(np.clip(audio, -1, 1).T)
        return self._with_first_frame(self._sink.take())

    def finish(self) -> bytes:
        self._file.close()
        return self._with_first_frame(self._sink.take())

    def _with_first_frame(self, data: bytes) -> bytes:
        if not self._first_frame:
            return data
        self._head += data
        if len(self._head) < self._replaced:
            return b""
        frame, self._first_frame = self._first_frame, b""
        return frame + bytes(self._head[self._replaced :])


def _open(file: Any, target: StreamFormat) -> Any:
    import soundfile

    options: dict[str, Any] = {}
    rate, channels, kbps = target.sample_rate or 0, target.channels or 1, target.kbps or 0
    if target.name == "mp3":
        lowest, highest = _MP3_RATES[rate]
        options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
        level = (highest - kbps) / (highest - lowest)
        options["compression_level"] = min(level, 0.999)  # exactly 1 is refused
    elif target.name == "opus":
        # 6 to 256 kbit/s for each channel.
        level = (256 - kbps / channels) / 250
        options = {"format": "OGG", "subtype": "OPUS", "compression_level": min(max(level, 0.0), 0.999)}
    else:
        options = {"format": "RAW", "subtype": _TELEPHONE[target.name]}
    return soundfile.SoundFile(file, "w", samplerate=rate, channels=channels, **options)


def _first_frame(target: StreamFormat, samples: int) -> tuple[bytes, int]:
    """The first frame of a stream of mp3, and the bytes of the encoder's own, which it replaces."""
    rate, kbps = target.sample_rate or 0, target.kbps or 0
    template = _short_stream(target)
    if has_info_frame(template):
        frame = info_frame(template, kbps, samples, rate, kbps)
        return frame, len(frame)
    template = _short_stream(replace(target, kbps=INFO_KBPS))
    return info_frame(template, INFO_KBPS, samples, rate, kbps), 0


def _short_stream(target: StreamFormat) -> bytes:
    file = io.BytesIO()
    with _open(file, target) as encoder:
        encoder.write(np.zeros((1152, target.channels or 1), np.float32))
    return file.getvalue()


class StreamResampler:
    """`resample`, block by block: the same samples, but for rounding."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._rates = (from_rate, to_rate)
        divisor = math.gcd(from_rate, to_rate)
        self._period, self._output_period = from_rate // divisor, to_rate // divisor
        # Periods that a filter of audio/resample.py reaches on each side: 24 zero crossings at its cutoff.
        reach = math.ceil(24 * from_rate / (min(from_rate, to_rate) * 0.945)) + 2
        self._margin = math.ceil(reach / self._period)
        self._kept: np.ndarray | None = None
        self._before = 0
        """Periods of `_kept` that are done and only stand before the next ones."""

    def push(self, audio: np.ndarray) -> np.ndarray:
        """float32 `[C, n]` → `[C, n']`, what is complete by now."""
        self._kept = audio if self._kept is None else np.concatenate([self._kept, audio], axis=1)
        periods = self._kept.shape[1] // self._period
        ready = periods - self._before - self._margin
        if ready <= 0:
            return audio[:, :0]
        result = self._convert(ready * self._output_period)
        drop = self._before + ready - self._margin
        if drop > 0:
            self._kept = self._kept[:, drop * self._period :]
            self._before = self._margin
        else:
            self._before += ready
        return result

    def finish(self) -> np.ndarray:
        """The rest."""
        return np.empty((1, 0), np.float32) if self._kept is None else self._convert(None)

    def _convert(self, count: int | None) -> np.ndarray:
        assert self._kept is not None
        start = self._before * self._output_period
        end = None if count is None else start + count
        return resample(self._kept, *self._rates)[:, start:end]


def wav_header(channels: int, sample_rate: int, samples: int) -> bytes:
    """Of a 16-bit WAV file with this many samples per channel."""
    size, frame_bytes = samples * channels * 2, channels * 2
    return (
        struct.pack("<4sI4s4sIHH", b"RIFF", min(36 + size, 2**32 - 1), b"WAVE", b"fmt ", 16, 1, channels)
        + struct.pack("<IIHH", sample_rate, sample_rate * frame_bytes, frame_bytes, 16)
        + struct.pack("<4sI", b"data", min(size, 2**32 - 1))
    )


class ClipEndedEarly(Exception):
    """The job of a clip that is sent was cancelled or failed."""


class ClipStream:
    """The bytes of a clip in a format.

    Attributes:
        format: with nothing left open.
        length: in bytes, if it is known beforehand.
    """

    def __init__(self, clip: ClipAudio, wanted: StreamFormat, start: int = 0) -> None:
        """From sample `start` of the clip on."""
        self.format = wanted.of(clip)
        self._clip, self._start = clip, min(start, clip.samples)
        rate, channels = self.format.sample_rate, self.format.channels
        assert rate is not None
        assert channels is not None
        self._rate, self._channels = rate, channels
        self._samples = (clip.samples - self._start) * rate // clip.sample_rate
        self.length: int | None = None
        if self.format.name in ("pcm", "wav"):
            self.length = self._samples * channels * 2
        elif self.format.name in _TELEPHONE:
            self.length = self._samples * channels
        if self.format.name == "wav":
            assert self.length is not None
            self.length += WAV_HEADER_BYTES

    @property
    def seekable(self) -> bool:
        """Whether `chunks` can begin anywhere."""
        return self.format.name in ("pcm", "wav") and self._rate == self._clip.sample_rate

    async def chunks(self, first: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `first` on. Raises `ClipEndedEarly`."""
        sent = 0
        if self.format.name == "wav":
            header = wav_header(self._channels, self._rate, self._samples)[first:]
            sent += len(header)
            first = max(0, first - WAV_HEADER_BYTES)
            if header:
                yield header
        skipped, drop = divmod(first, self._channels * 2)
        expected = self._samples - skipped
        async with aclosing(self._encoded(self._start + skipped, expected)) as encoded:
            async for data in encoded:
                if drop:
                    data, drop = data[drop:], max(0, drop - len(data))
                if data:
                    yield data

    async def _encoded(self, start: int, expected: int) -> AsyncGenerator[bytes, None]:
        clip, target = self._clip, self.format
        encoder = PcmEncoder() if target.name in ("pcm", "wav") else LibsndfileEncoder(target, expected)
        same_rate = clip.sample_rate == self._rate
        resampler = None if same_rate else StreamResampler(clip.sample_rate, self._rate)
        done, wanted = 0, clip.samples - start

        def encode(audio: np.ndarray) -> bytes:
            audio = convert_audio_channels(audio, self._channels)
            return encoder.encode(audio if resampler is None else resampler.push(audio))

        def finish() -> bytes:
            rest = b"" if resampler is None else encoder.encode(resampler.finish())
            return rest + encoder.finish()

        if wanted > 0:
            async with aclosing(clip.blocks(start)) as blocks:  # type: ignore[type-var]
                async for block in blocks:
                    for at in range(0, block.shape[1], _MAX_BLOCK):
                        piece = block[:, at : min(at + _MAX_BLOCK, at + wanted - done)]
                        done += piece.shape[1]
                        if piece.shape[1]:
                            # Plain PCM takes microseconds; all else would hold up the others.
                            plain = resampler is None and isinstance(encoder, PcmEncoder)
                            yield encode(piece) if plain else await asyncio.to_thread(encode, piece)
        if done < wanted:
            raise ClipEndedEarly
        yield await asyncio.to_thread(finish)
