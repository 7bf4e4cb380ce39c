"""Decodes what libsndfile doesn't: M4A/AAC, ALAC, MP4, WebM, WMA, AC-3, … by PyAV (FFmpeg)."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from audiocraft_mlx.audio.segments import SegmentFile
from audiocraft_mlx.errors import UsageError

if TYPE_CHECKING:
    from av import AudioFrame

PYAV_HINT = "for M4A, AAC, MP4, WebM, WMA and others install PyAV: pip install 'musicgen-mlx[formats]'"
# What people record and download. Not those formats that only name other files or addresses, which FFmpeg
# would open (concat, dash, hls, …).
_FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,m4a,matroska,mov,mp3,mp4,mpc,mpc8,mpeg"
    ",mpegts,ogg,tak,truehd,tta,w64,wav,webm,wv"
)
# The range of integer samples, by the name of their format.
_SCALES = {"u8": 2**7, "s16": 2**15, "s32": 2**31}
# Lossless codecs whose samples 16 bits may not hold; others fit into 16.
_LOSSLESS = ("alac", "flac", "ape", "tak", "tta", "truehd", "mlp", "wavpack", "wmalossless", "pcm_")
# More boxes than this at the top of an MP4 file aren't looked at.
_MAX_BOXES = 1000
# Samples per channel of a block.
_BLOCK = 1 << 16


def has_pyav() -> bool:
    return find_spec("av") is not None


def is_cut_off_mp4(data: bytes | mmap.mmap) -> bool:
    """Whether this is the beginning of an MP4 or M4A file without the box that says where its samples are.

    It comes at the end of a recording (ISO/IEC 14496-12: `moov`).
    """
    if data[4:8] != b"ftyp":
        return False
    start = 0
    for _ in range(_MAX_BOXES):
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        end = start + size if size else len(data)
        if len(kind) < 4 or end > len(data) or end < start + 8:
            return True
        if kind == b"moov":
            return False
        start = end
    return False


class ContainerDecoder:
    """A `Decoder` (see `decoders.py`) for the first audio stream of a file."""

    frames: int | None = None
    """Headers have the length of the container at best, and those of browsers' recordings none."""

    def __init__(
        self,
        path: Path,
        stream: BinaryIO,
        files: Sequence[range],
        first: AudioFrame,
        codec: str,
        seconds: float | None,
    ) -> None:
        self._path, self._stream, self._files = path, stream, files
        self.seconds = seconds
        """What the header states, about the length of the audio; None if it states nothing."""
        self.rate, self.channels = first.sample_rate, first.layout.nb_channels
        wide = first.format.name.removesuffix("p") != "s16" and codec.startswith(_LOSSLESS)
        self.bits = 32 if wide else 16
        self.description = codec.upper()

    @classmethod
    def open(cls, path: Path, stream: BinaryIO, files: Sequence[range] = ()) -> ContainerDecoder | None:
        """The decoder of the file at `path`, open as `stream`; None if FFmpeg can't decode it either.

        `files` are where those are that it was joined from, if there are more than one.
        """
        import av

        files = files or [range(stream.seek(0, io.SEEK_END))]
        try:
            with _open(stream, files[0]) as container:
                first = next(_decode(container), None)
                # PyAV has no arrays of others: 64-bit integers.
                if first is None or first.format.name.removesuffix("p") not in (*_SCALES, "flt", "dbl"):
                    return None
                codec = container.streams.audio[0].codec_context.name
                known = container.duration is not None and len(files) == 1
                seconds = container.duration / av.time_base if known else None
                return cls(path, stream, files, first, codec, seconds)
        except (av.FFmpegError, ValueError):
            return None

    def blocks(self, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        pending: list[np.ndarray] = []
        for samples in self._frames():
            skipped = min(start, len(samples))
            start -= skipped
            piece = samples[skipped : None if count is None else skipped + count]
            count = None if count is None else count - len(piece)
            if len(piece):
                pending.append(piece)
            if sum(map(len, pending)) >= _BLOCK:
                yield np.concatenate(pending)
                pending = []
            if count == 0:
                break
        if pending:
            yield np.concatenate(pending)

    def _frames(self) -> Iterator[np.ndarray]:
        """The samples of each frame, float32 `[n, channels]`."""
        import av

        for file in self._files:
            # The first one could be opened. Else, or within a file, it ends early.
            with suppress(av.FFmpegError), _open(self._stream, file) as container:
                for frame in _decode(container):
                    samples = _samples(frame)
                    if (frame.sample_rate, samples.shape[1]) != (self.rate, self.channels):
                        raise UsageError(
                            f"{self._path} changes its sample rate or its channels; convert it to WAV"
                        )
                    yield samples


def _open(stream: BinaryIO, file: range) -> Any:
    """An `av.container.InputContainer`."""
    import av

    # Without a name, from which FFmpeg would guess a format. No protocol is allowed: nothing but the stream
    # is read. Tags in other encodings do no harm.
    nameless = SegmentFile(stream, [file])
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    container = av.open(nameless, container_options=options, metadata_errors="replace")
    codec = _codec(container)
    if codec is not None and container.format.name == "caf" and codec.name == "alac":
        # The last packet says how long it is, and the file, too: FFmpeg would cut it twice.
        codec.flags2 |= av.codec.context.Flags2.skip_manual
    return container


def _codec(container: Any) -> Any:
    """The `av.CodecContext` of the first audio stream; None without one, or for an unknown codec."""
    return container.streams.audio[0].codec_context if container.streams.audio else None


def _decode(container: Any) -> Iterator[AudioFrame]:
    """The frames of the first audio stream, without what is damaged."""
    import av

    if _codec(container) is None:
        return
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (frame for frame in frames if frame.samples)


def _samples(frame: AudioFrame) -> np.ndarray:
    """The samples of a frame, float32 `[n, channels]`."""
    samples, name = frame.to_ndarray(), frame.format.name
    samples = samples.T if name.endswith("p") else samples.reshape(-1, frame.layout.nb_channels)
    scale = _SCALES.get(name.removesuffix("p"))
    if scale is None:  # it is floating point
        return samples.astype(np.float32)
    return ((samples.astype(np.float64) - (scale if name.startswith("u8") else 0)) / scale).astype(np.float32)
