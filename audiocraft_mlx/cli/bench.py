"""`musicgen-mlx-bench`: how fast a model is on this machine.

Nothing heavy is imported before the arguments are parsed: `--help` and usage errors answer at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import BinaryIO

from audiocraft_mlx.benchmark import SHAPES
from audiocraft_mlx.cli.common import Parser, print_stdout, run_command

PROGRAM = "musicgen-mlx-bench"


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: `sys.argv[1:]`) and return its exit status."""
    return run_command(_bench, argv, PROGRAM)


def _bench(argv: list[str] | None) -> None:
    arguments = _parse(argv)
    from audiocraft_mlx.benchmark import report
    from audiocraft_mlx.benchmark.model import BenchmarkModel
    from audiocraft_mlx.benchmark.suite import Result, Settings, run_benchmark
    from audiocraft_mlx.files import check_writable, write_file

    if arguments.json:
        check_writable(arguments.json)
    name = arguments.shape or arguments.model or arguments.model_option
    model = BenchmarkModel(name, random=arguments.shape is not None)
    settings = Settings(
        arguments.duration,
        arguments.runs,
        bits=arguments.quantize,
        int8_activations=arguments.int8_activations,
        cache_bits=arguments.cache_bits,
        compare=arguments.compare is not None,
    )
    results: list[Result] = []
    for result in run_benchmark(model, settings):
        if not results:
            print_stdout(report.title(model, settings))
            print_stdout(report.header(settings))
        results.append(result)
        print_stdout(report.line(result))
    if arguments.json:
        text = json.dumps(report.as_json(model, settings, results), indent=2) + "\n"

        def write_json(file: BinaryIO) -> None:
            file.write(text.encode())

        write_file(arguments.json, write_json)
        print_stdout(f"wrote {arguments.json}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM,
        description="Measure how fast a MusicGen model is on this machine, part by part.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a name on the Hugging Face Hub, a short name (small, ...), a local folder, or demo",
    )
    model.add_argument("-m", "--model", dest="model_option", metavar="MODEL", help="the same as MODEL")
    model.add_argument(
        "--shape",
        metavar="SHAPE",
        choices=SHAPES,
        help="instead of a model: random weights in the shape of a released one; same speed, no download "
        f"({', '.join(SHAPES)})",
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
        "--int8-activations",
        "--fast",
        dest="int8_activations",
        action="store_true",
        help="with a quantized model, on a Linux CPU: int8 activations too",
    )
    parser.add_argument("--cache-bits", metavar="BITS", type=int, choices=(8,), help="8: an int8 KV cache")
    parser.add_argument(
        "-d",
        "--duration",
        metavar="SEC",
        type=float,
        default=8.0,
        help="length of the clip that is generated, from the prompt to the audio (default: 8)",
    )
    parser.add_argument(
        "--runs",
        metavar="N",
        type=int,
        default=3,
        help="measurements of each part (default: 3)",
    )
    parser.add_argument(
        "--compare",
        choices=("transformers",),
        help="measure transformers on PyTorch too, in turns with ours (needs the extra 'bench')",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all measurements to this file")
    return parser.parse_args(argv)
