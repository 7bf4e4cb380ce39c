"""The options of the commands that generate clips, turned into values.

Nothing heavy is imported here: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_mlx.audio.formats import BIT_DEPTHS, WAV, AudioFormat, choose_format
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import SHORT_NAMES, released_as_magnet, released_condition_types
from audiocraft_mlx.cli.cluster_options import add_cluster_options, check_cluster_options
from audiocraft_mlx.cli.common import Parser
from audiocraft_mlx.cli.control import add_control
from audiocraft_mlx.cli.edit_options import add_edit_options, check_edit_options
from audiocraft_mlx.cli.list_options import add_list_options, add_prompts, check_list_options
from audiocraft_mlx.cli.loop_options import add_loop_options, check_loop_options
from audiocraft_mlx.cli.masked_options import add_masked_options
from audiocraft_mlx.cli.note_options import add_note_options
from audiocraft_mlx.cli.tempo_options import add_tempo_options
from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.clips.metadata import GenerationMetadata, describe_request
from audiocraft_mlx.clips.prompt_files import TABLES
from audiocraft_mlx.clips.prompt_lines import (
    DEFAULT_NAMES,
    MODEL_NAMES,
    TAKES,
    LineDefaults,
    ListedClip,
    clips_of_line,
    describe_in_line,
)
from audiocraft_mlx.clips.prompt_lists import LineErrors, ListModel, read_clips
from audiocraft_mlx.clips.requests import (
    DEFAULT_LUFS,
    DEFAULT_PROMPT_SECONDS,
    NORMALIZATIONS,
    ClipRequest,
    FieldError,
    ModelOptions,
    draw_seed,
)
from audiocraft_mlx.clips.shards import Shard
from audiocraft_mlx.cluster.address import ClusterAddress
from audiocraft_mlx.errors import UsageError, UsageErrors
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
_DESTINATIONS = {"continue": "source"}
"""Values of lines whose options argparse keeps under another name."""


@dataclass(frozen=True)
class ShowInfo:
    """`--info`."""

    path: Path


@dataclass(frozen=True)
class GenerateClips:
    """What one call of a command is to do."""

    program: CommandDefaults
    model: ModelOptions
    clips: tuple[ListedClip, ...]
    """The takes of a prompt side by side."""
    audio_format: str
    """Of a file whose format no line says."""
    path: Path | None
    """`STDOUT` for standard output, None for the default name."""
    plot: Path | None
    play: bool
    open: bool
    tags: bool = True
    """Whether the files hold how they were generated."""
    prompts_file: Path | None = None
    manifest: Path | None = None
    skip_existing: bool = False
    shard: Shard | None = None
    cluster: ClusterAddress | None = None
    output_on_worker: Path | None = None
    """The folder into which the workers of the cluster write; None: this process writes."""

    @property
    def streaming(self) -> bool:
        return self.path == STDOUT

    @property
    def requests(self) -> tuple[ClipRequest, ...]:
        """Of each clip."""
        return tuple(clip.request for clip in self.clips)

    def describe(self, clip: ListedClip) -> GenerationMetadata:
        """How it is made."""
        return describe_request(clip.request, clip.output, self.model, self.program)

    def check_clips(
        self, check: Callable[[ListedClip], None], clips: Sequence[ListedClip] | None = None
    ) -> None:
        """Call `check` with each of `clips`; None: with all.

        Raises `UsageErrors`, with the numbers of the lines at fault; for a clip without one, and for options,
        the first `UsageError`.
        """
        errors = LineErrors(self.prompts_file)
        wrong: int | None = None
        for clip in self.clips if clips is None else clips:
            if wrong is not None and clip.line == wrong:
                continue  # another take
            try:
                check(clip)
            except FieldError as error:
                if not _is_table(self.prompts_file) or clip.line is None:
                    raise UsageError(error.describe(option_name)) from None
                errors.add(clip.line, describe_in_line(error))
            except UsageError as error:
                errors.add(clip.line, str(error))
            else:
                continue
            wrong = clip.line
        errors.raise_any()

    def require_supported(self, condition_types: frozenset[str], fills_masks: bool | None) -> None:
        """Raise `UsageError` if the model can't use an option; see `ClipRequest.require_supported`."""

        def check(clip: ListedClip) -> None:
            clip.request.require_supported(condition_types, self.model.name, fills_masks)

        self.check_clips(check)
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
        condition_types = released_condition_types(command.model.name)
        if condition_types is not None:
            command.require_supported(condition_types, released_as_magnet(command.model.name))
    except UsageErrors:
        raise
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
    listed = _is_table(arguments.prompts_file)
    if not listed:  # else they are defaults, and lines may say what is missing
        check_edit_options(arguments)
        check_loop_options(arguments)
    _check_stdout(arguments)
    audio_format = _format(arguments, program).name
    clips, model = _list_clips(arguments, program, audio_format)
    if len(clips) > 1 and arguments.output == STDOUT:
        raise UsageError(f"standard output holds one clip, not {len(clips)}; give a file to --output")
    command = GenerateClips(
        program,
        model,
        tuple(clips),
        audio_format,
        arguments.output,
        arguments.plot,
        arguments.play,
        arguments.open,
        arguments.tags,
        arguments.prompts_file,
        arguments.manifest,
        arguments.skip_existing,
        arguments.shard,
        arguments.cluster,
        arguments.output_on_worker,
    )
    check_cluster_options(
        clips,
        arguments.output,
        arguments.cluster,
        arguments.output_on_worker,
        {
            "--play": arguments.play,
            "--output -": arguments.output == STDOUT,
            "--plot": arguments.plot is not None,
        },
    )
    check_list_options(
        clips,
        arguments.output,
        arguments.prompts_file,
        arguments.manifest,
        arguments.skip_existing,
        arguments.shard,
        arguments.tags,
    )
    if listed:
        command.check_clips(lambda clip: _check_sink(command, clip))
        if arguments.keep_best is not None and not any(clip.request.loop for clip in clips):
            raise UsageError("--keep-best is for loops; it needs --loop, or loop in a line")
    return command


def _is_table(path: Path | None) -> bool:
    """Whether its lines say more than a prompt."""
    return path is not None and path.suffix.lower() in TABLES


def _check_sink(command: GenerateClips, clip: ListedClip) -> None:
    """What `check_edit_options` and `check_loop_options` refuse."""
    if command.play or command.streaming:
        where = "--play" if command.play else "standard output (-o -)"
        if clip.request.loop or clip.request.replace is not None:
            what = "loop" if clip.request.loop else "edit"
            raise UsageError(f"{what} and {where} don't go together; leave one of them out")
    if command.streaming:
        if clip.path is not None or clip.output.audio_format != WAV.name:
            raise UsageError("standard output gets WAV; leave output and format out, or -o -")
        if clip.output.stems:
            raise UsageError("stems are written beside a file; give one to --output")


def _list_clips(
    arguments: argparse.Namespace, program: CommandDefaults, audio_format: str
) -> tuple[list[ListedClip], ModelOptions]:
    """The clips of all prompts, and the model that makes them."""
    seed_is_drawn = arguments.seed is None
    defaults = LineDefaults(
        _defaults(arguments, program),
        audio_format,
        draw_seed() if seed_is_drawn else arguments.seed,
        seed_is_drawn,
        arguments.keep_best,
    )
    arguments.lora = tuple(arguments.lora)
    model = ListModel({name: value for name in MODEL_NAMES if (value := getattr(arguments, name))})
    clips: list[ListedClip] = []
    for prompt in _given_prompts(arguments):
        clips += clips_of_line({"prompt": prompt}, defaults, len(clips))
    if arguments.prompts_file is not None:
        if not clips and not _is_table(arguments.prompts_file):
            clips_of_line({"prompt": "music"}, defaults, 0)  # mistakes in the options
        try:
            clips += read_clips(arguments.prompts_file, defaults, len(clips), model)
        except UsageErrors:
            raise
        except UsageError as error:
            raise UsageError(f"--prompts: {error}") from error
    elif not clips:
        instead = ("melody", "style", "source", "edit", "sections", "chords")
        if not any(getattr(arguments, name) for name in instead):
            raise UsageError("the prompt is missing; say what to play")
        clips += clips_of_line({}, defaults, 0)
    return clips, model.options(program.model)


def _defaults(arguments: argparse.Namespace, program: CommandDefaults) -> dict[str, Any]:
    """What the options say for all clips, by the names of lines."""
    given = {name: getattr(arguments, _DESTINATIONS.get(name, name)) for name in DEFAULT_NAMES}
    given["sections"] = tuple(given["sections"] or ())
    if given["duration"] is None:
        given["duration"] = program.duration
    return {name: value for name, value in given.items() if value is not None}


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


def _given_prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompts)
    if prompts.count("-") > 1:
        raise UsageError("standard input holds one prompt; give '-' once")
    prompts = [_read_prompt() if prompt == "-" else prompt for prompt in prompts]
    return [prompt if prompt.strip() else "" for prompt in prompts]


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
        help=f"a name on the Hugging Face Hub, a short name ({', '.join(short)}), a local folder, a "
        f"training's file (checkpoint.th), or demo, a small model that needs no download (default: {program.model})",
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
    add_prompts(add)
    add(
        "-n",
        "--takes",
        metavar="N",
        type=number(TAKES),
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
    add_list_options(add)
    add_cluster_options(add)
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
