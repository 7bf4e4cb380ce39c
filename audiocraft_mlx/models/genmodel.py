"""What MusicGen and AudioGen share: from what they are told to audio. audiocraft's `BaseGenModel`, on MLX."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from audiocraft_mlx.audio.read import require_non_silent
from audiocraft_mlx.audio.resample import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, convert_audio
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.quantization import enable_int8_activations
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.prepend import build_prepended_conditions
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.decoding.windows import Window, generate_windows, plan_windows
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.encodec import CHUNK_FRAMES
from audiocraft_mlx.validation import validate_int, validate_number

if TYPE_CHECKING:
    from typing_extensions import Self

ProgressCallback = Callable[[int, int], None]
GenerationOutput = mx.array | tuple[mx.array, mx.array]
Audio = mx.array | np.ndarray
WavInputs = Audio | Sequence[Audio | None]


@dataclass(frozen=True)
class GenerationInputs:
    """What one generation is about: each row's text and audio float32 `[C, T]`, and what it goes on from."""

    descriptions: Sequence[str | None]
    audios: Sequence[mx.array | None]
    seed: int
    prompt: mx.array | None = None
    """Codes int32 `[B, K, F]`."""


class GenModel:
    """A loaded model with the parameters that it generates with.

    Attributes:
        name: what it was loaded as.
        lm: the code transformer.
        compression_model: the codec; `encode` and `decode` go between audio and codes.
        hears: what it can be told: "text", and "melody" or "style".
        duration: seconds to generate.
        extend_stride: seconds by which the window moves on when `duration` is beyond `max_duration`.
        sampling, guidance, seed: see `set_generation_params`.
    """

    default_name: str
    """What is loaded without a name."""
    default_duration = 15.0
    """Seconds that a new model makes when it isn't told how many."""
    default_extend_stride = 18.0

    def __init__(self, name: str, checkpoint: ModelBundle) -> None:
        self.name = name
        self.lm = checkpoint.lm
        self.compression_model = checkpoint.codec
        self.text_conditioner = checkpoint.text_conditioner
        self.audio_conditioner = checkpoint.audio_conditioner
        self.style_params = checkpoint.style_params
        self._defaults = checkpoint
        self._max_duration = checkpoint.max_duration
        self._progress_callback: ProgressCallback | None = None
        self.set_generation_params(duration=min(self.default_duration, self.max_duration))

    @classmethod
    def get_pretrained(
        cls,
        name: str | None = None,
        revision: str | None = None,
        quantize: int | None = None,
        fast: bool = False,
        cache_bits: int | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: a Hub repository, a short name (`small` … `stereo-melody`, `style`), or a folder with a
                checkpoint in audiocraft's or transformers' format or in that of `musicgen-mlx-convert`.
                Default: `facebook/musicgen-small` (AudioGen: `facebook/audiogen-medium`).
            revision: branch, tag or commit on the Hub.
            quantize: 4 or 8: keep the weights of the linear layers in so many bits.
            fast: calculate a quantized model's layers with 8-bit activations, where the native extension
                and the processor do it (AVX-512 VNNI; docs/QUANTIZATION.md says what it costs).
            cache_bits: 8: keep the keys and values of what was made in 8 bits; long clips are faster then
                where the native extension reads them.

        Raises:
            UsageError: `quantize` or `cache_bits` is another number, the model is quantized already, or
                `fast` is asked of one that isn't.
            CheckpointError: there is no such model, or its files are damaged or not supported.
            DownloadError: the Hub can't be reached, or refuses.
        """
        if cache_bits not in (None, 8):
            raise UsageError(f"cache_bits must be 8 or None, not {cache_bits!r}")
        name = cls.default_name if name is None else name
        checkpoint = load(name, revision, quantize)
        checkpoint.lm.cache_bits = cache_bits
        if fast:
            enable_int8_activations(checkpoint.lm)
        return cls(name, checkpoint)

    @property
    def condition_types(self) -> frozenset[str]:
        if self.audio_conditioner is None:
            return frozenset({"text"})
        return frozenset(
            {"text", "melody" if isinstance(self.audio_conditioner, MelodyConditioner) else "style"}
        )

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return self.compression_model.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second: the steps of the transformer."""
        return self.compression_model.frame_rate

    @property
    def audio_channels(self) -> int:
        return self.compression_model.channels

    @property
    def max_duration(self) -> float:
        """Seconds of one window. May be lowered; the trained length is the most."""
        return self._max_duration

    @max_duration.setter
    def max_duration(self, seconds: float) -> None:
        most = self._defaults.max_duration
        validate_number(
            "max_duration",
            seconds,
            f"between one frame and the trained {most:g} s",
            lambda s: 1 / self.frame_rate <= s <= most,
        )
        self._max_duration = float(seconds)

    @property
    def max_condition_duration(self) -> float:
        """Seconds of a melody or a style that are heard at most: one window behind the end."""
        return max(self.duration, self.max_duration) + self.max_duration + 30

    def set_generation_params(
        self,
        use_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        duration: float | None = None,
        cfg_coef: float | None = None,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool | None = None,
        extend_stride: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Set all parameters of the generations to come. What is left out takes the model's own default.

        Args:
            use_sampling: draw the codes, or (False) take the most likely ones.
            top_k: draw from the so many most likely codes; 0 from all. The released models' default is 250.
            top_p: if > 0, draw from the most likely codes that together have this probability; `top_k` is
                not used then. Default 0.
            temperature: above 1 more surprising, below more predictable; 0 is greedy. Default 1.
            duration: seconds. Default: `max_duration`, 30 for the released models.
            cfg_coef: how strongly the conditions guide; 1 is no guidance. Default 3.
            cfg_coef_beta: how much more the text counts than the melody or style given with it. Default: as
                much. For models that hear melody or style.
            two_step_cfg: run the guided and the unguided branch one after the other. Default: no.
            extend_stride: beyond `max_duration`, seconds by which each window moves on; the rest of it is
                context. Default 18 (AudioGen: 2), or 0.6 of a `max_duration` that is no longer.
            seed: of the first row; row i has `seed + i`. Default: a new one for each generation.

        Raises:
            UsageError: a value is out of its range.
        """
        own, guidance = self._defaults.sampling, self._defaults.guidance
        sampling = SamplingParams(
            use_sampling=own.use_sampling if use_sampling is None else use_sampling,
            top_k=own.top_k if top_k is None else top_k,
            top_p=own.top_p if top_p is None else top_p,
            temperature=own.temperature if temperature is None else temperature,
        )
        guidance = GuidanceParams(
            coef=guidance.coef if cfg_coef is None else cfg_coef,
            two_step=guidance.two_step if two_step_cfg is None else two_step_cfg,
            beta=cfg_coef_beta,
        )
        if cfg_coef_beta is not None and self.audio_conditioner is None:
            raise UsageError(
                f"cfg_coef_beta weighs text against melody or style; {self.name} hears only text: omit it"
            )
        duration = self.max_duration if duration is None else duration
        frame = 1 / self.frame_rate
        validate_number(
            "duration", duration, f"at least one frame, {frame:g} s", lambda d: d * self.frame_rate >= 1
        )
        if extend_stride is None:
            usual = self.default_extend_stride
            extend_stride = usual if self.max_duration > usual else 0.6 * self.max_duration
        validate_number(
            "extend_stride",
            extend_stride,
            f"at least one frame, {frame:g} s, and below max_duration, {self.max_duration:g} s",
            lambda stride: frame <= stride < self.max_duration,
        )
        if seed is not None:
            validate_int("seed", seed, f"a whole number from 0 to {2**32 - 1}", lambda s: 0 <= s < 2**32)
        self.sampling, self.guidance, self.seed = sampling, guidance, seed
        self.duration, self.extend_stride = float(duration), float(extend_stride)

    def set_custom_progress_callback(self, progress_callback: ProgressCallback | None = None) -> None:
        """Have `progress_callback(done, total)` called after each step, in place of the progress bar."""
        self._progress_callback = progress_callback

    def generate(
        self, descriptions: Sequence[str | None], progress: bool = False, return_tokens: bool = False
    ) -> GenerationOutput:
        """Music for each of `descriptions`; None or "" is music about nothing in particular.

        Args:
            descriptions: one prompt for each clip.
            progress: show a progress bar, or call the callback that was set.
            return_tokens: return the codes too.

        Returns:
            Audio float32 `[batch, channels, samples]`, nominally in [-1, 1], of exactly
            `int(duration * frame_rate)` frames; with `return_tokens` also the codes int32
            `[batch, codebooks, frames]`.

        Raises:
            UsageError: `descriptions` is empty or not a list of texts.
        """
        return self._generate(self._prepare_inputs(descriptions), progress, return_tokens)

    def generate_unconditional(
        self, num_samples: int, progress: bool = False, return_tokens: bool = False
    ) -> GenerationOutput:
        """`num_samples` clips about nothing in particular. See `generate`."""
        validate_int("num_samples", num_samples, "a whole number of at least 1", lambda n: n >= 1)
        return self.generate([None] * num_samples, progress, return_tokens)

    def generate_continuation(
        self,
        prompt: Audio,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
    ) -> GenerationOutput:
        """Music that goes on from `prompt`, float `[batch, channels, samples]`, or `[channels, samples]`.

        The result begins with the prompt as the codec hears it, and has `duration` seconds in all. See
        `generate`; `descriptions` has one text for each prompt, None is none at all.

        Raises:
            UsageError: also if the prompt is empty, or as long as `duration`.
        """
        clips = self._clips(prompt, prompt_sample_rate, "the prompt")
        told = self._prepare_inputs([None] * len(clips) if descriptions is None else descriptions)
        return self._generate(replace(told, prompt=self._encoded(clips, told)), progress, return_tokens)

    def stream(
        self,
        descriptions: Sequence[str | None],
        melody_wavs: WavInputs | None = None,
        melody_sample_rate: int | None = None,
        prompt: Audio | None = None,
        prompt_sample_rate: int | None = None,
        chunk_seconds: float = 1.0,
        progress: bool = False,
    ) -> Iterator[mx.array]:
        """The same audio in chunks `[batch, channels, samples]`, while its codes are being made.

        Put together the chunks are what `generate`, `generate_with_chroma` or `generate_continuation` return,
        but behind the prompt. Each is of `chunk_seconds`, the last one of what is left; the first one comes
        when the codec has seen the few frames behind it that it looks at.

        Raises:
            UsageError: as those do.
        """
        validate_number(
            "chunk_seconds",
            chunk_seconds,
            "a number of at least one frame",
            lambda s: s * self.frame_rate >= 1,
        )
        told = self._prepare_inputs(descriptions, melody_wavs, melody_sample_rate)
        if prompt is not None:
            clips = self._clips(prompt, prompt_sample_rate, "the prompt")
            told = replace(told, prompt=self._encoded(clips, told))
        return self._chunks(told, progress, int(chunk_seconds * self.frame_rate))

    def generate_audio(self, gen_tokens: mx.array) -> mx.array:
        """Audio float32 `[batch, channels, samples]` of codes int `[batch, codebooks, frames]`."""
        codebooks = self.compression_model.num_codebooks
        if gen_tokens.ndim != 3 or gen_tokens.shape[1] != codebooks or not gen_tokens.shape[2]:
            raise UsageError(
                f"tokens must have shape [batch, {codebooks}, frames], not {list(gen_tokens.shape)}"
            )
        # A look-up beyond a table's end reads whatever is there.
        cardinality = self.compression_model.cardinality
        if mx.any((gen_tokens < 0) | (gen_tokens >= cardinality)).item():
            raise UsageError(f"tokens must be codes from 0 to {cardinality - 1}")
        return self.compression_model.decode(gen_tokens)

    def _prepare_inputs(
        self,
        descriptions: Sequence[str | None],
        melody_wavs: WavInputs | None = None,
        melody_sample_rate: int | None = None,
    ) -> GenerationInputs:
        if isinstance(descriptions, str) or not isinstance(descriptions, Sequence):
            raise UsageError(f"descriptions must be a list of texts, not {type(descriptions).__name__}")
        if not descriptions:
            raise UsageError("descriptions is empty; give at least one text")
        for description in descriptions:
            if description is not None and not isinstance(description, str):
                raise UsageError(f"a description must be a text or None, not {description!r}")
        seed = secrets.randbits(32) if self.seed is None else self.seed
        if melody_wavs is None:
            return GenerationInputs(descriptions, [None] * len(descriptions), seed)
        if self.audio_conditioner is None:
            raise UsageError(
                f"{self.name} hears text only; give a melody to melody or stereo-melody, a style to style"
            )
        if isinstance(melody_wavs, (mx.array, np.ndarray)) and melody_wavs.ndim == 2:
            melody_wavs = [melody_wavs]
        if len(melody_wavs) != len(descriptions):
            raise UsageError(f"there are {len(descriptions)} descriptions, but {len(melody_wavs)} melodies")
        wavs = list(melody_wavs)
        clips: dict[int, mx.array | None] = {}  # one that several rows have stays one
        for index, wav in enumerate(wavs):
            if wav is None or id(wav) in clips:
                continue
            name = f"melody {index + 1}"
            [clip] = self._clips([wav], melody_sample_rate, name, self.max_condition_duration)
            require_non_silent(np.asarray(clip), name)
            clips[id(wav)] = clip
        return GenerationInputs(descriptions, [clips.get(id(wav)) for wav in wavs], seed)

    def _clips(
        self, audio: Audio | Sequence[Audio], rate: int | None, name: str, longest: float | None = None
    ) -> list[mx.array]:
        """Each clip float32 `[C, T]` at the model's rate and with its channels."""
        if rate is None:
            raise UsageError(f"{name} needs its sample rate")
        validate_int(
            "the sample rate",
            rate,
            "a whole number of samples a second",
            lambda r: MIN_SAMPLE_RATE <= r <= MAX_SAMPLE_RATE,
        )
        clips = []
        several = list(audio) if isinstance(audio, Sequence) or audio.ndim != 2 else [audio]
        for each in several:
            clip = np.asarray(each, np.float32)
            if clip.ndim != 2 or not 0 < clip.shape[0] <= 64 or not clip.shape[1]:
                raise UsageError(
                    f"{name} must be [channels, samples] with some samples, not {list(clip.shape)}"
                )
            if longest is not None:
                clip = clip[:, : int(longest * rate)]
            if not np.isfinite(clip).all():
                raise UsageError(f"{name} has samples that are no numbers (NaN or infinite)")
            clips.append(mx.array(convert_audio(clip, rate, self.sample_rate, self.audio_channels)))
        if not clips:
            raise UsageError(f"{name} is empty")
        return clips

    def _encoded(self, clips: list[mx.array], told: GenerationInputs) -> mx.array:
        """Codes int32 `[B, K, F]` of what is to be gone on from."""
        if len(clips) != len(told.descriptions):
            raise UsageError(f"there are {len(told.descriptions)} descriptions, but {len(clips)} prompts")
        codes = self.compression_model.encode(mx.stack(clips))
        frames = int(self.duration * self.frame_rate)
        if codes.shape[2] >= frames:
            raise UsageError(
                f"the prompt has {codes.shape[2] / self.frame_rate:g} s and {self.duration:g} s are asked for"
                " in all: nothing is left to make; ask for more, or give less"
            )
        return codes

    def _generate(self, told: GenerationInputs, progress: bool, return_tokens: bool) -> GenerationOutput:
        tokens, audio = [], []
        for codes, samples in self._pieces(told, progress, CHUNK_FRAMES):
            tokens.append(codes)
            audio += [] if samples is None else [samples]
        whole = mx.concatenate(audio, axis=2)
        return (whole, mx.concatenate(tokens, axis=2)) if return_tokens else whole

    def _pieces(
        self, told: GenerationInputs, progress: bool, size: int, first: int = 0
    ) -> Iterator[tuple[mx.array, mx.array | None]]:
        """Codes `[B, K, n]` and the audio `[B, C, m]` that they tell; of `size` frames from `first` on."""
        frames = int(self.duration * self.frame_rate)
        decoding = self.compression_model.make_decoder_stream()
        with _progress(self._progress_callback, progress) as on_step:
            made: list[mx.array] = []
            for count, frame in enumerate(self._frames(told, frames, on_step), 1):
                made.append(frame)
                if count == frames or (count - first) % size == 0:
                    codes = mx.stack(made, axis=2)
                    made = []
                    audio = decoding.step(codes, is_last=count == frames)
                    mx.eval(codes, audio)
                    yield codes, audio

    def _chunks(self, told: GenerationInputs, progress: bool, size: int) -> Iterator[mx.array]:
        """Audio `[B, C, n]` of `size` frames at a time, and at last of what is left, behind the prompt."""
        hop = round(self.sample_rate / self.frame_rate)
        known = 0 if told.prompt is None else told.prompt.shape[2]
        # The codec is asked whenever it can tell a whole chunk: it is behind by what it looks ahead.
        first = known + self.compression_model.make_decoder_stream().lookahead_frames
        skip, rest = known * hop, None
        for _, audio in self._pieces(told, progress, size, first):
            if audio is None:
                continue
            skipped = min(skip, audio.shape[2])
            skip -= skipped
            audio = audio[:, :, skipped:]
            rest = audio if rest is None else mx.concatenate([rest, audio], axis=2)
            while rest.shape[2] >= size * hop:
                chunk, rest = rest[:, :, : size * hop], rest[:, :, size * hop :]
                mx.eval(chunk, rest)  # else the rest holds on to all that it was cut from
                yield chunk
        if rest is not None and rest.shape[2]:
            yield rest

    def _frames(
        self, told: GenerationInputs, frames: int, on_step: ProgressCallback | None
    ) -> Iterator[mx.array]:
        longest = int(self.max_duration * self.frame_rate)
        stride = int(self.extend_stride * self.frame_rate)
        if frames > longest <= stride:
            raise UsageError(
                f"to make {self.duration:g} s, extend_stride ({self.extend_stride:g} s) must be below"
                f" max_duration ({self.max_duration:g} s)"
            )
        known = 0 if told.prompt is None else told.prompt.shape[2]
        windows = plan_windows(frames, longest, stride, known)
        text = self.text_conditioner.encode(told.descriptions) if self.audio_conditioner is None else None
        return generate_windows(
            self.lm,
            lambda window: self._conditions(told, window, len(windows) > 1) if text is None else text,
            windows,
            self.sampling,
            self.guidance,
            told.seed,
            prompt=told.prompt,
            on_step=on_step,
        )

    def _conditions(self, told: GenerationInputs, window: Window, several: bool) -> ConditionTensors:
        """For one window: of long music each hears its own part of the audio, over and over."""
        assert self.audio_conditioner is not None
        audios = list(told.audios)
        if several:
            start = int(window.start / self.frame_rate * self.sample_rate)
            positions = mx.arange(start, start + int(self.max_duration * self.sample_rate))
            cut = {id(clip): clip[:, positions % clip.shape[1]] for clip in audios if clip is not None}
            audios = [cut.get(id(clip)) for clip in audios]
        return build_prepended_conditions(
            self.text_conditioner,
            self.audio_conditioner,
            told.descriptions,
            audios,
            self.style_params,
            [(told.seed + row) % 2**32 for row in range(len(audios))],
            window.index,
            separate_null=self.guidance.two_step,
        )


@contextmanager
def _progress(callback: ProgressCallback | None, show: bool) -> Iterator[ProgressCallback | None]:
    """The callback that was set, or else one that draws a bar if `show`."""
    if callback is not None or not show:
        yield callback
        return
    with tqdm(unit="step", dynamic_ncols=True) as bar:

        def draw(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield draw
