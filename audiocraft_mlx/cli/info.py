"""What `musicgen-mlx --info FILE` shows: what is in an audio file, and how it was made."""

from __future__ import annotations

import stat
from pathlib import Path

from audiocraft_mlx.audio.read import read_info
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.codes import read_codes
from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.clips.metadata import read_metadata
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error


def show_info(path: Path) -> None:
    """Print the format of `path`, its tags, and the command that makes it again.

    Raises:
        UsageError: it is missing, or no audio file, or its tags are damaged.
    """
    print_stdout(f"{path}: {_describe(path)}")
    metadata = read_metadata(path)
    if metadata is None:
        print_stdout(f"it has no tags of {MUSICGEN.name}")
        return
    print_stdout(f"made with {metadata.program} {_shown(metadata.version)}")
    if metadata.partial:
        print_stdout("  interrupted: this is what was made until then")
    shown = {
        "prompt": metadata.prompt or None,
        "model": metadata.model,
        "seed": metadata.seed,
        "duration": f"{metadata.duration:g} s",
        "top-k": metadata.top_k,
        "top-p": metadata.top_p,
        "temperature": metadata.temperature,
        "cfg-coef": metadata.cfg_coef,
        **metadata.options,
    }
    for name, value in shown.items():
        if value is None:  # the model's own default, or nothing
            continue
        for each in value if isinstance(value, (list, tuple)) else (value,):
            print_stdout(f"  {_shown(name)}: {_shown(str(each))}")
    codes = read_codes(path)
    if codes is not None:
        print_stdout(f"  codes: {codes.frames} frames, to be continued from")
    print_stdout(f"make it again: {metadata.to_command()}")


def _describe(path: Path) -> str:
    """The format, channels, rate and length of an audio file, in words."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a file; give an audio file")
    except OSError as error:
        raise read_error(path, error) from error
    info = read_info(path)
    layout = {1: "mono", 2: "stereo"}.get(info.channels, f"{info.channels} channels")
    return f"{info.description}, {info.rate} Hz, {layout}, {info.frames / info.rate:.2f} s"


def _shown(text: str) -> str:
    """`text` without anything that a terminal would obey: a file may come from anywhere."""
    return "".join(c if c.isprintable() else " " for c in text)
