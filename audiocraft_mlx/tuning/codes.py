"""Audio files → crops → codes, and captions → T5's hidden states: once, and then from the cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.level import without_cancellation
from audiocraft_mlx.audio.read import read_pieces
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.checkpoints.demucs import ENV_VAR, HTDEMUCS_FILE, load_htdemucs
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import read_error
from audiocraft_mlx.networks.encodec import InterleavedStereoCodec
from audiocraft_mlx.tuning.cache import Arrays, Cache, cache_key, network_digest
from audiocraft_mlx.tuning.dataset import (
    MIN_SECONDS,
    Dataset,
    Skipped,
    TrainingFile,
    counted,
    describe_skipped,
    relative_name,
)
from audiocraft_mlx.tuning.fingerprints import sampled_digest
from audiocraft_mlx.validation import TRAINED_TOKENS, validate_number

if TYPE_CHECKING:
    from audiocraft_mlx.models.musicgen import MusicGen
    from audiocraft_mlx.networks.htdemucs import HTDemucs

OnProgress = Callable[[int, int], None]
"""Gets the seconds of audio that are encoded, and those of all files."""
# -60 dB: below it is the noise of a recording, and what is left of a voice that was taken out.
_SILENCE_PEAK = 1e-3
_VOCALS = "vocals"


@dataclass(frozen=True, eq=False)
class Example:
    """A crop of a file."""

    codes: np.ndarray
    """int16 `[K, T]`."""
    text: int | None
    """Which of the texts; None for none."""
    source: str
    """Its file, and where it begins there, for messages."""


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    texts: tuple[np.ndarray, ...]
    """T5's hidden states of each caption, before the projection to the LM: float32 `[L, t5_dim]`."""
    skipped: tuple[Skipped, ...] = ()
    """Files that have turned out not to be usable."""
    silent_crops: int = 0
    """Left out of files that are used."""
    duplicate_crops: int = 0
    """Left out of validation: their codes are those of a crop to train on."""
    long_captions: int = 0
    """Cut after `TRAINED_TOKENS` tokens."""
    encoded_files: int = 0
    """That weren't in the cache."""
    folder: Path = Path()


@dataclass(frozen=True, eq=False)
class _Crop:
    codes: np.ndarray
    index: int
    """How many crops of the file are before it, silent ones too."""


@dataclass(frozen=True)
class _EncodedFile:
    crops: tuple[_Crop, ...]
    silent: int


def encode_dataset(
    dataset: Dataset,
    model: MusicGen,
    cache: Path,
    crop_seconds: float,
    drop_vocals: bool = False,
    on_progress: OnProgress | None = None,
) -> EncodedDataset:
    """Codes and texts of `dataset`, from the folder `cache` where they are there, else made and kept there.

    A file is cut into crops one behind the other; what is left at its end is one more, if it is as long as
    `MIN_SECONDS`. A file that can't be read to its end is left out, and isn't an error.

    Args:
        crop_seconds: rounded down to whole frames.
        drop_vocals: take them out with HTDemucs, crop by crop.

    Raises:
        UsageError: `crop_seconds` is out of range, or no file is left to train on.
        CheckpointError, DownloadError: HTDemucs can't be loaded, or the tokenizer fails.
        OutputError: the cache can't be written.
    """
    validate_number(
        "crop_seconds",
        crop_seconds,
        f"from {MIN_SECONDS:g} to {model.max_duration:g} s, which the model was trained with",
        lambda seconds: MIN_SECONDS <= seconds <= model.max_duration,
    )
    store = Cache(cache)
    encoder = _Encoder(model, int(crop_seconds * model.frame_rate), drop_vocals)
    progress = _Progress(dataset.files, on_progress)
    used: list[tuple[TrainingFile, _EncodedFile]] = []
    skipped: list[Skipped] = []
    encoded_files = 0
    for file in dataset.files:
        progress.begin(file)
        try:
            key = encoder.key(file.path)
            encoded = store.read("codes", key, encoder.parse)
            if encoded is None:
                encoded = encoder.encode(file.path, progress.advance)
                store.write("codes", key, encoder.arrays(encoded))
                encoded_files += 1
        except UsageError as error:
            skipped.append(Skipped(file.path, "damaged", str(error)))
            continue
        if encoded.crops:
            used.append((file, encoded))
        else:
            reason = "silent" if encoded.silent else f"shorter than {MIN_SECONDS:g} s"
            skipped.append(Skipped(file.path, reason))
    progress.finish()
    captions = list(dict.fromkeys(file.caption for file, _ in used if file.caption is not None))
    texts, long_captions = _encode_texts(captions, model, store)
    text_of = {caption: index for index, caption in enumerate(captions)}
    seconds = encoder.crop_frames / model.frame_rate

    def examples(split: Literal["train", "validation"]) -> Iterator[Example]:
        for file, encoded in used:
            if file.split == split:
                text = None if file.caption is None else text_of[file.caption]
                for crop in encoded.crops:
                    source = relative_name(file.path, dataset.folder)
                    yield Example(crop.codes, text, f"{source}, {crop.index * seconds:g} s")

    train, validation = tuple(examples("train")), tuple(examples("validation"))
    if not train:
        reasons = "; ".join(describe_skipped([*dataset.skipped, *skipped], dataset.folder))
        raise UsageError(f"no audio to train on is left{': ' if reasons else ''}{reasons}")
    # The same audio in another format, for example: equal codes are heard in training.
    trained = {example.codes.tobytes() for example in train}
    unheard = tuple(example for example in validation if example.codes.tobytes() not in trained)
    return EncodedDataset(
        train,
        unheard,
        tuple(texts),
        tuple(skipped),
        sum(encoded.silent for _, encoded in used),
        len(validation) - len(unheard),
        long_captions,
        encoded_files,
        dataset.folder,
    )


def describe_encoded(encoded: EncodedDataset) -> list[str]:
    """What there is, and what was left out and why, in lines for people."""
    lines = [
        f"{counted(len(encoded.train), 'crop')} to train, {len(encoded.validation)} to validate;"
        f" {counted(len(encoded.texts), 'text')}"
    ]
    if encoded.silent_crops:
        lines.append(f"left out, silent: {counted(encoded.silent_crops, 'crop')}")
    if encoded.duplicate_crops:
        lines.append(
            "left out of validation, the same audio as in training:"
            f" {counted(encoded.duplicate_crops, 'crop')}"
        )
    if encoded.long_captions:
        lines.append(
            f"cut after {TRAINED_TOKENS} tokens, the most that the text encoder was trained with:"
            f" {counted(encoded.long_captions, 'caption')}"
        )
    return lines + describe_skipped(encoded.skipped, encoded.folder)


class _Encoder:
    """The codec of `model`, and HTDemucs if vocals are dropped, for crops of `crop_frames` frames."""

    def __init__(self, model: MusicGen, crop_frames: int, drop_vocals: bool) -> None:
        self.crop_frames = crop_frames
        self._codec = model.compression_model
        self._hop = round(model.sample_rate / model.frame_rate)
        self._min_frames = math.floor(MIN_SECONDS * model.frame_rate)
        self._drop_vocals = drop_vocals
        self._separator: HTDemucs | None = None
        codec = self._codec
        if codec.cardinality > np.iinfo(np.int16).max + 1:
            raise UsageError(f"{model.name} has {codec.cardinality} codes, more than training can store")
        mono = codec.mono if isinstance(codec, InterleavedStereoCodec) else codec
        self._key = (
            network_digest(mono.encoder, mono.quantizer),
            codec.channels,
            codec.num_codebooks,
            crop_frames,
            os.environ.get(ENV_VAR, HTDEMUCS_FILE) if drop_vocals else "",
        )

    def key(self, path: Path) -> str:
        """What the codes of a file depend on; where it is isn't among it. Raises `UsageError`."""
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError as error:
            raise read_error(path, error) from error
        return cache_key(*self._key, changed, sampled_digest(path))

    def encode(self, path: Path, on_crop: Callable[[float], None]) -> _EncodedFile:
        """`on_crop` gets the seconds of the file that are done. Raises `UsageError`, also in its midst."""
        rate = self._codec.sample_rate
        crops: list[_Crop] = []
        silent = 0
        seconds = self.crop_frames * self._hop / rate
        for index, piece in enumerate(read_pieces(path, seconds)):
            audio = self._prepare(piece.audio, piece.rate)
            frames = min(audio.shape[1] // self._hop, self.crop_frames)
            if frames < self._min_frames:
                continue
            if np.abs(audio).max() < _SILENCE_PEAK:
                silent += 1
            else:
                whole = np.ascontiguousarray(audio[None, :, : frames * self._hop])
                codes = self._codec.encode(mx.array(whole))[0]
                crops.append(_Crop(np.asarray(codes).astype(np.int16), index))
            on_crop((index + 1) * seconds)
        return _EncodedFile(tuple(crops), silent)

    def _prepare(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Audio float32 `[C, T]` at `rate` as the codec takes it, without vocals if they are dropped."""
        if self._drop_vocals:
            if self._separator is None:
                self._separator = load_htdemucs()
            network = self._separator
            mix = np.ascontiguousarray(convert_audio(audio, rate, network.sample_rate, network.channels))
            if not mix.shape[1]:
                return np.zeros((self._codec.channels, 0), np.float32)
            stems = np.asarray(network.separate(mx.array(mix[None]))[0])
            audio = sum(stem for name, stem in zip(network.sources, stems, strict=True) if name != _VOCALS)
            rate = network.sample_rate
        if self._codec.channels == 1:
            audio = without_cancellation(audio)
        return convert_audio(audio, rate, self._codec.sample_rate, self._codec.channels)

    def arrays(self, encoded: _EncodedFile) -> Arrays:
        crops = [crop.codes for crop in encoded.crops]
        empty = np.zeros((self._codec.num_codebooks, 0), np.int16)
        return {
            "codes": np.concatenate([empty, *crops], axis=1),
            "frames": np.array([codes.shape[1] for codes in crops], np.int64),
            "index": np.array([crop.index for crop in encoded.crops], np.int64),
            "silent": np.array(encoded.silent, np.int64),
        }

    def parse(self, arrays: Arrays) -> _EncodedFile:
        """The inverse of `arrays`. Raises `ValueError` or `KeyError` for other arrays."""
        codes, frames, index, silent = (arrays[name] for name in ("codes", "frames", "index", "silent"))
        if (
            codes.dtype != np.int16
            or codes.shape != (self._codec.num_codebooks, frames.sum())
            or frames.ndim != 1
            or index.shape != frames.shape
            or not all(self._min_frames <= count <= self.crop_frames for count in frames)
            or codes.min(initial=0) < 0
            or codes.max(initial=0) >= self._codec.cardinality
        ):
            raise ValueError("not the codes of a file")
        ends = np.cumsum(frames)
        return _EncodedFile(
            tuple(
                _Crop(codes[:, end - count : end], int(place))
                for end, count, place in zip(ends, frames, index, strict=True)
            ),
            int(silent),
        )


def _encode_texts(captions: Sequence[str], model: MusicGen, store: Cache) -> tuple[list[np.ndarray], int]:
    """T5's states of each caption, and how many captions were cut.

    Each is encoded alone, so that its states don't depend on the others.
    """
    conditioner = model.text_conditioner
    encoder = network_digest(conditioner.t5)
    dim = conditioner.t5.config.dim
    texts, long = [], 0

    def parse(arrays: Arrays) -> np.ndarray:
        states = arrays["states"]
        if states.dtype != np.float32 or states.ndim != 2 or not len(states) or states.shape[1] != dim:
            raise ValueError("not the states of a text")
        return states

    for caption in captions:
        ids = conditioner.token_ids([caption])[0]
        key = cache_key(encoder, *ids)
        states = store.read("text", key, parse)
        if states is None:
            states = np.array(conditioner.unprojected_states(ids))
            store.write("text", key, {"states": states})
        texts.append(states)
        long += len(ids) > TRAINED_TOKENS
    return texts, long


class _Progress:
    """Seconds of audio done, of all files; a file counts as long as its header says."""

    def __init__(self, files: Sequence[TrainingFile], on_progress: OnProgress | None) -> None:
        self._total = sum(file.duration for file in files)
        self._on_progress = on_progress
        self._before = self._duration = 0.0

    def begin(self, file: TrainingFile) -> None:
        self._before += self._duration
        self._duration = file.duration
        self.advance(0)

    def advance(self, seconds: float) -> None:
        if self._on_progress is not None:
            done = self._before + min(seconds, self._duration)
            self._on_progress(round(done), round(self._total))

    def finish(self) -> None:
        self.advance(self._duration)
