"""The audio files that a command's clips are made from, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiocraft_mlx.cli.arguments import GenerateClips, option_name
from audiocraft_mlx.clips.requests import FieldError
from audiocraft_mlx.errors import UsageError

if TYPE_CHECKING:
    from audiocraft_mlx.clips.prompt_lines import ListedClip
    from audiocraft_mlx.clips.requests import ClipRequest


def read_inputs(command: GenerateClips, part: range) -> list[ClipRequest]:
    """The requests of clips with their audio. Raises `UsageError`, with the lines at fault."""
    from audiocraft_mlx.clips.inputs import load_inputs

    clips = command.clips[part.start : part.stop]
    try:
        return load_inputs([clip.request for clip in clips])
    except UsageError as error:
        seen = set()

        def check(clip: ListedClip) -> None:
            request = clip.request
            read = (request.melody, request.style, request.source, request.midi_track, request.duration)
            if read not in seen:
                seen.add(read)
                load_inputs([request])

        command.check_clips(check, clips)
        raise UsageError(described(error)) from None  # a file that has changed


def described(error: UsageError) -> str:
    """The message, with the names of options."""
    return error.describe(option_name) if isinstance(error, FieldError) else str(error)
