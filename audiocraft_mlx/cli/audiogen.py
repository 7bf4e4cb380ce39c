"""`audiogen-mlx`: descriptions in, audio files of sounds out."""

from __future__ import annotations

import sys

from audiocraft_mlx.cli.generate import run_program
from audiocraft_mlx.clips.defaults import AUDIOGEN


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    return run_program(AUDIOGEN, argv)


if __name__ == "__main__":
    sys.exit(main())
