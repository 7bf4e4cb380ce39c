"""`musicgen-mlx`: a prompt in, a WAV file out.

Nothing heavy is imported before the arguments are known to be good: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from audiocraft_mlx import __version__
from audiocraft_mlx.cli.common import Parser, run, say
from audiocraft_mlx.errors import UsageError

PROGRAM = "musicgen-mlx"
DEFAULT_OUTPUT = Path("musicgen_output.wav")

_Number = TypeVar("_Number", int, float)


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    return run(_generate, argv, PROGRAM)


def _generate(argv: list[str] | None) -> None:
    arguments = _parse(argv)

    from audiocraft_mlx.audio.picture import plot, require_matplotlib
    from audiocraft_mlx.audio.write import check_wav_size, check_writable, unused_path, write_wav

    output: Path = arguments.output or unused_path(DEFAULT_OUTPUT)
    check_writable(output)
    if arguments.plot:
        check_writable(arguments.plot)
        require_matplotlib()

    import numpy as np

    from audiocraft_mlx.models.musicgen import MusicGen

    model = MusicGen.get_pretrained(
        arguments.model,
        revision=arguments.revision,
        quantize=arguments.quantize,
        fast=arguments.fast,
        cache_bits=arguments.cache_bits,
    )
    check_wav_size(output, model.audio_channels, int(arguments.duration * model.sample_rate))
    # Without a seed one is drawn here, so that it can be shown and the clip made again.
    seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    model.set_generation_params(
        duration=arguments.duration,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        temperature=arguments.temperature,
        cfg_coef=arguments.cfg_coef,
        seed=seed,
    )
    start = time.perf_counter()
    with _progress_bar(arguments.duration) as show_progress:
        model.set_custom_progress_callback(show_progress)
        audio = np.asarray(model.generate([arguments.prompt], progress=True)[0])
    elapsed = time.perf_counter() - start

    if arguments.output is None:
        output = unused_path(DEFAULT_OUTPUT)  # the first choice may have been taken meanwhile
    peak = write_wav(output, audio, model.sample_rate)

    channels, samples = audio.shape
    seconds = samples / model.sample_rate
    layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    say(f"wrote {output}: {layout}, {seconds:.2f} s, {model.sample_rate} Hz")
    say(f"seed {seed}, {elapsed:.1f} s to make, {seconds / elapsed:.2f}x real time")
    if peak > 1:
        say(f"peak {peak:.2f} scaled down to fit 16 bits")
    if arguments.plot:
        plot(arguments.plot, audio, model.sample_rate, arguments.prompt)
        say(f"drew {arguments.plot}")
    if arguments.open and sys.platform == "darwin":
        # Opening is a courtesy; over ssh, say, there is no player, and the file is there all the same.
        subprocess.run(["open", str(output.resolve())], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def _progress_bar(duration: float) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, moved by the callback `(steps done, steps in all)`."""
    from tqdm import tqdm

    layout = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}{postfix}]"
    start = time.perf_counter()
    with tqdm(total=duration, disable=None, dynamic_ncols=True, bar_format=layout) as bar:

        def show(done: int, total: int) -> None:
            made = duration * done / total
            bar.set_postfix_str(f"{made / (time.perf_counter() - start):.2f}x real time", refresh=False)
            bar.update(made - bar.n)
            if done == total:
                # The codec's turn; on a CPU it takes a while.
                bar.set_postfix_str("decoding")

        yield show


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _make_parser()
    arguments, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("-"):
            parser.error(f"unknown option {argument}")
    if rest:
        parser.error("more than one prompt; put the whole prompt in quotes")
    if arguments.prompt == "-":
        arguments.prompt = _read_prompt()
    if not arguments.prompt.strip():
        parser.error("the prompt is empty; say what to play")
    try:
        arguments.prompt.encode()
    except UnicodeEncodeError:
        parser.error("the prompt is not valid UTF-8")
    return arguments


def _make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Make music from a description, with Meta's MusicGen on MLX.",
        allow_abbrev=False,
    )
    parser.add_argument("prompt", help='what to play, in quotes; "-" reads it from standard input')
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")

    model = parser.add_argument_group("model")
    model.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        default="facebook/musicgen-small",
        help="a name on the Hugging Face Hub, a short name (small, medium, large, stereo-small, "
        "stereo-medium, stereo-large), a local folder, or demo, a toy that needs no download "
        "(default: %(default)s)",
    )
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub (default: main)")
    model.add_argument(
        "-q",
        "--quantize",
        metavar="BITS",
        type=int,
        choices=(4, 8),
        help="keep the model's weights in 4 or 8 bits: less memory, and faster where memory is slow",
    )
    model.add_argument(
        "--fast",
        action="store_true",
        help="on a Linux CPU, calculate a quantized model's steps with 8-bit inputs too: less exact",
    )

    model.add_argument(
        "--cache-bits",
        metavar="BITS",
        type=int,
        choices=(8,),
        help="8: keep what the model looks back at in 8 bits; faster for long clips on a Linux CPU",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=_path_ending("wav"),
        help=f"WAV file, replaced if it exists (default: ./{DEFAULT_OUTPUT}, or the first free one of "
        f"{DEFAULT_OUTPUT.stem}-2.wav, -3, ...)",
    )
    output.add_argument(
        "-d",
        "--duration",
        metavar="SEC",
        type=_number(float, "a number of seconds above 0 and below 1000000", lambda value: 0 < value < 1e6),
        default=8.0,
        help="length in seconds (default: 8)",
    )
    output.add_argument(
        "--plot",
        metavar="FILE",
        type=_path_ending("png"),
        help="also draw waveform and mel spectrogram into this PNG file (needs the extra 'plot')",
    )
    output.add_argument(
        "--no-open", dest="open", action="store_false", help="don't open the file when it is done (macOS)"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--top-k",
        metavar="K",
        type=_number(int, "a whole number, 0 or more", lambda value: 0 <= value < 2**31),
        help="draw from the K likeliest codes, 0: from all (default: the model's, 250 for the released ones)",
    )
    sampling.add_argument(
        "--top-p",
        metavar="P",
        type=_number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1),
        help="draw from the likeliest codes that together have probability P, instead of top-k; 0: off "
        "(default: the model's, 0 for the released ones)",
    )
    sampling.add_argument(
        "--temperature",
        metavar="T",
        type=_number(float, "a number, 0 or more", lambda value: 0 <= value < math.inf),
        help="above 1 wilder, below 1 tamer, 0: always the likeliest code (default: the model's, 1.0 for the "
        "released ones)",
    )
    sampling.add_argument(
        "--cfg-coef",
        metavar="C",
        type=_number(float, "a number", math.isfinite),
        help="how closely to follow the prompt (default: the model's, 3.0 for the released ones)",
    )
    sampling.add_argument(
        "--seed",
        metavar="N",
        type=_number(int, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        help="the same seed makes the same music again (default: a random one, shown at the end)",
    )
    return parser


def _number(
    kind: Callable[[str], _Number], wanted: str, fits: Callable[[_Number], bool]
) -> Callable[[str], _Number]:
    def parse(text: str) -> _Number:
        try:
            value = kind(text)
        except ValueError:
            pass
        else:
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return parse


def _path_ending(ending: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != f".{ending}":
            raise argparse.ArgumentTypeError(
                f"must be a file name that ends in .{ending}, the only format, not {text!r}"
            )
        return path

    return parse


def _read_prompt() -> str:
    try:
        # sys.stdin is None when the process was started without one.
        return sys.stdin.buffer.read().decode("utf-8-sig").strip() if sys.stdin else ""
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not valid UTF-8; convert it first") from None
