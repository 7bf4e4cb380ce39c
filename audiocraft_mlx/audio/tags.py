"""How a clip was made, written into the tags of its file: for players a comment, for us a tag of our own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.errors import UsageError

if TYPE_CHECKING:
    from mutagen import FileType

_COMMENT, _OURS = "COMMENT", "MUSICGEN_MLX"


def add_tags(file: BinaryIO, metadata: GenerationMetadata) -> None:
    """Write `metadata` into the tags of the WAV, FLAC, MP3 or Ogg Vorbis file in `file`."""
    from mutagen import MutagenError
    from mutagen.id3 import COMM, ID3, TXXX, Encoding

    # Comments can hold neither lone surrogates nor, in ID3, the end of a string; JSON escapes them.
    comment = metadata.summary().encode("utf-8", "replace").decode().replace("\0", " ")
    audio = _open(file)
    if audio is None:
        raise ValueError("the file is of a format that can't be tagged")
    if audio.tags is None:
        audio.add_tags()
    if isinstance(audio.tags, ID3):
        audio.tags.add(COMM(encoding=Encoding.UTF8, lang="eng", text=comment))
        audio.tags.add(TXXX(encoding=Encoding.UTF8, desc=_OURS, text=metadata.to_json()))
    else:
        audio.update({_COMMENT: comment, _OURS: metadata.to_json()})
    file.seek(0)
    try:
        audio.save(file)
    except MutagenError as error:
        if error.args and isinstance(error.args[0], OSError):
            raise error.args[0] from error
        raise


def read_tags(path: Path) -> GenerationMetadata | None:
    """How the clip in the file `path` was made; None if it has no tags of ours.

    Raises:
        UsageError: the file can't be read, or its tags are damaged.
    """
    from mutagen import MutagenError
    from mutagen.id3 import ID3

    try:
        with path.open("rb") as file:
            audio = _open(file)
        if audio is None or audio.tags is None:
            return None
        found = audio.tags.get(f"TXXX:{_OURS}" if isinstance(audio.tags, ID3) else _OURS)
        return GenerationMetadata.from_json(found[0]) if found else None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}; give an audio file") from error
    except (MutagenError, ValueError, IndexError) as error:  # the last from mutagen too, for a damaged Ogg
        raise UsageError(
            f"{path} has damaged tags ({error}); it may play, but how it was made is lost"
        ) from error


def _open(file: BinaryIO) -> FileType | None:
    """The file's tags in the way of its format; None for a format that we don't write."""
    import mutagen
    from mutagen.flac import FLAC
    from mutagen.mp3 import MP3
    from mutagen.oggvorbis import OggVorbis
    from mutagen.wave import WAVE

    file.seek(0)
    return mutagen.File(file, options=[WAVE, FLAC, MP3, OggVorbis])
