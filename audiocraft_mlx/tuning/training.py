"""A training in its folder: steps, evaluations, checkpoints, clips and what it leaves, as events."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.write import write_wav
from audiocraft_mlx.checkpoints.mlx_format import save_model_into
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.files import lock_folder, remove_stale_parts, write_error, write_text
from audiocraft_mlx.tuning.card import CURVES_FILE, DataSummary, training_card
from audiocraft_mlx.tuning.checkpoint import (
    STATE_FILE,
    Identity,
    list_checkpoints,
    load_weights,
    read_state,
    save_checkpoint,
    write_state,
    write_weights,
)
from audiocraft_mlx.tuning.codes import EncodedDataset
from audiocraft_mlx.tuning.curves import save_curves
from audiocraft_mlx.tuning.history import History
from audiocraft_mlx.tuning.loop import Evaluation, Step, Trainer
from audiocraft_mlx.tuning.options import TrainingOptions
from audiocraft_mlx.tuning.trainable import Trainable

CACHE_FOLDER, SAMPLES_FOLDER = "cache", "samples"
SAMPLE_SECONDS = 10.0
"""Of a clip, at most."""


@dataclass(frozen=True)
class SamplePrompt:
    """What the clips while it trains are made of: the same text, seed and length each time."""

    text: str | None
    seed: int
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint."""

    step: int
    path: Path


@dataclass(frozen=True)
class Sampled:
    """A clip."""

    step: int
    path: Path


@dataclass(frozen=True)
class Interrupted:
    """It was told to stop. `step` 0: before the first step, so that nothing is to be saved."""

    step: int


@dataclass(frozen=True)
class Finished:
    """What was trained is in `folder`.

    Attributes:
        has_curves: there was matplotlib to draw them.
        model: what the adapter is used with; None for a model by itself, or if that isn't known: the one that
            a quantized model was made from.
    """

    folder: Path
    has_curves: bool
    model: str | None


Event = Step | Evaluation | Saved | Sampled | Interrupted | Finished


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure, before anything is loaded, that a training can begin or go on in `folder`.

    Only what an earlier call has encoded may be in it.

    Raises:
        UsageError: there is no training to resume, or there is one, or something else.
        OutputError: the folder can't be read, or is none.
    """
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise write_error(folder, error) from error
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another name for the folder")
    if not folder.absolute().parent.is_dir():
        raise OutputError(
            f"{folder} can't be written: there is no folder {folder.absolute().parent}; create it"
        )
    has_checkpoint = bool(list_checkpoints(folder)) if names else False
    is_complete = STATE_FILE in names
    if resume:
        if is_complete:
            raise UsageError(
                f"--resume: the training in {folder} is complete; use it, or choose another --output"
            )
        if not has_checkpoint:
            raise UsageError(f"--resume: {folder} has no checkpoint of a training; leave --resume out")
        return
    if has_checkpoint or is_complete:
        hint = "choose another --output" if is_complete else "go on with --resume, or choose another --output"
        raise UsageError(f"{folder} has a training in it; {hint}")
    others = [
        name for name in names if name not in (CACHE_FOLDER, SAMPLES_FOLDER) and not name.startswith(".")
    ]
    if others:
        raise UsageError(f"{folder} has other things in it ({others[0]}); choose another --output")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """`folder`, made if there is none, is that of one training at a time.

    Raises `UsageError` if another one uses it, `OutputError` if it can't be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        descriptor = lock_folder(folder)
    except BlockingIOError:
        raise UsageError(f"another training uses {folder}; choose another --output, or wait for it") from None
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # if nothing came into it


class Training:
    """A training in `folder`; `run` is what it does."""

    def __init__(
        self,
        folder: Path,
        trainable: Trainable,
        options: TrainingOptions,
        encoded: EncodedDataset,
        identity: Identity,
        data: DataSummary,
        sample: SamplePrompt,
    ) -> None:
        """`identity` and `data`: for `training.json` and the card."""
        self.folder, self.options = folder, options
        self.history = History()
        self._trainable, self._identity, self._data, self._sample = trainable, identity, data, sample
        self.has_validation = bool(encoded.validation)
        self._stopping = False
        self._saved = 0
        self.trainer = Trainer(
            trainable.network,
            options,
            encoded.train,
            encoded.validation,
            encoded.texts,
            trainable.bundle.text_conditioner.t5.config.dim,
        )

    def resume(self) -> int:
        """Go on from the last checkpoint in the folder; after how many steps that is.

        Raises:
            UsageError: options, model or data aren't those that it began with.
            CheckpointError: the checkpoint isn't whole.
        """
        remove_stale_parts(self.folder)  # of a process that was killed
        last = list_checkpoints(self.folder)[-1]
        saved = read_state(last)
        self._identity.require_same(saved.identity, self.folder)
        optimizer = load_weights(last, self._trainable, self.options)
        self.trainer.restore(saved.step, {}, optimizer)
        self.history = saved.history
        self._saved = saved.step
        return saved.step

    def stop(self) -> None:
        """Let `run` end after the step that it computes, with a checkpoint."""
        self._stopping = True

    def run(self) -> Iterator[Event]:
        """The steps that are left, and what comes between and after them.

        Raises:
            MusicGenError: the training diverged.
            OutputError: something can't be written.
        """
        options, trainer = self.options, self.trainer
        while True:
            step = trainer.step
            ended = step == options.iters
            if self._stopping and not ended:
                if step > self._saved:
                    yield self._save()
                yield Interrupted(step)
                return
            # Also in a training that goes on, where it was stopped before.
            if self._is_evaluation_due(step):
                yield self._add(trainer.evaluate())
                mx.clear_cache()
            if self._is_sample_due(step):
                yield self._make_sample()
            if ended:
                break
            if step > self._saved and _is_due(step, options.save_every):
                yield self._save()
            if not self._stopping:
                yield self._add(trainer.train_step())
        yield self._finish()

    def _is_evaluation_due(self, step: int) -> bool:
        if not self.has_validation or self.history.has_evaluation(step):
            return False
        return step in (0, self.options.iters) or _is_due(step, self.options.steps_per_eval)

    def _is_sample_due(self, step: int) -> bool:
        every = self.options.sample_every
        if step == self.options.iters:
            return bool(every)
        return step > self._saved and _is_due(step, every)

    def _add(self, event: Step | Evaluation) -> Step | Evaluation:
        self.history.add(event)
        return event

    def _save(self) -> Saved:
        trainer = self.trainer
        path = save_checkpoint(
            self.folder,
            trainer.step,
            self._trainable,
            self.options,
            trainer.state(),
            self._identity,
            self.history,
        )
        self._saved = trainer.step
        return Saved(trainer.step, path)

    def _make_sample(self) -> Sampled:
        model, sample = self._trainable.model, self._sample
        self._trainable.network.eval()
        model.set_generation_params(duration=sample.seconds, seed=sample.seed)
        audio = np.array(model.generate([sample.text])[0])
        mx.clear_cache()
        folder = self.folder / SAMPLES_FOLDER
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        path = folder / f"step-{self.trainer.step}.wav"
        write_wav(path, audio, model.sample_rate)
        return Sampled(self.trainer.step, path)

    def _finish(self) -> Finished:
        trainable, options, name = self._trainable, self.options, self.folder.resolve().name
        has_curves = find_spec("matplotlib") is not None
        if has_curves:
            save_curves(self.folder / CURVES_FILE, self.history, name)
        is_full = options.lora is None
        if is_full:
            # Its card would say that the weights are the model's.
            bundle = replace(trainable.bundle, weights_file=f"{name}/lm.safetensors")
            save_model_into(bundle, self.folder, mx.float16)
        else:
            write_weights(self.folder, trainable, options)
        card = training_card(
            name,
            trainable.base_model,
            is_full,
            self._data,
            self._identity.options,
            self.history,
            has_curves,
            self._sample.text,
            trainable.bits,
        )
        write_text(self.folder / "README.md", card)
        # Last: it says that the training is complete.
        write_state(self.folder, self.trainer.step, self._identity, self.history)
        is_known = trainable.bits is None or trainable.bundle.unchanged_repo is not None
        return Finished(self.folder, has_curves, trainable.base_model if is_known and not is_full else None)


def sample_prompt(
    text: str | None, captions: Sequence[str | None], seed: int, crop_seconds: float
) -> SamplePrompt:
    """`text`, or if that is None the first of `captions`."""
    if text is None:
        text = next((caption for caption in captions if caption), None)
    return SamplePrompt(text, seed, min(crop_seconds, SAMPLE_SECONDS))


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
