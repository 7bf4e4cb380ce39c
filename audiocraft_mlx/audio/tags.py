"""The tags of audio files: a comment for players, and a JSON string of our own.

mutagen (an extra, because it is GPL) writes both in all formats, in Unicode and of any length. Without it
both are in the comment that libsndfile writes, which is short in WAV and ASCII in MP3.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error

if TYPE_CHECKING:
    from mutagen import FileType

_COMMENT, _DATA = "COMMENT", "MUSICGEN_MLX"
_CODES = f"{_DATA}_CODES"
# Also in the lower case and in the UTF-16 (of both orders) of other programs.
_NAMES = tuple(
    name for text in (_DATA, _DATA.lower()) for name in (text.encode(), text.encode("utf-16-le")[:-1])
)
# What separates the comment from the data where libsndfile writes them.
_SEPARATOR = f"\n{_DATA}="
# libsndfile ignores the comment of a WAV file from 2046 bytes on.
_MAX_WAV_BYTES = 2000


@dataclass(frozen=True)
class AudioTags:
    """The tags of a file.

    Attributes:
        comment: for people; players show it.
        data: for programs: a JSON string, in ASCII.
        codes: a checksum of the audio, and the codes that it was decoded from, in ASCII. Only mutagen writes
            and reads them.
    """

    comment: str
    data: str
    codes: str | None = None


def has_mutagen() -> bool:
    return find_spec("mutagen") is not None


def add_tags(file: BinaryIO, tags: AudioTags) -> None:
    """Write `tags` into the WAV, FLAC, MP3 or Ogg Vorbis file in `file`, with mutagen."""
    from mutagen import MutagenError
    from mutagen.id3 import COMM, ID3, TXXX, Encoding

    comment = _encodable(tags.comment)
    audio = _open(file)
    if audio is None:
        raise ValueError("the file is of a format that can't be tagged")
    if audio.tags is None:
        audio.add_tags()
    if isinstance(audio.tags, ID3):
        audio.tags.add(COMM(encoding=Encoding.UTF8, lang="eng", text=comment))
        audio.tags.add(TXXX(encoding=Encoding.UTF8, desc=_DATA, text=tags.data))
        if tags.codes is not None:
            audio.tags.add(TXXX(encoding=Encoding.UTF8, desc=_CODES, text=tags.codes))
    else:
        audio.update({_COMMENT: comment, _DATA: tags.data})
        if tags.codes is not None:
            audio[_CODES] = tags.codes
    file.seek(0)
    try:
        audio.save(file)
    except MutagenError as error:
        if error.args and isinstance(error.args[0], OSError):
            raise error.args[0] from error
        raise


def libsndfile_comment(tags: AudioTags, format_name: str) -> str:
    """`tags` as the comment that libsndfile writes into a file of this format, for use without mutagen.

    In WAV the comment is cut where both are too long, and data that is too long even alone is left out.
    """
    comment, data = _encodable(tags.comment), _SEPARATOR + tags.data
    if format_name == "mp3":  # LAME writes Latin-1
        comment = comment.encode("ascii", "replace").decode()
    if format_name == "wav":
        if len(data.encode()) > _MAX_WAV_BYTES:
            data = ""
        comment = comment.encode()[: _MAX_WAV_BYTES - len(data.encode())].decode(errors="ignore")
    return comment + data


def read_tags(path: Path) -> AudioTags | None:
    """The tags of the file at `path`; None if it has none of ours.

    Raises:
        UsageError: the file can't be read, or its tags are damaged, or need mutagen, which is missing.
    """
    try:
        if has_mutagen():
            return _read_with_mutagen(path) or _read_with_libsndfile(path)
        tags = _read_with_libsndfile(path)
        if tags is None and may_have_tags(path):
            raise UsageError(
                f"{path} has tags that only mutagen reads; install it with: pip install 'musicgen-mlx[tags]'"
            )
        return tags
    except OSError as error:
        raise read_error(path, error) from error


def damaged_tags(path: Path, reason: Exception) -> UsageError:
    """The error for a file whose tags can't be understood."""
    return UsageError(
        f"{path} has damaged tags ({reason}); it may play, but how it was generated can't be shown"
    )


def _read_with_mutagen(path: Path) -> AudioTags | None:
    from mutagen import MutagenError
    from mutagen.id3 import ID3

    try:
        with path.open("rb") as file:
            audio = _open(file)
        if audio is None or audio.tags is None:
            return None
        id3 = isinstance(audio.tags, ID3)
        data = audio.tags.get(f"TXXX:{_DATA}" if id3 else _DATA)
        comment = audio.tags.get("COMM::eng" if id3 else _COMMENT)
        codes = audio.tags.get(f"TXXX:{_CODES}" if id3 else _CODES)
        return (
            AudioTags(comment[0] if comment else "", data[0], codes[0] if codes else None) if data else None
        )
    # mutagen raises the last two, too: for instance IndexError for a damaged Ogg file.
    except (MutagenError, ValueError, IndexError) as error:
        raise damaged_tags(path, error) from error


def _read_with_libsndfile(path: Path) -> AudioTags | None:
    import soundfile

    try:
        # By its descriptor: by its name libsndfile might take it for another format.
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as audio:
            comment, separator, data = audio.comment.rpartition(_SEPARATOR)
    except soundfile.SoundFileError:
        return None  # not audio, or damaged
    return AudioTags(comment, data) if separator else None


def may_have_tags(path: Path) -> bool:
    """Whether the name of our tag is anywhere in the file, as this or another program writes it."""
    if not path.stat().st_size:
        return False  # an empty file can't be mapped
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in _NAMES)


def _encodable(comment: str) -> str:
    """`comment` without lone surrogates and NUL, which tags can't hold; JSON escapes them."""
    return comment.encode("utf-8", "replace").decode().replace("\0", " ")


def _open(file: BinaryIO) -> FileType | None:
    """The file's tags as those of its format; None for a format that we don't write."""
    import mutagen
    from mutagen.flac import FLAC
    from mutagen.mp3 import MP3
    from mutagen.oggvorbis import OggVorbis
    from mutagen.wave import WAVE

    file.seek(0)
    return mutagen.File(file, options=[WAVE, FLAC, MP3, OggVorbis])
