"""What the commands that make clips can be told, and which of it goes together.

Nothing heavy is imported here: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from audiocraft_mlx.audio.formats import BIT_DEPTHS, WAV, AudioFormat, choose_format
from audiocraft_mlx.checkpoints.model_files import DEMO, SHORT_NAMES
from audiocraft_mlx.cli.common import Parser
from audiocraft_mlx.clips.metadata import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.version import __version__

STREAM = Path("-")
"""What `--output` is for standard output."""
PROMPT_SECONDS = 5.0
LUFS = -14.0
# Enough for a night, and few enough for their numbers to be planned ahead.
_MOST_CLIPS = 10_000

_Number = TypeVar("_Number", int, float)


def parse(argv: list[str] | None, program: CommandDefaults = MUSICGEN) -> argparse.Namespace:
    """The arguments, checked as far as can be without opening a file but that of `--prompts`.

    `prompts` has one text for each clip, the takes of a prompt side by side, "" for none. `output` is None
    for the usual name, and `STREAM` for standard output; `chosen_format` is what to write. What can hear
    nothing but text, as far as its name says, is given nothing else.

    Raises `UsageError`.
    """
    parser = make_parser(program)
    words = sys.argv[1:] if argv is None else argv
    # Prompts may stand between options, which argparse allows for the first ones only.
    end = words.index("--") if "--" in words else len(words)
    arguments, rest = parser.parse_known_args(words[:end])
    for word in rest:
        if word.startswith("-") and word != "-":
            parser.error(f"unknown option {word}")
    arguments.prompts += [*rest, *words[end + 1 :]]
    if arguments.info is not None:
        if arguments.prompts:
            parser.error("--info shows a file and makes nothing; leave the prompt out")
        return arguments
    try:
        _check_together(arguments)
        arguments.prompts = _all_prompts(arguments)
        arguments.chosen_format = _format(arguments, program)
        check_hearing(arguments, _heard_by_name(arguments.model))
    except UsageError as error:
        parser.error(str(error))
    return arguments


def check_hearing(arguments: argparse.Namespace, condition_types: frozenset[str] | None) -> None:
    """Refuse with `UsageError` a melody or a style that the model can't use; None means: not known yet."""
    for kind, models in (("melody", "melody, melody-large or stereo-melody"), ("style", "style")):
        if (
            getattr(arguments, kind) is not None
            and condition_types is not None
            and kind not in condition_types
        ):
            raise UsageError(
                f"--{kind}: the model {arguments.model} can't hear a {kind}; choose one that can: {models}"
            )


def _heard_by_name(model: str) -> frozenset[str] | None:
    """What a released model hears: it need not be downloaded to find out."""
    name = SHORT_NAMES.get(model, model)
    if name not in SHORT_NAMES.values() and name != DEMO:
        return None
    return frozenset({"text", *(kind for kind in ("melody", "style") if kind in name)})


def _check_together(arguments: argparse.Namespace) -> None:
    given = {name: value is not None for name, value in vars(arguments).items()}
    if given["melody"] and given["style"]:
        raise UsageError("--melody and --style: no model hears both; give one of them")
    for option, needed in (("style_coef", "style"), ("prompt_seconds", "continue_")):
        if given[option] and not given[needed]:
            raise UsageError(f"--{option.replace('_', '-')} needs --{needed.rstrip('_')}")
    if given["lufs"] and arguments.normalize != "loudness":
        raise UsageError("--lufs needs --normalize loudness")
    if arguments.output == STREAM:
        if arguments.stems:
            raise UsageError("--stems are written beside a file; give one to --output")
        if sys.stdout is not None and sys.stdout.isatty():
            raise UsageError("standard output is a terminal; pipe it into a player or a file")


def _format(arguments: argparse.Namespace, program: CommandDefaults) -> AudioFormat:
    name, bits = arguments.format, arguments.bit_depth
    if arguments.output == STREAM:
        if name not in (None, WAV.name):
            raise UsageError(f"standard output gets WAV, and {name} needs a file; give one to --output")
        return choose_format(STREAM, WAV.name, bits)
    path = arguments.output or Path(f"{program.output_name}.{name or WAV.name}")
    return choose_format(path, name, bits)


def _all_prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompts)
    if prompts.count("-") > 1:
        raise UsageError("standard input holds one prompt; give '-' once")
    prompts = [_read_prompt() if prompt == "-" else prompt for prompt in prompts]
    if arguments.prompts_file is not None:
        prompts += _read_prompts(arguments.prompts_file)
    heard = any(getattr(arguments, name) is not None for name in ("melody", "style", "continue_"))
    if not prompts and not heard:
        raise UsageError("the prompt is missing; say what to play")
    for prompt in prompts:
        if not prompt.strip() and not heard:
            raise UsageError("the prompt is empty; say what to play")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("the prompt is not valid UTF-8") from None
    prompts = [prompt if prompt.strip() else "" for prompt in prompts or [""]]
    clips = len(prompts) * arguments.takes
    if clips > _MOST_CLIPS:
        raise UsageError(f"these are {clips} clips; ask for {_MOST_CLIPS} at most")
    if clips > 1 and arguments.output == STREAM:
        raise UsageError(f"standard output holds one clip, not {clips}; give a file to --output")
    return [prompt for prompt in prompts for _ in range(arguments.takes)]


def _read_prompt() -> str:
    try:
        # sys.stdin is None when the process was started without one.
        return sys.stdin.buffer.read().decode("utf-8-sig").strip() if sys.stdin else ""
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not valid UTF-8; convert it first") from None


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--prompts: {path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise UsageError(f"--prompts: {path} is not valid UTF-8; convert it first") from None
    prompts = [line.strip() for line in lines]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"--prompts: {path} has no prompts; write one a line")
    return prompts


def make_parser(program: CommandDefaults) -> Parser:
    music = program is MUSICGEN
    parser = Parser(
        prog=program.name,
        usage=f"{program.name} [options] PROMPT [PROMPT ...]",
        description="Make music from a description, a melody or a style, with Meta's MusicGen on MLX."
        if music
        else "Make sounds from a description, with Meta's AudioGen on MLX.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help='what to play, in quotes; "-" reads it from standard input',
    )
    parser.add_argument("--version", action="version", version=f"{program.name} {__version__}")
    _add_model(parser, program)
    _add_told(parser)
    _add_output(parser, program)
    _add_sampling(parser)
    return parser


def _add_model(parser: Parser, program: CommandDefaults) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    short = [name for name in SHORT_NAMES if ("audiogen" in name) == (program is AUDIOGEN)]
    add(
        "-m",
        "--model",
        metavar="NAME",
        default=program.model,
        help=f"a name on the Hugging Face Hub, a short name ({', '.join(short)}), a local folder, or demo, "
        "a toy that needs no download (default: %(default)s)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit on the Hub (default: main)")
    add(
        "-q",
        "--quantize",
        metavar="BITS",
        type=int,
        choices=(4, 8),
        help="keep the model's weights in 4 or 8 bits: less memory, and faster where memory is slow",
    )
    add(
        "--fast",
        action="store_true",
        help="calculate a quantized model's steps with 8-bit inputs too, on Linux CPUs that do: less exact",
    )
    add(
        "--cache-bits",
        metavar="BITS",
        type=int,
        choices=(8,),
        help="8: keep what the model looks back at in 8 bits; faster for long clips on a Linux CPU",
    )


def _add_told(parser: Parser) -> None:
    add = parser.add_argument_group("what to play").add_argument
    add(
        "--prompts",
        dest="prompts_file",
        metavar="FILE",
        type=Path,
        help="read more prompts from this text file, one a line; lines that begin with # are skipped",
    )
    add(
        "-n",
        "--takes",
        metavar="N",
        type=_number(int, f"a whole number from 1 to {_MOST_CLIPS}", lambda value: 1 <= value <= _MOST_CLIPS),
        default=1,
        help="make each prompt so many times, with a seed for each (default: 1)",
    )
    add("--melody", metavar="FILE", type=Path, help="follow the melody in this audio file (melody models)")
    add("--style", metavar="FILE", type=Path, help="play in the style of this audio file (the style model)")
    add(
        "--style-coef",
        metavar="C",
        type=_number(float, "a number", math.isfinite),
        help="how much more the prompt counts than the style; 5 is a good try (default: as much)",
    )
    add(
        "--continue",
        dest="continue_",
        metavar="FILE",
        type=Path,
        help="go on from the end of this audio file; the result has it in front, as it is",
    )
    add(
        "--prompt-seconds",
        metavar="SEC",
        type=_number(float, "a number of seconds above 0", lambda value: 0 < value < math.inf),
        help=f"how much of the end of that file the model hears (default: {PROMPT_SECONDS:g})",
    )


def _add_output(parser: Parser, program: CommandDefaults) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "-o",
        "--output",
        metavar="FILE",
        type=_path,
        help="WAV, FLAC, MP3 or Ogg file, replaced if it exists; several clips are numbered; - streams WAV "
        f"to standard output (default: ./{program.output_name}.wav, or the first free one of {program.output_name}-2.wav, "
        "...)",
    )
    add(
        "-d",
        "--duration",
        metavar="SEC",
        type=_number(float, "a number of seconds above 0 and below 1000000", lambda value: 0 < value < 1e6),
        default=program.duration,
        help="length of what is made in seconds (default: %(default)g)",
    )
    add("--format", choices=tuple(BIT_DEPTHS), help="default: what the file's name ends in, or wav")
    add(
        "--bit-depth",
        metavar="BITS",
        type=int,
        choices=(16, 24, 32),
        help="bits per sample: 16, 24 or 32 (floating point) for wav, 16 or 24 for flac (default: 16)",
    )
    add(
        "--normalize",
        choices=("none", "peak", "loudness"),
        default="none",
        help="bring to a level: none (but never beyond full scale), the peak to -1 dB, or the loudness to "
        "--lufs (default: none)",
    )
    add(
        "--lufs",
        metavar="N",
        type=_number(float, "a number from -70 to 0", lambda value: -70 <= value <= 0),
        help=f"the loudness of --normalize loudness, in LUFS (default: {LUFS:g})",
    )
    add(
        "--fade-out",
        metavar="SEC",
        type=_number(float, "a number of seconds above 0", lambda value: 0 < value < math.inf),
        help="let the end fade out for so long",
    )
    add("--stems", action="store_true", help="also write drums, bass, other and vocals, each into a file")
    add(
        "--plot",
        metavar="FILE",
        type=_png,
        help="also draw waveform and mel spectrogram into this PNG file (needs the extra 'plot')",
    )
    add("--play", action="store_true", help="play it while it is being made (needs the extra 'play')")
    add("--no-open", dest="open", action="store_false", help="don't open the file when it is done (macOS)")
    add("--info", metavar="FILE", type=Path, help="show how an audio file was made, and make nothing")


def _add_sampling(parser: Parser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add(
        "--top-k",
        metavar="K",
        type=_number(int, "a whole number, 0 or more", lambda value: 0 <= value < 2**31),
        help="draw from the K likeliest codes, 0: from all (default: the model's, 250 for the released ones)",
    )
    add(
        "--top-p",
        metavar="P",
        type=_number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1),
        help="draw from the likeliest codes that together have probability P, instead of top-k; 0: off "
        "(default: the model's, 0 for the released ones)",
    )
    add(
        "--temperature",
        metavar="T",
        type=_number(float, "a number, 0 or more", lambda value: 0 <= value < math.inf),
        help="above 1 wilder, below 1 tamer, 0: always the likeliest code (default: the model's, 1.0 for the "
        "released ones)",
    )
    add(
        "--cfg-coef",
        metavar="C",
        type=_number(float, "a number", math.isfinite),
        help="how closely to follow the prompt (default: the model's, 3.0 for the released ones)",
    )
    add(
        "--seed",
        metavar="N",
        type=_number(int, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        help="the same seed makes the same music again; of several clips each has the next one (default: a "
        "random one, shown at the end)",
    )


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


def _path(text: str) -> Path:
    path = Path(text)
    if not path.name:
        raise argparse.ArgumentTypeError(f"must be the name of a file, not {text!r}")
    return path


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a file name that ends in .png, not {text!r}")
    return path
