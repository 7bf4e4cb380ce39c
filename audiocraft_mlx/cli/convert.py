"""`musicgen-mlx-convert`: any model that can be loaded → a folder in our own format, quantized if asked.

Nothing heavy is imported before the arguments are checked: `--help` and usage errors are answered at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from audiocraft_mlx.checkpoints.quantization_config import BITS, DEFAULT_GROUP_SIZE, GROUP_SIZES
from audiocraft_mlx.cli.arguments import add_lora, add_weights
from audiocraft_mlx.cli.common import Parser, print_stdout, run_command
from audiocraft_mlx.errors import MusicGenError
from audiocraft_mlx.files import check_new_folder

PROGRAM = "musicgen-mlx-convert"


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    return run_command(_convert, argv, PROGRAM)


def _convert(argv: list[str] | None) -> None:
    arguments = _parse(argv)
    folder: Path = arguments.output
    start = time.perf_counter()
    try:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints.load import load
        from audiocraft_mlx.checkpoints.mlx_format import save_model
        from audiocraft_mlx.checkpoints.quantization import quantize

        check_new_folder(folder)
        bundle = load(
            arguments.model, arguments.revision, lazy=True, weights=arguments.weights, lora=arguments.lora
        )
        if arguments.quantize is not None:
            quantize(bundle, arguments.quantize, arguments.group_size or DEFAULT_GROUP_SIZE)
        size = save_model(bundle, folder, getattr(mx, arguments.dtype))
    except MemoryError:
        raise MusicGenError(f"out of memory while converting {arguments.model}; close programs") from None
    print_stdout(f"wrote {folder}: {size / 1e6:.0f} MB in {time.perf_counter() - start:.1f} s")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM,
        description="Convert a MusicGen or AudioGen model to a folder in musicgen-mlx's own format, which"
        " loads fast, and optionally quantize it.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face Hub repository, a short name (small, ...), a folder or a training's file",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="the folder to create; it must not exist yet, or be empty",
    )
    parser.add_argument(
        "-q",
        "--quantize",
        metavar="BITS",
        type=int,
        choices=BITS,
        help="quantize the linear layers to 4 or 8 bits",
    )
    parser.add_argument(
        "--group-size",
        metavar="N",
        type=int,
        choices=GROUP_SIZES,
        help="with -q, the number of weights that share a scale: 32, 64 or 128 (default: 64)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="the precision of all weights that are not quantized (default: %(default)s)",
    )
    add_lora(parser.add_argument)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub (default: main)")
    add_weights(parser.add_argument)
    arguments = parser.parse_args(argv)
    if arguments.group_size is not None and arguments.quantize is None:
        parser.error("--group-size needs -q")
    return arguments
