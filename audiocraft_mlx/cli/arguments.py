"""The options of the commands that generate clips, turned into values.

Nothing heavy is imported here: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.audio.formats import BIT_DEPTHS, WAV, AudioFormat, choose_format
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import SHORT_NAMES, released_as_magnet, released_condition_types
from audiocraft_mlx.cli.common import Parser
from audiocraft_mlx.cli.control import add_control
from audiocraft_mlx.cli.edit_options import add_edit_options, check_edit_options
from audiocraft_mlx.cli.loop_options import add_loop_options, check_loop_options
from audiocraft_mlx.cli.masked_options import add_masked_options
from audiocraft_mlx.cli.note_options import add_note_options
from audiocraft_mlx.cli.tempo_options import add_tempo_options
from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.clips.requests import (
    DEFAULT_LUFS,
    DEFAULT_PROMPT_SECONDS,
    NORMALIZATIONS,
    ClipRequest,
    FieldError,
    ModelOptions,
    OutputOptions,
    draw_seed,
    require_loopable,
)
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error
from audiocraft_mlx.validation import (
    CFG_COEF,
    DURATION,
    ENDINGS,
    LUFS,
    MAX_PROMPT_CHARACTERS,
    MELODY_SEPARATIONS,
    SECONDS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    NumberRange,
)

STDOUT = Path("-")
"""What `--output` is for standard output."""
# Enough for weeks, and few enough that all can be planned ahead.
_MAX_CLIPS = 100_000
_TAKES = NumberRange(int, f"an integer from 1 to {_MAX_CLIPS}", lambda takes: 1 <= takes <= _MAX_CLIPS)


@dataclass(frozen=True)
class ShowInfo:
    """`--info`."""

    path: Path


@dataclass(frozen=True)
class GenerateClips:
    """What one call of a command is to do."""

    program: CommandDefaults
    model: ModelOptions
    requests: tuple[ClipRequest, ...]
    """One for each clip, the takes of a prompt side by side. Their audio files aren't read yet."""
    output: OutputOptions
    path: Path | None
    """`STDOUT` for standard output, None for the default name."""
    plot: Path | None
    play: bool
    open: bool
    tags: bool = True
    """Whether the files hold how they were generated."""
    takes: int = 1
    keep_best: int | None = None
    """How many loops of each prompt get a file; None: all."""

    @property
    def streaming(self) -> bool:
        return self.path == STDOUT

    def require_supported(self, condition_types: frozenset[str], fills_masks: bool | None) -> None:
        """Raise `UsageError` if the model can't use an option; see `ClipRequest.require_supported`."""
        try:
            self.requests[0].require_supported(condition_types, self.model.name, fills_masks)
        except FieldError as error:
            raise UsageError(error.describe(option_name)) from None
        if fills_masks and self.model.cache_bits is not None:
            raise UsageError(
                f"--cache-bits: {self.model.name} is a MAGNeT, which keeps no keys and values; leave it out"
            )


def parse(argv: list[str] | None, program: CommandDefaults = MUSICGEN) -> GenerateClips | ShowInfo:
    """The arguments as values, checked as far as can be without opening a file but that of `--prompts`.

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
            parser.error("--info shows a file and generates nothing; leave the prompt out")
        return ShowInfo(arguments.info)
    try:
        command = _to_command(arguments, program)
        condition_types = released_condition_types(arguments.model)
        if condition_types is not None:
            command.require_supported(condition_types, released_as_magnet(arguments.model))
    except FieldError as error:
        parser.error(error.describe(option_name))
    except UsageError as error:
        parser.error(str(error))
    return command


def option_name(field: str) -> str:
    """The option of a request's field, as messages call it."""
    others = {"source": "--continue", "sections": "--section", "audio_format": "--format"}
    return others.get(field, f"--{field.replace('_', '-')}")


def _to_command(arguments: argparse.Namespace, program: CommandDefaults) -> GenerateClips:
    check_edit_options(arguments)
    check_loop_options(arguments)
    _check_stdout(arguments)
    output = OutputOptions(
        _format(arguments, program).name,
        arguments.bit_depth,
        arguments.normalize,
        arguments.lufs,
        arguments.fade_out,
        arguments.stems,
        arguments.ending,
    )
    prompts = _all_prompts(arguments)
    first_seed = draw_seed() if arguments.seed is None else arguments.seed
    requests = tuple(
        ClipRequest(
            prompt if prompt.strip() else "",
            (first_seed + index) % 2**32,
            program.duration if arguments.duration is None else arguments.duration,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            temperature=arguments.temperature,
            cfg_coef=arguments.cfg_coef,
            melody=arguments.melody,
            style=arguments.style,
            style_coef=arguments.style_coef,
            max_cfg_coef=arguments.max_cfg_coef,
            min_cfg_coef=arguments.min_cfg_coef,
            decoding_steps=arguments.decoding_steps,
            span_arrangement=arguments.span_arrangement,
            source=arguments.edit or arguments.source,
            replace=arguments.replace,
            candidates=arguments.candidates,
            prompt_seconds=arguments.prompt_seconds,
            melody_separation=arguments.melody_separation,
            sections=tuple(arguments.sections or ()),
            negative=arguments.negative,
            loop=arguments.loop,
            bars=arguments.bars,
            midi_track=arguments.midi_track,
            chords=arguments.chords,
            bpm=arguments.bpm,
            beats_per_bar=arguments.beats_per_bar,
        )
        for index, prompt in enumerate(prompts)
    )
    require_loopable(requests[0], output)
    if len(requests) > 1 and arguments.output == STDOUT:
        raise UsageError(f"standard output holds one clip, not {len(requests)}; give a file to --output")
    return GenerateClips(
        program,
        ModelOptions(
            arguments.model,
            arguments.revision,
            arguments.quantize,
            arguments.int8_activations,
            arguments.cache_bits,
            arguments.weights,
            tuple(arguments.lora),
        ),
        requests,
        output,
        arguments.output,
        arguments.plot,
        arguments.play,
        arguments.open,
        arguments.tags,
        arguments.takes,
        arguments.keep_best,
    )


def _check_stdout(arguments: argparse.Namespace) -> None:
    if arguments.output != STDOUT:
        return
    if arguments.stems:
        raise UsageError("--stems are written beside a file; give one to --output")
    if sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal; pipe it into a player or a file")


def _format(arguments: argparse.Namespace, program: CommandDefaults) -> AudioFormat:
    name, bits = arguments.format, arguments.bit_depth
    if arguments.output == STDOUT:
        if name not in (None, WAV.name):
            raise UsageError(f"standard output gets WAV, and {name} needs a file; give one to --output")
        return choose_format(STDOUT, WAV.name, bits)
    path = arguments.output or Path(f"{program.output_name}.{name or WAV.name}")
    return choose_format(path, name, bits)


def _all_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompt of each clip: "" if there is none, but audio."""
    prompts = list(arguments.prompts)
    if prompts.count("-") > 1:
        raise UsageError("standard input holds one prompt; give '-' once")
    prompts = [_read_prompt() if prompt == "-" else prompt for prompt in prompts]
    if arguments.prompts_file is not None:
        most = max(0, _MAX_CLIPS // arguments.takes - len(prompts))
        prompts += _read_prompts(arguments.prompts_file, most)
    names = ("melody", "style", "source", "edit", "sections", "chords")
    instead = [getattr(arguments, name) for name in names]
    if not prompts and not any(instead):
        raise UsageError("the prompt is missing; say what to play")
    prompts = prompts or [""]
    clips = len(prompts) * arguments.takes
    if clips > _MAX_CLIPS:
        raise UsageError(f"these are {clips} clips; ask for {_MAX_CLIPS} at most")
    return [prompt for prompt in prompts for _ in range(arguments.takes)]


def _read_prompt() -> str:
    # sys.stdin is None when the process was started without one. No character has more than 4 bytes.
    most = 4 * MAX_PROMPT_CHARACTERS
    given = sys.stdin.buffer.read(most + 2) if sys.stdin else b""
    if len(given) > most:
        raise UsageError(
            f"the prompt on standard input is too long; give at most {MAX_PROMPT_CHARACTERS} characters"
        )
    try:
        return given.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not valid UTF-8; convert it first") from None


def _read_prompts(path: Path, most: int) -> list[str]:
    """The prompts in a file, one a line, without blank lines and comments.

    Raises:
        UsageError: also for more than `most`, which is found without reading all of the file.
    """
    prompts: list[str] = []
    try:
        # Lines end as in a text editor: not at what else Unicode calls the end of a line or paragraph.
        with path.open(encoding="utf-8-sig", newline=None) as file:
            longest = MAX_PROMPT_CHARACTERS + 1
            for number, line in enumerate(iter(lambda: file.readline(longest), ""), start=1):
                if len(line) == longest and not line.endswith("\n"):
                    raise UsageError(
                        f"--prompts: line {number} of {path} is longer than {MAX_PROMPT_CHARACTERS}"
                        " characters; write one prompt a line"
                    )
                prompt = line.strip()
                if not prompt or prompt.startswith("#"):
                    continue
                if len(prompts) == most:
                    raise UsageError(
                        f"--prompts: {path} has prompts for more than {_MAX_CLIPS} clips; split it"
                    )
                prompts.append(prompt)
    except OSError as error:
        raise UsageError(f"--prompts: {read_error(path, error, 'give a text file')}") from error
    except UnicodeDecodeError:
        raise UsageError(f"--prompts: {path} is not valid UTF-8; convert it first") from None
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
    )
    parser.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help='what to play, in quotes; "-" reads it from standard input',
    )
    _add_model(parser, program)
    _add_conditioning_args(parser)
    _add_output(parser, program)
    _add_sampling(parser)
    return parser


def _add_model(parser: Parser, program: CommandDefaults) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    short = [name for name in SHORT_NAMES if name.startswith("audio") == (program is AUDIOGEN)]
    add(
        "-m",
        "--model",
        metavar="NAME",
        default=program.model,
        help=f"a name on the Hugging Face Hub, a short name ({', '.join(short)}), a local folder, a "
        "training's file (checkpoint.th), or demo, a toy that needs no download (default: %(default)s)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit on the Hub (default: main)")
    add_weights(add)
    add_lora(add)
    add_quantization(add)


def add_weights(add: Callable[..., object]) -> None:
    """The option of the commands that read a model which was fine-tuned."""
    add(
        "--weights",
        metavar="FILE",
        help="the weights of a fine-tuned model, in place of those of the model that it was trained from: a "
        "torch or safetensors file of a training",
    )


def add_lora(add: Callable[..., object], what: str = "merge a LoRA adapter into the model") -> None:
    """The option for adapters, which the commands that load a model share."""
    add(
        "--lora",
        metavar="NAME[@WEIGHT]",
        action="append",
        type=_lora,
        default=[],
        help=f"{what}: its folder or its name on the Hub, and how strongly it counts, 1 if that isn't said; "
        "may be given more than once",
    )


def _lora(text: str) -> LoraSpec:
    try:
        return LoraSpec.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_quantization(add: Callable[..., object]) -> None:
    """The options of how a model's weights and keys are kept, which the commands that generate share."""
    add(
        "-q",
        "--quantize",
        metavar="BITS",
        type=int,
        choices=(4, 8),
        help="keep the model's weights in 4 or 8 bits: less memory, and faster where memory is slow",
    )
    add(
        "--int8-activations",
        "--fast",
        action="store_true",
        help="compute a quantized model's linear layers with 8-bit activations: faster and less exact, on "
        "Linux CPUs with AVX-512 VNNI",
    )
    add(
        "--cache-bits",
        metavar="BITS",
        type=int,
        choices=(8,),
        help="8: keep the keys and values of the attention in 8 bits; faster for long clips on a Linux CPU",
    )


def _add_conditioning_args(parser: Parser) -> None:
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
        type=number(_TAKES),
        default=1,
        help="generate N clips of each prompt, with a seed for each (default: 1)",
    )
    add(
        "--melody",
        metavar="FILE",
        type=Path,
        help="follow the melody in this audio or MIDI file (melody models)",
    )
    add(
        "--melody-separation",
        choices=MELODY_SEPARATIONS,
        help="whether to remove drums and bass from the melody's file first. on: yes; off: no, for a voice "
        "or an instrument alone, which this may damage; auto: as audiocraft, which always does, so today the "
        "same as on (default: auto)",
    )
    add("--style", metavar="FILE", type=Path, help="play in the style of this audio file (the style model)")
    add(
        "--style-coef",
        metavar="C",
        type=number(CFG_COEF),
        help="how much more the prompt counts than the style; 5 is a good try (default: as much)",
    )
    add(
        "--continue",
        dest="source",
        metavar="FILE",
        type=Path,
        help="continue this audio file; the result starts with it, unchanged",
    )
    add(
        "--prompt-seconds",
        metavar="SEC",
        type=number(SECONDS),
        help=f"how much of the end of that file the model continues (default: {DEFAULT_PROMPT_SECONDS:g})",
    )
    add_control(add)
    add_note_options(add, number)
    add_tempo_options(add, number)
    add_loop_options(add, number)
    add_edit_options(add, number)


def _add_output(parser: Parser, program: CommandDefaults) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "-o",
        "--output",
        metavar="FILE",
        type=_path_with_example(f"{program.output_name}.wav"),
        help="WAV, FLAC, MP3 or Ogg file, replaced if it exists; several clips are numbered; - streams WAV "
        f"to standard output (default: ./{program.output_name}.wav, or the first free one of "
        f"{program.output_name}-2.wav, ...)",
    )
    add(
        "-d",
        "--duration",
        metavar="SEC",
        type=number(DURATION),
        help=f"seconds to generate (default: {program.duration:g})",
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
        choices=NORMALIZATIONS,
        default="none",
        help="bring to a level: none (but never beyond full scale), the peak to -1 dB, or the loudness to "
        "--lufs (default: none)",
    )
    add(
        "--lufs",
        metavar="N",
        type=number(LUFS),
        help=f"the loudness of --normalize loudness, in LUFS (default: {DEFAULT_LUFS:g})",
    )
    add(
        "--fade-out",
        metavar="SEC",
        type=number(SECONDS),
        help="fade out the last SEC seconds",
    )
    add(
        "--ending",
        choices=ENDINGS,
        help="cut: where the music stops; fade: fade out the last 2 s, or those of --fade-out; natural: fade "
        "out from a pause or a bar line in the last seconds on, so up to 2 s shorter (default: cut)",
    )
    add(
        "--no-tags",
        dest="tags",
        action="store_false",
        help="leave the prompt, the names of files and all else about how it was generated out of the file",
    )
    add("--stems", action="store_true", help="also write drums, bass, other and vocals, each into a file")
    add(
        "--plot",
        metavar="FILE",
        type=_png,
        help="also plot waveform and mel spectrogram into this PNG file (needs the extra 'plot')",
    )
    add("--play", action="store_true", help="play it while it is generated (needs the extra 'play')")
    add("--no-open", dest="open", action="store_false", help="don't open the file when it is done (macOS)")
    add("--info", metavar="FILE", type=Path, help="only show how an audio file was generated")


def _add_sampling(parser: Parser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add(
        "--top-k",
        metavar="K",
        type=number(TOP_K),
        help="sample from the K most likely codes, 0: from all (default: the model's, 250 for the released "
        "ones)",
    )
    add(
        "--top-p",
        metavar="P",
        type=number(TOP_P),
        help="sample from the most likely codes that together have probability P, instead of top-k; 0: off "
        "(default: the model's, 0 for the released ones)",
    )
    add(
        "--temperature",
        metavar="T",
        type=number(TEMPERATURE),
        help="above 1 more random, below 1 less, 0: always the most likely code (default: the model's, 1.0 "
        "for the released ones)",
    )
    add(
        "--cfg-coef",
        metavar="C",
        type=number(CFG_COEF),
        help="how closely to follow the prompt (default: the model's, 3.0 for the released ones)",
    )
    add_masked_options(add, number(CFG_COEF))
    add(
        "--seed",
        metavar="N",
        type=number(SEED),
        help="the same seed generates the same music again; several clips have consecutive seeds (default: a "
        "random one, shown at the end)",
    )


def number(allowed: NumberRange) -> Callable[[str], float]:
    """The type of an option with such a number: argparse puts the option's name before the message."""

    def convert(text: str) -> float:
        try:
            value = allowed.kind(text)
            allowed.validate("", value)
        except ValueError:  # a UsageError is one too
            raise argparse.ArgumentTypeError(f"must be {allowed.expected}, not {text!r}") from None
        return value

    return convert


def _path_with_example(example: str) -> Callable[[str], Path]:
    """The type of an option with a file to write, called `example` for example."""

    def convert(text: str) -> Path:
        path = Path(text)
        if not path.name:
            hint = f"; give one in it, such as {path.joinpath(example)}" if text else ""
            raise argparse.ArgumentTypeError(f"must be the name of a file, not {text!r}{hint}")
        # A folder with the name of a file is found with all else that can't be written.
        if path.suffix[1:].lower() not in BIT_DEPTHS and path != STDOUT and os.path.isdir(path):
            raise argparse.ArgumentTypeError(
                f"{text} is a folder; give the name of a file in it, such as {path / example}"
            )
        return path

    return convert


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a file name that ends in .png, not {text!r}")
    return path
