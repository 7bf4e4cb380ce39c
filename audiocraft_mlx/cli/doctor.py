"""`musicgen-mlx-doctor`: is everything right on this machine?

Nothing heavy is imported before the arguments are parsed: `--help` and usage errors answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from audiocraft_mlx.cli.common import Parser, print_stdout, run_command
from audiocraft_mlx.errors import MusicGenError

if TYPE_CHECKING:
    from audiocraft_mlx.doctor.suite import Report

PROGRAM = "musicgen-mlx-doctor"


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: `sys.argv[1:]`) and return its exit status."""
    statuses: list[int] = []

    def work(argv: list[str] | None) -> None:
        statuses.append(_examine(argv))

    return run_command(work, argv, PROGRAM) or statuses[0]


def _examine(argv: list[str] | None) -> int:
    arguments = _parse(argv)
    with _progress("starting"):
        try:
            from audiocraft_mlx.doctor import report, suite
            from audiocraft_mlx.doctor.finding import Verdict
        except ImportError as error:  # MLX without its GPU's libraries, say
            raise MusicGenError(
                f"this installation is incomplete ({error}); install it again, into an empty environment"
            ) from error
    settings = report.settings()  # before anything sets a variable
    if not arguments.json:
        print_stdout(report.title())
    results: list[suite.Result] = []
    gpu_branch = suite.forces_gpu_branch()
    for check in suite.all_checks():
        if not arguments.json and (not results or results[-1].section != check.section):
            print_stdout("\n" + report.heading(check.section, gpu_branch))
        with _progress(f"{check.section}: {check.name}"):
            results.append(suite.run(check))
        if not arguments.json:
            print_stdout(report.line(results[-1]))
    outcome = suite.Report(results, gpu_branch, settings)
    if arguments.json:
        print_stdout(json.dumps(report.as_json(outcome), indent=2))
    else:
        _print_end(outcome)
    return int(outcome.verdict is Verdict.WRONG)


def _print_end(outcome: Report) -> None:
    from audiocraft_mlx.doctor import report

    print_stdout(f"\n{report.summary(outcome)}")
    print_stdout("\nFor a bug report, copy this, from ``` to ```:\n")
    print_stdout(report.bug_report(outcome))


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """What is being done, on standard error if that is a terminal, and gone when it is done."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        print(f"  ...      {text}"[:79], end="\r", file=sys.stderr, flush=True)
        yield
    finally:
        print("\033[K", end="", file=sys.stderr, flush=True)  # erases to the end of the line


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM,
        description="Examine this machine and installation in half a minute, and end with a text for a bug"
        " report. Nothing is downloaded. Exit status 1 if something is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser.parse_args(argv)
