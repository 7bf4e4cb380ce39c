"""`musicgen-mlx-bench`: how fast a model is on this machine.

Nothing heavy is imported before the arguments are known to be good: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from audiocraft_mlx.benchmark import SHAPES
from audiocraft_mlx.cli.common import Parser, print_stdout, run_command
from audiocraft_mlx.errors import OutputError
from audiocraft_mlx.version import __version__

PROGRAM = "musicgen-mlx-bench"


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    return run_command(_bench, argv, PROGRAM)


def _bench(argv: list[str] | None) -> None:
    arguments = _parse(argv)
    from audiocraft_mlx.benchmark import report
    from audiocraft_mlx.benchmark.subject import Subject
    from audiocraft_mlx.benchmark.suite import Row, Settings, measure_all
    from audiocraft_mlx.files import check_writable

    if arguments.json:
        check_writable(arguments.json)
    name = arguments.shape or arguments.model or arguments.model_option
    subject = Subject(name, random=arguments.shape is not None)
    settings = Settings(
        arguments.duration,
        arguments.runs,
        bits=arguments.quantize,
        fast=arguments.fast,
        cache_bits=arguments.cache_bits,
        compare=arguments.compare is not None,
    )
    rows: list[Row] = []
    for row in measure_all(subject, settings):
        if not rows:
            print_stdout(report.title(subject, settings))
            print_stdout(report.header(settings))
        rows.append(row)
        print_stdout(report.line(row))
    if arguments.json:
        _write(arguments.json, json.dumps(report.as_json(subject, settings, rows), indent=2) + "\n")
        print_stdout(f"wrote {arguments.json}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}; free some space") from error


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM,
        description="Measure how fast a MusicGen model is on this machine, part by part.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a name on the Hugging Face Hub, a short name (small, ...), a local folder, or demo",
    )
    subject.add_argument("-m", "--model", dest="model_option", metavar="MODEL", help="the same")
    subject.add_argument(
        "--shape",
        choices=SHAPES,
        help="the shape of a released model with random weights: nothing to download, and the same speed",
    )
    parser.add_argument(
        "-q",
        "--quantize",
        metavar="BITS",
        type=int,
        choices=(4, 8),
        help="quantize the weights to 4 or 8 bits first",
    )
    parser.add_argument(
        "--fast", action="store_true", help="with -q, on a Linux CPU: calculate with 8-bit inputs too"
    )
    parser.add_argument(
        "--cache-bits", metavar="BITS", type=int, choices=(8,), help="8: keep keys and values in 8 bits"
    )
    parser.add_argument(
        "-d",
        "--duration",
        metavar="SEC",
        type=float,
        default=8.0,
        help="length of the music that is made as a whole (default: 8)",
    )
    parser.add_argument(
        "--runs",
        metavar="N",
        type=int,
        default=3,
        help="how often each part is measured (default: 3)",
    )
    parser.add_argument(
        "--compare",
        choices=("transformers",),
        help="measure transformers on PyTorch, too, in turns with ours (needs the extra 'bench')",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all measurements to this file, too")
    return parser.parse_args(argv)
