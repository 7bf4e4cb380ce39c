"""A clip's codes, which travel in the tags of its file: packed, as text."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiocraft_mlx.audio.checksum import audio_checksum
from audiocraft_mlx.audio.tags import read_tags
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath

MAX_FRAMES = 30_000
"""Ten minutes at 50 frames per second. The codes of longer clips stay out of the file."""
_TEXT = re.compile(r"(\d{1,3})x(\d{1,5})/(\d{1,6}) ([0-9a-f]{1,64}) ([A-Za-z0-9+/=]*)", re.ASCII)


@dataclass(frozen=True, eq=False)
class ClipCodes:
    """The codes of a whole clip.

    Attributes:
        codes: int32 `[K, frames]`, below `cardinality`.
        codec: identifies the codec that they are of (`GenModel.codec_id`).
    """

    codes: np.ndarray
    cardinality: int
    codec: str

    @property
    def frames(self) -> int:
        return int(self.codes.shape[1])

    def to_text(self) -> str:
        """In ASCII: shape, cardinality, codec, and the codes in as few bits each as they need, in base64."""
        codebooks, frames = self.codes.shape
        bits = _bits(self.cardinality)
        of_code = (self.codes.astype(np.int64)[..., None] >> np.arange(bits)) & 1
        packed = np.packbits(of_code.astype(np.uint8).reshape(-1)).tobytes()
        return f"{codebooks}x{frames}/{self.cardinality} {self.codec} {base64.b64encode(packed).decode()}"

    @classmethod
    def from_text(cls, text: str) -> ClipCodes:
        """What `to_text` wrote. Raises `ValueError` if it is damaged."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError("its codes are no codes")
        codebooks, frames, cardinality = (int(match[i]) for i in (1, 2, 3))
        if not codebooks or not 0 < frames <= MAX_FRAMES or not cardinality:
            raise ValueError("its codes have an impossible shape")
        bits = _bits(cardinality)
        try:
            packed = np.frombuffer(base64.b64decode(match[5], validate=True), np.uint8)
        except binascii.Error as error:
            raise ValueError("its codes are damaged") from error
        count = codebooks * frames * bits
        if len(packed) != -(-count // 8):
            raise ValueError("its codes are incomplete")
        of_code = np.unpackbits(packed)[:count].reshape(codebooks, frames, bits).astype(np.int32)
        codes = (of_code << np.arange(bits, dtype=np.int32)).sum(axis=2, dtype=np.int32)
        if codes.max() >= cardinality:
            raise ValueError("its codes are damaged")
        return cls(codes, cardinality, match[4])


def read_codes(path: StrPath) -> ClipCodes | None:
    """The codes in the tags of the file at `path`.

    None if it has none, they are damaged, or its audio is no longer what they are of.
    """
    path = Path(path)
    try:
        tags = read_tags(path)
        if tags is None or tags.codes is None:
            return None
        checksum, _, text = tags.codes.partition(" ")
        codes = ClipCodes.from_text(text)
        with path.open("rb") as file:
            return codes if audio_checksum(file) == checksum else None
    except (UsageError, ValueError, OSError):
        return None


def is_lossless(path: StrPath) -> bool:
    """Whether the file at `path`, which `read_codes` has read, holds samples as they were written."""
    import soundfile

    return soundfile.info(path).format in ("WAV", "FLAC")


def _bits(cardinality: int) -> int:
    return max(1, (cardinality - 1).bit_length())
