"""`musicgen-mlx-train`: a folder of music with captions → a LoRA adapter, or a fine-tuned model.

Nothing heavy is imported before the arguments are validated: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.checkpoints.model_files import released_condition_types
from audiocraft_mlx.cli.arguments import number
from audiocraft_mlx.cli.common import Parser, print_stderr, print_stdout, run_command
from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.files import expand_home
from audiocraft_mlx.machine import PROGRAM_BYTES, is_out_of_memory, memory_size, require_memory
from audiocraft_mlx.tuning.options import (
    ALL_TARGETS,
    ALPHA,
    FRACTION,
    RANGES,
    RANK,
    TARGETS,
    LoRAConfig,
    TrainingOptions,
)
from audiocraft_mlx.validation import SECONDS, validate_prompt

if TYPE_CHECKING:
    from audiocraft_mlx.models.musicgen import MusicGen
    from audiocraft_mlx.tuning.codes import EncodedDataset
    from audiocraft_mlx.tuning.dataset import Dataset
    from audiocraft_mlx.tuning.estimate import StepEstimate
    from audiocraft_mlx.tuning.training import Training

PROGRAM = "musicgen-mlx-train"
_CROP_SECONDS = 10.0
_LEARNING_RATE, _FULL_LEARNING_RATE = 1e-4, 1e-5
_LORA_OPTIONS = ("rank", "alpha", "dropout", "targets")
_INTERRUPTED = 130


@dataclass(frozen=True)
class TrainCommand:
    """What one call of the command is to do."""

    data: Path
    model: str
    revision: str | None
    output: Path
    options: TrainingOptions
    prompt: str | None
    crop: float | None
    """Seconds; None for the default."""
    drop_vocals: bool
    validation: float
    sample_prompt: str | None
    resume: bool
    dry_run: bool
    words: tuple[str, ...]
    """The arguments as they were given."""

    def resuming(self) -> str:
        """The command that goes on with the training, for a shell."""
        words = self.words if self.resume else (*self.words, "--resume")
        return shlex.join([PROGRAM, *words])


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    return run_command(_train, argv, PROGRAM)


def _train(argv: list[str] | None) -> None:
    command = parse(argv)
    require_memory(PROGRAM_BYTES)  # else the imports below crash

    from audiocraft_mlx.tuning.dataset import describe, read_dataset
    from audiocraft_mlx.tuning.training import check_folder, locked_folder

    # All that can be wrong and is quickly found, before the model is loaded.
    check_folder(command.output, command.resume)
    dataset = read_dataset(
        command.data, command.prompt, command.validation, command.options.seed, command.output
    )
    _print_lines(describe(dataset))
    if not dataset.files:
        raise UsageError(f"{command.data} has no file to train on; the lines above say why")
    with locked_folder(command.output):
        _train_on(dataset, command)


def _train_on(dataset: Dataset, command: TrainCommand) -> None:
    from audiocraft_mlx.tuning.trainable import load_for_training, make_trainable, weights_digest

    options = command.options
    try:
        model, bundle = load_for_training(command.model, command.revision)
        crop = _crop_seconds(command, model)
        digest = weights_digest(bundle)
        trainable = make_trainable(model, bundle, options, command.revision)
        encoded = _encode(command, dataset, model, crop)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MusicGenError(
            "out of memory before the training has begun; close other programs, or give a smaller --model,"
            " or one that is quantized (musicgen-mlx-convert -q 4)"
        ) from error

    from audiocraft_mlx.tuning.card import DataSummary
    from audiocraft_mlx.tuning.checkpoint import Identity, data_identity, options_as_json
    from audiocraft_mlx.tuning.estimate import estimate_step
    from audiocraft_mlx.tuning.training import Training, sample_prompt

    estimate = estimate_step(
        trainable,
        options,
        max(example.codes.shape[1] for example in (*encoded.train, *encoded.validation)),
        max((len(text) for text in encoded.texts), default=1),
        sum(text.nbytes for text in encoded.texts),
    )
    _print_lines(_describe_step(options, encoded, estimate, crop))
    if command.dry_run:
        return
    captions = [file.caption for split in ("validation", "train") for file in dataset.of_split(split)]
    training = Training(
        command.output,
        trainable,
        options,
        encoded,
        Identity(
            options_as_json(
                options,
                model=trainable.base_model,
                prompt=command.prompt,
                crop=crop,
                drop_vocals=command.drop_vocals,
                validation=command.validation,
            ),
            data_identity(encoded),
            digest,
        ),
        DataSummary.of(dataset, encoded),
        sample_prompt(command.sample_prompt, captions, options.seed, crop),
    )
    try:
        require_memory(estimate.step)  # below a limit of `ulimit` MLX would crash
        _run(training, command)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MusicGenError(_out_of_memory(options, crop, estimate)) from error


def _crop_seconds(command: TrainCommand, model: MusicGen) -> float:
    """The length of crops. Raises `UsageError` if the model wasn't trained with such long ones."""
    from audiocraft_mlx.tuning.dataset import MIN_SECONDS

    longest = model.max_duration
    if command.crop is None:
        return min(_CROP_SECONDS, longest)
    if not MIN_SECONDS <= command.crop <= longest:
        raise UsageError(
            f"--crop must be from {MIN_SECONDS:g} to {longest:g} s, which {model.name} was trained with, not"
            f" {command.crop:g}"
        )
    return command.crop


def _encode(command: TrainCommand, dataset: Dataset, model: MusicGen, crop: float) -> EncodedDataset:
    """Encode what isn't in the cache yet, with a bar, and say what there is."""
    from audiocraft_mlx.progress import progress_bar
    from audiocraft_mlx.tuning.codes import describe_encoded, encode_dataset
    from audiocraft_mlx.tuning.training import CACHE_FOLDER

    seconds = sum(file.duration for file in dataset.files)
    try:
        with progress_bar(seconds, label="encoding ") as on_progress:
            encoded = encode_dataset(
                dataset,
                model,
                command.output / CACHE_FOLDER,
                crop,
                command.drop_vocals,
                lambda done, total: on_progress(done, max(total, 1)),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; what is encoded is kept, and the same command goes on"
        ) from None
    _print_lines(describe_encoded(encoded))
    return encoded


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print_stdout(line)


def _describe_step(
    options: TrainingOptions, encoded: EncodedDataset, estimate: StepEstimate, crop: float
) -> list[str]:
    from audiocraft_mlx.tuning.dataset import counted

    lora = options.lora
    how = "all weights" if lora is None else f"LoRA of rank {lora.rank} on {', '.join(lora.targets)}"
    rounds = options.iters * options.batch_size / len(encoded.train)
    rows = min(options.micro_batch, options.batch_size)
    lines = [
        f"to train: {how}: {estimate.trained / 1e6:.2f} million values",
        f"a step: {counted(options.batch_size, 'crop')} of up to {crop:g} s, {rows} at a time,"
        f" {_operations(estimate.flops)}; {options.iters} steps are {rounds:.1f} times all crops",
        f"memory: about {_bytes(estimate.memory)}, {_bytes(estimate.step)} of it for a step"
        f"{'' if options.grad_checkpoint else '; less with --grad-checkpoint'}",
    ]
    if estimate.memory > memory_size():
        lines.append(
            f"this machine has {_bytes(memory_size())}: that may not be enough; {_advice(options, crop)}"
        )
    return lines


def _operations(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e11 else f"{flops / 1e9:.2f} GFLOP"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _advice(options: TrainingOptions, crop: float) -> str:
    """What would take less memory, beginning with what costs least."""
    rows = min(options.micro_batch, options.batch_size)
    ways = []
    if rows > 1:
        ways.append(f"--micro-batch 1 instead of {rows}")
    if not options.grad_checkpoint:
        ways.append("--grad-checkpoint")
    if crop > 5:
        ways.append(f"--crop {crop / 2:g} instead of {crop:g}")
    return f"try {', or '.join(ways)}" if ways else "try a quantized or a smaller model"


def _out_of_memory(options: TrainingOptions, crop: float, estimate: StepEstimate) -> str:
    return (
        f"out of memory: a step takes about {_bytes(estimate.step)}, all of the training"
        f" {_bytes(estimate.memory)}; {_advice(options, crop)}"
    )


def _run(training: Training, command: TrainCommand) -> None:
    from tqdm import tqdm

    from audiocraft_mlx.tuning import training as events
    from audiocraft_mlx.tuning.loop import Evaluation, Step

    options = command.options
    begun = 0
    if command.resume:
        begun = training.resume()
        print_stdout(f"going on after step {begun}")
    recent: list[float] = []
    postfix: dict[str, str] = {}
    with (
        tqdm(
            total=options.iters, initial=begun, unit="step", disable=None, dynamic_ncols=True, desc="training"
        ) as bar,
        _interrupts(training),
    ):

        def say(line: str) -> None:
            with bar.external_write_mode():
                print_stdout(line)

        for event in training.run():
            if isinstance(event, Step):
                recent.append(event.loss)
                postfix["loss"] = f"{sum(recent[-20:]) / len(recent[-20:]):.3f}"
                bar.set_postfix(postfix, refresh=False)
                bar.update(1)
                every = options.steps_per_eval
                if not training.has_validation and every and event.step % every == 0:
                    say(f"step {event.step}: training loss {sum(recent) / len(recent):.3f}")
                    recent.clear()
            elif isinstance(event, Evaluation):
                postfix["validation"] = f"{event.loss:.3f}"
                bar.set_postfix(postfix)
                books = " ".join(f"{loss:.3f}" for loss in event.losses)
                trained = f", training loss {sum(recent) / len(recent):.3f}" if recent else ""
                say(f"step {event.step}: validation loss {event.loss:.3f} (codebooks {books}){trained}")
                recent.clear()
            elif isinstance(event, (events.Saved, events.Sampled)):
                say(f"step {event.step}: wrote {event.path}")
            elif isinstance(event, events.Interrupted):
                bar.close()
                raise KeyboardInterrupt(_interruption(event.step, command))
            elif isinstance(event, events.Finished):
                bar.close()
                _print_end(event, command)


def _interruption(step: int, command: TrainCommand) -> str:
    if not step:
        return "interrupted before the first step; the same command begins again"
    return f"interrupted after step {step}, which is saved; go on with: {command.resuming()}"


def _print_end(event: Any, command: TrainCommand) -> None:
    if not event.has_curves:
        print_stdout("no curves.png: that needs matplotlib: pip install 'musicgen-mlx[plot]'")
    folder = shlex.quote(str(event.folder))
    if command.options.lora is None:
        use = f"-m {folder}"
    elif event.model is None:
        print_stdout(
            f"MODEL is the one that {command.model} was quantized from: an adapter is merged into that"
        )
        use = f"-m MODEL --lora {folder}"
    else:
        use = f"-m {shlex.quote(event.model)} --lora {folder}"
    print_stdout(f'wrote {event.folder}; use it with: musicgen-mlx "your prompt" {use}')


@contextmanager
def _interrupts(training: Training) -> Iterator[None]:
    """Ctrl-C, and what `kill` and a shutdown send, let the training save what it has; again, they end it."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            # At once: what is being computed isn't waited for. A file that is being written isn't there yet.
            os._exit(_INTERRUPTED)
        asked = True
        training.stop()
        print_stderr("\nfinishing this step, then saving; Ctrl-C again ends at once, without")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse(argv: list[str] | None) -> TrainCommand:
    """The arguments as values. Raises `UsageError`."""
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    arguments = parser.parse_args(words)
    given = [name for name in _LORA_OPTIONS if getattr(arguments, name) is not None]
    if arguments.full and given:
        parser.error(f"--full trains all weights, without LoRA; leave --{given[0]} out")
    if arguments.sample_prompt is not None and not arguments.sample_every:
        parser.error("--sample-prompt needs --sample-every N")
    if arguments.resume and arguments.dry_run:
        parser.error("--dry-run trains nothing; leave --resume out")
    if "style" in (released_condition_types(arguments.model) or ()):
        parser.error(f"{arguments.model} is a style model, which can't be trained here")
    for prompt in (arguments.prompt, arguments.sample_prompt):
        if prompt is not None:
            validate_prompt(prompt)
    rate = arguments.learning_rate
    if rate is None:
        rate = _FULL_LEARNING_RATE if arguments.full else _LEARNING_RATE
    values = {name: getattr(arguments, name) for name in RANGES if name != "learning_rate"}
    try:
        options = TrainingOptions(
            lora=None if arguments.full else LoRAConfig(**{name: getattr(arguments, name) for name in given}),
            learning_rate=rate,
            grad_checkpoint=arguments.grad_checkpoint,
            **values,
        )
    except UsageError as error:
        parser.error(str(error))
    return TrainCommand(
        data=arguments.data,
        model=arguments.model,
        revision=arguments.revision,
        output=arguments.output,
        options=options,
        prompt=arguments.prompt,
        crop=arguments.crop,
        drop_vocals=arguments.drop_vocals,
        validation=arguments.validation,
        sample_prompt=arguments.sample_prompt,
        resume=arguments.resume,
        dry_run=arguments.dry_run,
        words=tuple(words),
    )


def make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Train a LoRA adapter, or all weights, of a MusicGen model on a folder of music with"
        " captions. Beside each file stands its text (song.txt for song.wav), or a table has them:"
        " docs/TUNING.md.",
    )
    _add_model(parser)
    _add_data(parser)
    _add_what(parser)
    _add_how(parser)
    _add_while(parser)
    return parser


def _add_model(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", type=_path, help="the folder with the music")
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        default=MUSICGEN.model,
        help="the model to begin with: a name on the Hugging Face Hub, a short name (small, melody, ...), a"
        " folder, also one that musicgen-mlx-convert has quantized, or demo (default: %(default)s)",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub (default: main)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=_path,
        required=True,
        help="where the adapter, checkpoints, clips and the encoded music go",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only encode the music and say what there is, and what a step would take",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in the output folder, with the same options",
    )


def _add_data(parser: Parser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--prompt", metavar="TEXT", help='the caption of all files that have none; "" trains them without')
    add(
        "--crop",
        metavar="SEC",
        type=number(SECONDS),
        help=f"length of the pieces that files are cut into (default: {_CROP_SECONDS:g}, or the longest that"
        " the model was trained with)",
    )
    add("--drop-vocals", action="store_true", help="take voices out of the music first (HTDemucs)")
    add(
        "--validation",
        metavar="FRACTION",
        type=number(FRACTION),
        default=0.1,
        help="how many of the files are held out, if the data don't say which (default: %(default)g)",
    )


def _add_what(parser: Parser) -> None:
    add = parser.add_argument_group("what is trained").add_argument
    defaults = LoRAConfig()
    add(
        "--rank",
        metavar="N",
        type=number(RANK),
        help=f"the rank of LoRA's matrices (default: {defaults.rank})",
    )
    add(
        "--alpha",
        metavar="X",
        type=number(ALPHA),
        help=f"they are scaled by alpha / rank (default: {defaults.alpha:g})",
    )
    add(
        "--dropout",
        metavar="P",
        type=number(FRACTION),
        help=f"the probability of dropout before them (default: {defaults.dropout:g})",
    )
    add(
        "--targets",
        metavar="NAMES",
        type=_names,
        help=f"the modules that they are beside, of {', '.join(ALL_TARGETS)}, between commas (default:"
        f" {','.join(TARGETS)})",
    )
    add(
        "--full",
        action="store_true",
        help="train all weights of the language model instead, and write a model for -m",
    )


def _add_how(parser: Parser) -> None:
    add = parser.add_argument_group("how").add_argument
    defaults = TrainingOptions()

    def add_number(name: str, metavar: str, text: str) -> None:
        default = getattr(defaults, name)
        shown = "%(default)g" if isinstance(default, float) else "%(default)s"
        add(
            f"--{name.replace('_', '-')}",
            metavar=metavar,
            type=number(RANGES[name]),
            default=default,
            help=f"{text} (default: {shown})",
        )

    add_number("iters", "N", "steps of the optimizer")
    add_number("batch_size", "N", "crops of a step")
    add_number("micro_batch", "N", "of these, how many pass through the model together: faster, more memory")
    add(
        "--learning-rate",
        metavar="X",
        type=number(RANGES["learning_rate"]),
        help="at its highest; it then falls to zero as a cosine (default: 1e-4, with --full 1e-5)",
    )
    add_number("warmup", "N", "steps in which the learning rate rises")
    add_number("weight_decay", "X", "AdamW's")
    add_number("max_grad_norm", "X", "longer gradients are scaled down to this length")
    add_number("condition_dropout", "P", "how often a crop goes without its caption, for guidance to work")
    add("--grad-checkpoint", action="store_true", help="much less memory for a third more time")
    add_number("seed", "N", "of the order, the matrices, dropout and the files that are held out")


def _add_while(parser: Parser) -> None:
    add = parser.add_argument_group("while it runs").add_argument
    defaults = TrainingOptions()
    for name, what in (
        ("steps_per_eval", "compute the validation loss every N steps, 0: only at the beginning and the end"),
        ("save_every", "write a checkpoint every N steps, of which the last three are kept; 0: none"),
        ("sample_every", "make a clip of the same prompt and seed every N steps; 0: none"),
    ):
        add(
            f"--{name.replace('_', '-')}",
            metavar="N",
            type=number(RANGES[name]),
            default=getattr(defaults, name),
            help=f"{what} (default: %(default)s)",
        )
    add("--sample-prompt", metavar="TEXT", help="its prompt (default: the first caption of the data)")


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of a folder")
    return expand_home(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
