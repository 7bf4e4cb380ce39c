"""What all commands share: mistakes and failures become one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError, UsageErrors
from audiocraft_mlx.machine import is_out_of_memory
from audiocraft_mlx.version import __version__

OUT_OF_MEMORY = "out of memory; try a shorter --duration or a smaller --model"


class Parser(argparse.ArgumentParser):
    """argparse with --version; a mistake is a `UsageError`, and a closed pipe behind --help is no error."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, formatter_class=_HelpFormatter, allow_abbrev=False, **options)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try {self.prog} --help")

    def _print_message(self, message: str, file: object = None) -> None:
        # What argparse itself prints: --help and --version.
        print_stdout(message, end="")


class _HelpFormatter(argparse.HelpFormatter):
    """Breaks no line at a hyphen: names of models and options can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def run_command(work: Callable[[list[str] | None], None], argv: list[str] | None, program: str) -> int:
    """Do `work(argv)` and return the exit status of `program`; a failure is one line on standard error."""
    _open_closed_streams()
    warnings.showwarning = lambda message, *_, **__: print(f"{program}: warning: {message}", file=sys.stderr)
    try:
        work(argv)
    except UsageErrors as error:
        for message in error.messages:
            _fail(program, message, error.exit_status)
        return error.exit_status
    except MusicGenError as error:
        return _fail(program, str(error), error.exit_status)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(program, OUT_OF_MEMORY, 1)
    except BrokenPipeError:
        # The reader of the audio on standard output has gone.
        silence_stdout()
    except KeyboardInterrupt as error:
        return _fail(program, str(error) or "interrupted", 130)
    return 0


def print_stdout(text: str, end: str = "\n") -> None:
    """Print to standard output and flush; a closed pipe (`| head`) is no error."""
    try:
        # A file name may hold bytes that standard output's encoding has no characters for.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except OSError as error:
        silence_stdout()
        if not isinstance(error, BrokenPipeError):
            raise OutputError(
                f"standard output can't be written: {error.strerror}; free some space"
            ) from error


def print_stderr(text: str) -> None:
    """Print to standard error, for example where standard output belongs to audio."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Discard further output: Python would try to write what is still buffered when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Open /dev/null for standard streams that the process was started without (`<&-`).

    Else the next file that is opened gets their number: MLX takes descriptor 0 for a failure, and a progress
    bar has nowhere to go.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, open as long as the process lives


def _fail(program: str, message: str, status: int) -> int:
    print(f"{program}: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return status
