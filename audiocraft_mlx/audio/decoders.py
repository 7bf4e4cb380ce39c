"""Opens audio files: libsndfile's formats, also joined and with wrong headers, and others with PyAV."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import soundfile

from audiocraft_mlx.audio.au_header import complete_au
from audiocraft_mlx.audio.containers import PYAV_HINT, ContainerDecoder, has_pyav, is_cut_off_mp4
from audiocraft_mlx.audio.flac import find_flac_parts
from audiocraft_mlx.audio.joined import find_joined
from audiocraft_mlx.audio.mpeg import find_mpeg_parts
from audiocraft_mlx.audio.ogg import find_ogg_links
from audiocraft_mlx.audio.resample import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, convert_audio
from audiocraft_mlx.audio.segments import MAX_PARTS, Part, SegmentFile, TooManyChunksError
from audiocraft_mlx.audio.wav_header import find_wav_files
from audiocraft_mlx.errors import UsageError

# Frames decoded at a time: a header may claim more than the file holds, or than fits into memory.
_BLOCK = 1 << 18
# What libsndfile has for a header without a length, for instance of FLAC that was written into a pipe.
_UNKNOWN_FRAMES = 2**63 - 1
# The bits that keep a file's samples unchanged; other subtypes fit into 16.
_BITS = {"PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 32, "ALAC_20": 24, "ALAC_24": 24, "ALAC_32": 32}
# The first two bytes of a frame of layer 3, in MPEG 1, 2 and 2.5, with a checksum and without.
_MP3_STARTS = (b"\xff\xfa", b"\xff\xfb", b"\xff\xf2", b"\xff\xf3", b"\xff\xe2", b"\xff\xe3")
_BIT_LABELS = {"PCM_16": ", 16 bits", "PCM_24": ", 24 bits", "FLOAT": ", 32 bits (float)"}

_T = TypeVar("_T")


class Decoder(Protocol):
    """An open audio file.

    Attributes:
        description: its format, for people.
        bits: per sample, that a file needs to keep the samples unchanged.
        rate: Hz.
        channels: of the audio.
        frames: samples per channel; None if only decoding tells.
    """

    description: str
    bits: int
    rate: int
    channels: int
    frames: int | None

    def blocks(self, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        """Up to `count` samples per channel from `start` on, in blocks float32 `[n, channels]`.

        Fewer where the file ends early. Raises `UsageError` if it is damaged.
        """


def open_decoder(path: Path, stream: BinaryIO) -> Decoder:
    """The decoder of the file at `path`, which is open as `stream`.

    Raises `UsageError` if it isn't audio that can be decoded.
    """
    try:
        return _open_decoder(path, stream)
    except TooManyChunksError:  # the decoders' libraries would take half a minute for them
        raise UsageError(f"{path} has too many chunks or tags; convert it to WAV") from None


def _open_decoder(path: Path, stream: BinaryIO) -> Decoder:
    decoder: Decoder
    try:
        decoder = LibsndfileDecoder(path, stream, _find_parts(path, stream))
    except soundfile.LibsndfileError as error:
        with suppress(soundfile.LibsndfileError):
            parts = _find_parts(path, stream, search=True)
            if parts:
                return LibsndfileDecoder(path, stream, parts)
        container = _open_container(path, stream)
        if container is None:
            with _mapped(stream) as data:
                if data and is_cut_off_mp4(data):
                    raise UsageError(
                        f"{path} is an M4A or MP4 file that was cut off or is damaged: its index is missing;"
                        " copy or download it again"
                    ) from error
            hint = "" if has_pyav() else f"; {PYAV_HINT}"
            raise UsageError(
                f"{path} is not audio that can be read; give a WAV, FLAC, MP3 or Ogg file{hint}"
            ) from error
        return container
    if decoder.frames == 0 and not decoder.description.startswith("WAV"):
        # Perhaps its header was never completed; for WAV see `find_wav_files`.
        return _open_container(path, stream) or decoder
    return decoder


def read_header_seconds(path: Path, stream: BinaryIO) -> float | None:
    """The length in seconds that the header of the file states, without decoding; None if it states none.

    Of joined MP3 and FLAC files that of the first. Raises `UsageError` as `open_decoder`.
    """
    start = os.pread(stream.fileno(), 4, 0)  # libsndfile reads on where the descriptor is
    if start[:3] == b"ID3" or start == b"fLaC" or start[:2] in _MP3_STARTS:
        # Their parts are found by a look at all of the file: 25 ms for each song.
        with suppress(soundfile.LibsndfileError):
            header = LibsndfileDecoder(path, stream)
            if header.frames:
                return header.frames / header.rate
    decoder = open_decoder(path, stream)
    if isinstance(decoder, ContainerDecoder):
        return decoder.seconds
    return None if decoder.frames is None else decoder.frames / decoder.rate


def _find_parts(path: Path, stream: BinaryIO, search: bool = False) -> list[Part]:
    """What libsndfile must be given one by one to decode all of the file; none: the file as it is."""
    with _mapped(stream) as data:
        parts = data and (
            [part.part() for part in find_mpeg_parts(data, search)]
            or _find_ogg_parts(data)
            or find_flac_parts(data)
            or _find_wav_parts(data)
            or _find_other_parts(data)
        )
    return _bounded(path, parts or [])


@contextmanager
def _mapped(stream: BinaryIO) -> Iterator[mmap.mmap | None]:
    """The whole file; None if it is empty."""
    try:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        yield None
        return
    with data:
        yield data


def _bounded(path: Path, parts: list[_T]) -> list[_T]:
    if len(parts) > MAX_PARTS:
        raise UsageError(f"{path} was joined from more than {MAX_PARTS} files; convert it to WAV")
    return parts


def _find_ogg_parts(data: mmap.mmap) -> list[Part]:
    links = find_ogg_links(data)
    return [Part([link]) for link in links] if len(links) > 1 else []


def _find_wav_parts(data: mmap.mmap) -> list[Part]:
    files = find_wav_files(data)
    if files and files[0].is_mpeg and files[0].samples:
        # Frames are frames, also of those that were joined to it.
        return [part.part() for part in find_mpeg_parts(data, search=True, start=files[0].samples[0].start)]
    if len(files) == 1 and files[0].is_right:
        return []
    return [file.part() for file in files if file.samples or len(files) == 1]


def _find_other_parts(data: mmap.mmap) -> list[Part]:
    whole = range(len(data))
    parts = [complete_au(data, file) for file in find_joined(data) or [whole]]
    return [] if parts == [Part([whole])] else parts


def _open_container(path: Path, stream: BinaryIO) -> ContainerDecoder | None:
    """The file as PyAV decodes it; None if it can't, or isn't installed."""
    if not has_pyav():
        return None
    with _mapped(stream) as data:
        files = data and find_joined(data)
    return ContainerDecoder.open(path, stream, _bounded(path, files or []))


class _SoundFile(soundfile.SoundFile):
    """Doesn't seek in a file whose length is unknown: libsndfile fails there, and soundfile always does."""

    def seekable(self) -> bool:
        return self.frames != _UNKNOWN_FRAMES and super().seekable()


class LibsndfileDecoder:
    """A `Decoder` for libsndfile's formats. The parts of a joined file follow each other.

    A part with another sample rate or other channels than the first is converted.
    """

    def __init__(self, path: Path, stream: BinaryIO, parts: Sequence[Part] = ()) -> None:
        """`parts` as `_find_parts` returns them. Raises `LibsndfileError` if it isn't audio."""
        self._path, self._stream = path, stream
        self._parts: Sequence[Part | None] = parts or [None]
        with self._open(self._parts[0]) as first:
            self.rate, self.channels = first.samplerate, first.channels
            self.bits = _BITS.get(first.subtype, 16)
            self.description = f"{first.format}{_BIT_LABELS.get(first.subtype, '')}"
            lengths = [self._length(self._parts[0], first)]
        for part in self._parts[1:]:
            with self._open(part) as file:
                lengths.append(self._length(part, file))
        self._lengths = lengths
        self.frames = None if _UNKNOWN_FRAMES in lengths else sum(lengths)

    def blocks(self, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        for part, length in zip(self._parts, self._lengths, strict=True):
            if start >= length:
                start -= length
                continue
            with self._open(part) as file:
                for block in self._decode(file, start, count):
                    yield block
                    count = None if count is None else count - len(block)
            start = 0
            if count == 0:
                return

    def _open(self, part: Part | None) -> soundfile.SoundFile:
        self._stream.seek(0)
        if part is None:
            # By its descriptor: by its name libsndfile guesses formats.
            file = _SoundFile(self._stream.fileno(), closefd=False)
        else:
            file = _SoundFile(SegmentFile(self._stream, part.segments))
        if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
            file.close()
            raise UsageError(
                f"{self._path} is at {file.samplerate} Hz; convert it to a sample rate from"
                f" {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
            )
        return file

    def _length(self, part: Part | None, file: soundfile.SoundFile) -> int:
        """Samples per channel of a part, at the first part's rate."""
        frames: int = file.frames if part is None or part.frames is None else part.frames
        return frames if frames == _UNKNOWN_FRAMES else frames * self.rate // file.samplerate

    def _decode(self, file: soundfile.SoundFile, start: int, count: int | None) -> Iterator[np.ndarray]:
        """`blocks` of one part."""
        if (file.samplerate, file.channels) != (self.rate, self.channels):
            audio = np.concatenate([*self._read(file, None)]).T
            if (self.channels == 2 < len(audio)) or 1 < len(audio) < self.channels:
                audio = audio.mean(axis=0, keepdims=True)
            audio = convert_audio(audio, file.samplerate, self.rate, self.channels).T
            yield audio[start : None if count is None else start + count]
            return
        # In MP3 a frame depends on those before it: only decoding them is exact.
        if start and file.seekable() and file.format != "MP3":
            self._call(file.seek, start)
            start = 0
        for block in self._read(file, None if count is None else start + count):
            skipped = min(start, len(block))
            start -= skipped
            if skipped < len(block):
                yield block[skipped:]

    def _read(self, file: soundfile.SoundFile, count: int | None) -> Iterator[np.ndarray]:
        """Up to `count` samples per channel from where `file` is."""
        while count is None or count > 0:
            size = _BLOCK if count is None else min(count, _BLOCK)
            block = self._call(file.read, size, dtype="float32", always_2d=True)
            if not len(block):
                # The lengths of FLAC are checked (`find_flac_parts`): frames are missing.
                if file.format == "FLAC" and file.seekable() and file.tell() < file.frames:
                    raise UsageError(f"{self._path} is damaged; convert it to WAV")
                return
            yield block
            count = None if count is None else count - len(block)

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except soundfile.LibsndfileError as error:
            raise UsageError(
                f"{self._path} is damaged, or its length is unknown; convert it to WAV"
            ) from error
