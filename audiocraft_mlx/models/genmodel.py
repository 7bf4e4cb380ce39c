"""What MusicGen and AudioGen share: from descriptions to audio. audiocraft's `BaseGenModel`, on MLX."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.level import require_float_scale, require_non_silent, without_cancellation
from audiocraft_mlx.audio.loop import LEAD_IN_SECONDS, LEAD_OUT_SECONDS, Loop, cut_loop
from audiocraft_mlx.audio.part import crossfade_part
from audiocraft_mlx.audio.resample import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, convert_audio
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.lora_spec import LoraArgument, lora_specs
from audiocraft_mlx.checkpoints.quantization import enable_int8_activations
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.notes import Notes
from audiocraft_mlx.conditioning.prepend import build_prepended_conditions
from audiocraft_mlx.conditioning.sections import (
    FrameSection,
    Section,
    frame_sections,
    split_description,
    text_at,
)
from audiocraft_mlx.conditioning.style import StyleParams
from audiocraft_mlx.conditioning.tempo import seconds_of_bars, with_tempo
from audiocraft_mlx.decoding.frames import OnStep
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.params import GenerationParams, params_of_rows
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.decoding.sections import SectionConditions
from audiocraft_mlx.decoding.step import LMDecoder, LMStep, alone
from audiocraft_mlx.decoding.stream import chunk_sizes, in_chunks, rechunk
from audiocraft_mlx.decoding.windows import Window, decode_windows, plan_windows
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.machine import PROGRAM_BYTES, require_memory
from audiocraft_mlx.models.holes import Hole, hole_frames
from audiocraft_mlx.models.memory import bytes_per_clip, max_batch_size, require_memory_for
from audiocraft_mlx.models.replaced_part import (
    AROUND_SECONDS,
    DEFAULT_CANDIDATES,
    Around,
    ReplacedPart,
    candidate_seeds,
    choose_take,
    frames_of_part,
    join_fluxes,
    losses_of_takes,
    margin_frames,
)
from audiocraft_mlx.models.text_sections import encode_sections
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.encodec import (
    CHUNK_FRAMES,
    DecoderStream,
    InterleavedStereoCodec,
    StereoDecoderStream,
)
from audiocraft_mlx.ops.device import require_mlx_threads
from audiocraft_mlx.ops.wired_memory import with_wired_memory
from audiocraft_mlx.progress import StepCount, progress_bar
from audiocraft_mlx.validation import (
    BARS,
    BEATS_PER_BAR,
    BPM,
    DEFAULT_BEATS_PER_BAR,
    MELODY_SEPARATIONS,
    SEED,
    validate_int,
    validate_number,
    validate_prompt,
)

if TYPE_CHECKING:
    from typing_extensions import Self

GenerationOutput = mx.array | tuple[mx.array, mx.array]
AudioArray = mx.array | np.ndarray
WavInputs = AudioArray | Notes | Sequence[AudioArray | Notes | None]
Description = str | None | Sequence[tuple[float, str | None] | tuple[float, str | None, float] | Section]
"""A text; or sections: `(seconds, text)` from 0 on, or `(seconds, text, seconds of the cross-fade)`."""
Decoded = tuple[mx.array, mx.array | None]
"""Codes `[B, K, n]`, and the audio `[B, C, m]` that is known after them."""
Negative = str | Sequence[str | None] | None
"""What the music is not to be: one text for all rows, or one for each."""


@dataclass(frozen=True)
class Infill:
    """A part of a clip with holes, which a model that fills masks fills.

    Attributes:
        codes: of the part, int32 `[B, K, F]`; in the holes they don't count.
        known: bool `[F]`, False in the holes.
        start, end: the frames that are wanted as audio, from the first hole to the end of the last one.
    """

    codes: mx.array
    known: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class GenerationInputs:
    """What the rows of a batch are generated from. `GenModel.prepare_inputs` makes them.

    Attributes:
        descriptions: each row's text, or None; with sections, at its beginning.
        seeds: of each row.
        audios: melodies or styles, float32 `[C, T]` at the model's rate, or melodies as notes.
        audio_of_row: which of them each row is conditioned on; None for none.
        style_params: how a style is used.
        prompt: codes int32 `[B, K, F]` of what the rows continue, or None.
        separate_melody: source separation before a melody's chroma.
        infill: a part of a clip whose holes are filled, or None.
        part: what follows `prompt` and is made in several takes, or None.
        sections: of each row, what follows its description; empty if none has any.
        negative: the text that guidance leads each row away from, or None; None if none has any.
    """

    descriptions: tuple[str | None, ...]
    seeds: tuple[int, ...]
    audios: tuple[mx.array | Notes, ...]
    audio_of_row: tuple[int | None, ...]
    style_params: StyleParams
    prompt: mx.array | None = None
    separate_melody: bool = True
    infill: Infill | None = None
    part: ReplacedPart | None = None
    sections: tuple[tuple[Section, ...], ...] = ()
    negative: tuple[str | None, ...] | None = None

    @property
    def prompt_frames(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[2]

    def of_row(self, row: int) -> GenerationInputs:
        """Those of one row."""
        only = slice(row, row + 1)
        return replace(
            self,
            descriptions=self.descriptions[only],
            seeds=self.seeds[only],
            audio_of_row=self.audio_of_row[only],
            prompt=None if self.prompt is None else self.prompt[only],
            sections=self.sections[only],
            negative=None if self.negative is None else self.negative[only],
        )

    def repeated(self, seeds: Sequence[int]) -> GenerationInputs:
        """Those of the only row for each of `seeds`."""
        count = len(seeds)
        return replace(
            self,
            descriptions=self.descriptions * count,
            seeds=tuple(seeds),
            audio_of_row=self.audio_of_row * count,
            prompt=None if self.prompt is None else mx.repeat(self.prompt, count, axis=0),
            sections=self.sections * count,
            negative=None if self.negative is None else self.negative * count,
        )


class OtherModelClass(UsageError):
    """A checkpoint is one of another class.

    Attributes:
        name, bundle, cache_bits: what that class is made of.
    """

    def __init__(self, message: str, name: str, bundle: ModelBundle, cache_bits: int | None) -> None:
        super().__init__(message)
        self.name, self.bundle, self.cache_bits = name, bundle, cache_bits


class GenModel:
    """A loaded model, and the parameters that it generates with by default.

    Attributes:
        name: what it was loaded as.
        lm: the code transformer.
        compression_model: the codec; `encode` and `decode` convert between audio and codes.
        text_conditioner: T5.
        audio_conditioner: encodes melodies or styles; None for a model that is conditioned on text only.
        style_params: see `MusicGen.set_style_conditioner_params`.
        duration, extend_stride, sampling, guidance, seed: see `set_generation_params`.
    """

    default_name: str
    """What is loaded without a name."""
    default_duration = 15.0
    """`duration` of a new model, in seconds; at most the trained length."""
    default_extend_stride = 18.0
    fills_masks = False
    """Whether it is for models that fill masks (MAGNeT), or for those that go on step by step."""

    def __init__(self, name: str, bundle: ModelBundle, cache_bits: int | None = None) -> None:
        self.name = name
        self.lm = bundle.lm
        self.compression_model = bundle.codec
        self.text_conditioner = bundle.text_conditioner
        self.audio_conditioner = bundle.audio_conditioner
        self.style_params = bundle.style_params
        self._bundle = bundle
        self._cache_bits = cache_bits
        self._max_duration = bundle.max_duration
        self._progress_callback: OnStep | None = None
        self.set_generation_params(duration=min(self.default_duration, self.max_duration))

    @classmethod
    def get_pretrained(
        cls,
        name: str | None = None,
        revision: str | None = None,
        quantize: int | None = None,
        int8_activations: bool = False,
        cache_bits: int | None = None,
        weights: str | Path | None = None,
        lora: LoraArgument = None,
    ) -> Self:
        """Load a model.

        Args:
            name: a Hub repository, a short name (`small` … `style`, `demo`), or a folder with a
                checkpoint in audiocraft's or transformers' format or in that of `musicgen-mlx-convert`, or
                the file that audiocraft's training saves (`checkpoint.th`).
                Default: `facebook/musicgen-small` (AudioGen: `facebook/audiogen-medium`).
            revision: branch, tag or commit on the Hub.
            quantize: 4 or 8: quantize the weights of the linear layers to this many bits.
            int8_activations: quantize the inputs of a quantized model's layers to int8 too, where the native
                extension and the processor support it (AVX-512 VNNI; docs/QUANTIZATION.md has its cost).
            cache_bits: 8: keep the keys and values of self-attention in int8; faster for long clips where the
                native extension reads them.
            weights: a file with the weights of a fine-tuned model, in place of those of `name`, which it was
                trained from: a torch or safetensors file, as trainings leave them.
            lora: LoRA adapters to merge into the weights: a folder or a Hub repository, a pair `(name,
                weight)`, or a list of these. PEFT's format, and mlx-lm's with the names of our networks. If
                `name` is an adapter itself, the model that it names is loaded with it.

        Raises:
            UsageError: `quantize` or `cache_bits` is another number, the model is quantized already (so that
                no adapter can be merged either), or `int8_activations` is asked of one that isn't; or it
                is a MAGNeT (for `MAGNeT`: it isn't).
            CheckpointError: there is no such model, or its files are damaged or not supported.
            DownloadError: the Hub can't be reached, or refuses.
            MemoryError: a limit of `ulimit` is too low for the model.
        """
        require_memory(PROGRAM_BYTES)
        if cache_bits not in (None, 8):
            raise UsageError(f"cache_bits must be 8 or None, not {cache_bits!r}")
        name = cls.default_name if name is None else name
        bundle = load(name, revision, quantize, weights=weights, lora=lora_specs(lora))
        if int8_activations:
            enable_int8_activations(bundle.lm)
        if bundle.lm.config.causal == cls.fills_masks:
            kind, others = (
                ("no MAGNeT", "MusicGen or AudioGen") if cls.fills_masks else ("a MAGNeT", "MAGNeT")
            )
            message = f"{name} is {kind}; load it with {others}.get_pretrained"
            raise OtherModelClass(message, name, bundle, cache_bits)
        return cls(name, bundle, cache_bits)

    @property
    def condition_types(self) -> frozenset[str]:
        """What it can be conditioned on: "text", and "melody" or "style"."""
        if self.audio_conditioner is None:
            return frozenset({"text"})
        is_melody = isinstance(self.audio_conditioner, MelodyConditioner)
        return frozenset({"text", "melody" if is_melody else "style"})

    def count_tokens(self, prompt: str) -> int:
        """How many tokens a text has for T5. Raises `CheckpointError`: the tokenizer fails."""
        return self.text_conditioner.count_tokens(prompt)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return self.compression_model.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second: the steps of the transformer."""
        return self.compression_model.frame_rate

    @cached_property
    def codec_id(self) -> str:
        """Identifies the codec: of the entries of its codebooks, 16 hexadecimal digits."""
        codec = self.compression_model
        mono = codec.mono if isinstance(codec, InterleavedStereoCodec) else codec
        codebooks = np.array(mono.quantizer.codebooks.astype(mx.float32))
        kind = f"{codec.num_codebooks} {self.sample_rate}".encode()
        return hashlib.sha256(kind + codebooks.tobytes()).hexdigest()[:16]

    @property
    def audio_channels(self) -> int:
        return self.compression_model.channels

    @property
    def max_duration(self) -> float:
        """Seconds of one window. It may be lowered; the trained length is the maximum."""
        return self._max_duration

    @max_duration.setter
    def max_duration(self, seconds: float) -> None:
        longest = self._bundle.max_duration
        validate_number(
            "max_duration",
            seconds,
            f"between one frame and the trained {longest:g} s",
            lambda s: 1 / self.frame_rate <= s <= longest,
        )
        self._max_duration = float(seconds)

    def max_condition_duration(self, duration: float) -> float:
        """Seconds of a melody or style that are used at most for a clip of `duration`: one window more."""
        return max(duration, self.max_duration) + self.max_duration + 30

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
        """Set the default parameters of the generations to come; those that run already keep theirs.

        What is left out takes the model's own default.

        Args:
            use_sampling: draw the codes, or (False) take the most likely ones.
            top_k: draw from the `top_k` most likely codes; 0 from all. The released models' default is 250.
            top_p: if > 0, draw from the most likely codes that together have this probability; `top_k` is
                not used then. Default 0.
            temperature: above 1 more surprising, below more predictable; 0 is greedy. Default 1.
            duration: seconds. Default: `max_duration`, 30 for the released models.
            cfg_coef: how strongly the conditions guide; 1 is no guidance. Default 3.
            cfg_coef_beta: how much more the text counts than the melody or style given with it. Default: as
                much. For models with melody or style conditions.
            two_step_cfg: run the guided and the unguided branch one after the other. Default: no.
            extend_stride: beyond `max_duration`, seconds by which each window moves on; the rest of it is
                context. Default 18 (AudioGen: 2), or 0.6 of a `max_duration` that is no longer.
            seed: of the first row; row i has `seed + i`. Default: a new one for each generation.

        Raises:
            UsageError: a value is out of its range.
        """
        params = self.make_params(
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            duration=duration,
            cfg_coef=cfg_coef,
            cfg_coef_beta=cfg_coef_beta,
            two_step_cfg=two_step_cfg,
            extend_stride=extend_stride,
        )
        self._set_defaults(params, seed)

    def _set_defaults(self, params: GenerationParams, seed: int | None) -> None:
        if seed is not None:
            SEED.validate("seed", seed)
            seed = int(seed)
        self.sampling, self.guidance, self.seed = params.sampling, params.guidance, seed
        self.duration, self.extend_stride = params.duration, params.extend_stride

    def make_params(
        self,
        *,
        use_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        duration: float | None = None,
        cfg_coef: float | None = None,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool | None = None,
        extend_stride: float | None = None,
    ) -> GenerationParams:
        """The parameters of a row for `generate_stream`; see `set_generation_params`, which has the same."""
        sampling, guidance = self._bundle.sampling, self._bundle.guidance
        sampling = SamplingParams(
            use_sampling=sampling.use_sampling if use_sampling is None else use_sampling,
            top_k=sampling.top_k if top_k is None else top_k,
            top_p=sampling.top_p if top_p is None else top_p,
            temperature=sampling.temperature if temperature is None else temperature,
        )
        guidance = GuidanceParams(
            coef=guidance.coef if cfg_coef is None else cfg_coef,
            two_step=guidance.two_step if two_step_cfg is None else two_step_cfg,
            beta=cfg_coef_beta,
        )
        if cfg_coef_beta is not None and self.audio_conditioner is None:
            raise UsageError(
                f"cfg_coef_beta weighs text against melody or style; {self.name} is conditioned on text only:"
                " omit it"
            )
        duration = self.max_duration if duration is None else duration
        frame = 1 / self.frame_rate
        validate_number(
            "duration", duration, f"at least one frame, {frame:g} s", lambda d: d * self.frame_rate >= 1
        )
        if extend_stride is None:
            default = self.default_extend_stride
            extend_stride = default if self.max_duration > default else 0.6 * self.max_duration
        validate_number(
            "extend_stride",
            extend_stride,
            f"at least one frame, {frame:g} s, and below max_duration, {self.max_duration:g} s",
            lambda stride: frame <= stride < self.max_duration,
        )
        return GenerationParams(
            duration=float(duration),
            max_duration=self.max_duration,
            extend_stride=float(extend_stride),
            sampling=sampling,
            guidance=guidance,
        )

    def clip_frames(self, params: GenerationParams) -> int:
        """Frames of a clip with these parameters, its prompt included."""
        return self._frames(params, params.duration)

    def _frames(self, params: GenerationParams, seconds: float) -> int:
        """How many frames of `seconds` are generated."""
        return int(seconds * self.frame_rate)

    @property
    def params(self) -> GenerationParams:
        """The default parameters, as `set_generation_params` left them."""
        return GenerationParams(
            self.duration, self.max_duration, self.extend_stride, self.sampling, self.guidance
        )

    def set_custom_progress_callback(self, progress_callback: OnStep | None = None) -> None:
        """Have `progress_callback(done, total)` called after each step, in place of the progress bar."""
        self._progress_callback = progress_callback

    def generate(
        self,
        descriptions: Sequence[Description],
        progress: bool = False,
        return_tokens: bool = False,
        negative: Negative = None,
    ) -> GenerationOutput:
        """Music for each of `descriptions`; None or "" is unconditional.

        Args:
            descriptions: one prompt for each clip. A prompt that changes is a list of sections: `(seconds,
                text)`, the first one at 0, or `(seconds, text, fade)`, whose guided logits cross-fade with
                those of the section before over `fade` seconds. See docs/CONTROL.md.
            progress: show a progress bar, or call the callback that was set.
            return_tokens: return the codes too.
            negative: what the music is not to be, one text for all clips or one for each (None: no text).
                It stands where the null condition stands, so guidance leads away from it.

        Returns:
            Audio float32 `[batch, channels, samples]`, nominally in [-1, 1], of exactly
            `int(duration * frame_rate)` frames; with `return_tokens` also the codes int32
            `[batch, codebooks, frames]`.

        Raises:
            UsageError: `descriptions` is empty or no list of texts or sections; sections are out of order or
                don't fit into `duration`; or there is a negative text, and `cfg_coef` is 1.
        """
        return self._generate(self._inputs(descriptions, negative=negative), progress, return_tokens)

    def generate_unconditional(
        self,
        num_samples: int,
        progress: bool = False,
        return_tokens: bool = False,
        negative: Negative = None,
    ) -> GenerationOutput:
        """`num_samples` clips without a description. See `generate`."""
        validate_int("num_samples", num_samples, "an integer of at least 1", lambda n: n >= 1)
        return self.generate([None] * int(num_samples), progress, return_tokens, negative)

    def generate_loop(
        self,
        descriptions: Sequence[str | None],
        progress: bool = False,
        negative: Negative = None,
        *,
        bars: int | None = None,
        bpm: float | None = None,
        beats_per_bar: int = DEFAULT_BEATS_PER_BAR,
    ) -> list[Loop]:
        """Music for each of `descriptions` whose end goes on at its beginning. See docs/CONTROL.md.

        Three seconds more are generated: a lead-in and a lead-out, to choose the loop from. A MAGNeT then
        makes the join itself anew, with both sides in view.

        Args:
            bars: how long the loops are, in bars of `bpm`. Default: `duration` seconds.
            bpm: beats per minute, which are added to descriptions without a tempo.

        See `generate` for the rest.

        Returns:
            A loop for each description: its `audio` is float32 `[channels, samples]`, and of several takes
            that with the lowest `measure.score` is the best.

        Raises:
            UsageError: also for `bars` without `bpm`.
        """
        if bpm is not None:
            BPM.validate("bpm", bpm)
        BEATS_PER_BAR.validate("beats_per_bar", beats_per_bar)
        seconds = self.duration
        if bars is not None:
            BARS.validate("bars", bars)
            if bpm is None:
                raise UsageError("bars need bpm, which say how long they are")
            seconds = seconds_of_bars(bars, bpm, beats_per_bar)
        is_list = isinstance(descriptions, Sequence) and not isinstance(descriptions, str)
        if not is_list or any(not isinstance(text, str | None) for text in descriptions):
            raise UsageError("the descriptions of loops must be a list of texts, without sections")
        params = replace(self.params, duration=seconds + LEAD_IN_SECONDS + LEAD_OUT_SECONDS)
        inputs = self._inputs([text and with_tempo(text, bpm) for text in descriptions], negative=negative)
        samples = round(seconds * self.sample_rate)
        closing, loops = self.closing_steps(samples, params), list[Loop]()
        with _progress(self._progress_callback, progress) as on_step:
            steps = StepCount(on_step, closing * len(inputs.seeds))
            made, _ = self._collect(inputs, params, steps)
            rows = zip(np.array(made), inputs.descriptions, inputs.seeds, strict=True)
            for audio, text, seed in rows:
                steps.next(closing)
                loop = cut_loop(audio, self.sample_rate, samples)
                loops.append(self.close_loop(loop, text, seed, params, steps))
        return loops

    def closing_steps(self, samples: int, params: GenerationParams) -> int:
        """Steps of `close_loop` for a loop of `samples` samples; 0: it leaves the loop as it is."""
        return 0

    def close_loop(
        self,
        loop: Loop,
        description: str | None,
        seed: int,
        params: GenerationParams,
        on_step: OnStep | None = None,
    ) -> Loop:
        """`loop`, of music for `description`, with a join that the model makes anew, if it can: a MAGNeT.

        Args:
            seed, params: of the music.
            on_step: called as in `generate_stream`.
        """
        return loop

    def generate_continuation(
        self,
        prompt: AudioArray,
        prompt_sample_rate: int,
        descriptions: Sequence[Description] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        negative: Negative = None,
    ) -> GenerationOutput:
        """Music that continues `prompt`, float `[batch, channels, samples]`, or `[channels, samples]`.

        The result begins with the prompt as the codec reconstructs it, and has `duration` seconds in all. The
        codec pads a prompt to whole frames, as in audiocraft: of less than one frame little is left. See
        `generate`; `descriptions` has one text for each prompt, None is none at all. The seconds of sections
        count the prompt.

        Raises:
            UsageError: also if the prompt is empty, or as long as `duration`.
        """
        prompts = clips_of(prompt, "the prompt")
        inputs = self._inputs(
            [None] * len(prompts) if descriptions is None else descriptions,
            prompt=prompts,
            prompt_sample_rate=prompt_sample_rate,
            negative=negative,
        )
        return self._generate(inputs, progress, return_tokens)

    def stream(
        self,
        descriptions: Sequence[Description],
        melody_wavs: WavInputs | None = None,
        melody_sample_rate: int | None = None,
        prompt: AudioArray | None = None,
        prompt_sample_rate: int | None = None,
        chunk_seconds: float = 1.0,
        first_chunk_seconds: float | None = None,
        progress: bool = False,
        melody_separation: str = "auto",
        negative: Negative = None,
    ) -> Iterator[mx.array]:
        """`generate_stream` with the default parameters as they are now, of what `generate` and others take.

        Joined, the chunks are what `generate`, `generate_with_chroma` or `generate_continuation` return,
        without the prompt.

        Raises:
            UsageError: as those do.
        """
        inputs = self._inputs(
            descriptions,
            melody_wavs=melody_wavs,
            melody_sample_rate=melody_sample_rate,
            prompt=None if prompt is None else clips_of(prompt, "the prompt"),
            prompt_sample_rate=prompt_sample_rate,
            melody_separation=melody_separation,
            negative=negative,
        )
        generate = self._start(inputs, self.params, chunk_seconds, first_chunk_seconds)
        return _with_progress(lambda on_step: alone(generate(on_step)), self._progress_callback, progress)

    def prepare_inputs(
        self,
        descriptions: Sequence[Description],
        seeds: Sequence[int],
        *,
        melody_wavs: WavInputs | None = None,
        melody_sample_rate: int | None = None,
        prompt: Sequence[AudioArray] | None = None,
        prompt_sample_rate: int | None = None,
        duration: float | None = None,
        melody_separation: str = "auto",
        negative: Negative = None,
        prompt_codes: Sequence[AudioArray] | None = None,
    ) -> GenerationInputs:
        """What a batch is generated from, checked and at the model's rate.

        Args:
            descriptions, seeds: one for each row; None is no text. For sections see `generate`.
            melody_wavs: melodies or styles, float `[batch, channels, samples]`, `[channels, samples]` for one
                row, or a list with `[channels, samples]` or None for each row. Notes may stand for a melody.
            prompt: what each row continues, float `[channels, samples]`, all of one length.
            melody_sample_rate, prompt_sample_rate: their samples per second.
            duration: of the clips; no more of a melody or style is used than `max_condition_duration` of it.
            melody_separation: one of `MELODY_SEPARATIONS`: whether drums and bass are removed from a melody
                first. `auto`: as audiocraft does, which always removes them: the same as `on` today.
            negative: one text for all rows, or one for each; None is no text.
            prompt_codes: in place of `prompt`: what each row continues as codes int `[K, F]`.

        Raises:
            UsageError: one of them is of another type, shape or length, or audio is silent, NaN or infinite.
        """
        if isinstance(descriptions, str) or not isinstance(descriptions, Sequence):
            raise UsageError(f"descriptions must be a list of strings, not {type(descriptions).__name__}")
        if not descriptions:
            raise UsageError("descriptions is empty; give at least one string")
        texts, sections = zip(*map(split_description, descriptions), strict=True)
        if melody_separation not in MELODY_SEPARATIONS:
            raise UsageError(
                f"melody_separation must be one of {', '.join(MELODY_SEPARATIONS)}, not {melody_separation!r}"
            )
        if len(seeds) != len(descriptions):
            raise UsageError(f"there are {len(descriptions)} descriptions, but {len(seeds)} seeds")
        for seed in seeds:
            SEED.validate("a seed", seed)
        require_mlx_threads()
        audios: list[mx.array | Notes] = []
        audio_of_row: list[int | None] = [None] * len(descriptions)
        if melody_wavs is not None:
            longest = None if duration is None else self.max_condition_duration(duration)
            audios, audio_of_row = self._prepare_conditions(
                melody_wavs, melody_sample_rate, len(descriptions), longest
            )
        encoded = None
        if prompt_codes is not None:
            if prompt is not None or len(prompt_codes) != len(descriptions):
                raise UsageError("prompt_codes must be one for each description, and without a prompt")
            encoded = self._check_codes("prompt_codes", np.stack([np.asarray(c) for c in prompt_codes]))
        elif prompt is not None:
            encoded = self._encode_prompt(prompt, prompt_sample_rate, len(descriptions))
        return GenerationInputs(
            descriptions=texts,
            seeds=tuple(int(seed) for seed in seeds),
            audios=tuple(audios),
            audio_of_row=tuple(audio_of_row),
            style_params=self.style_params,
            prompt=encoded,
            separate_melody=melody_separation != "off",
            sections=sections if any(sections) else (),
            negative=_negative_of_rows(negative, len(descriptions)),
        )

    def generate_infill(
        self,
        audio: AudioArray,
        sample_rate: int,
        holes: Sequence[Hole],
        descriptions: Sequence[Description] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        negative: Negative = None,
        *,
        candidates: int | None = None,
    ) -> GenerationOutput:
        """Make a part of `audio` anew, float `[batch, channels, samples]` or `[channels, samples]`.

        The model sees what is before the part. It makes several takes, and the one is kept after which it
        finds what really follows most likely (of several that are alike the one whose join is heard least).
        It is joined by cross-fades where they are heard least, within
        0.1 s of both ends. See docs/CONTROL.md.

        Args:
            sample_rate: samples per second of `audio`.
            holes: one part, from which second to which; the same in all clips.
            descriptions: one text for each clip, None is none at all. Sections count from the beginning of
                the part.
            candidates: takes that one is chosen of. Default: 8.

        Returns:
            Audio float32 `[batch, channels, samples]` at the model's rate, outside of the part and its
            cross-fades as it was given (resampled); with `return_tokens` also the codes int32 of the part
            and a little before and after it, `[batch, codebooks, frames]`.

        Raises:
            UsageError: also for a part outside of the audio, or for several.
        """
        clips = clips_of(audio, "the audio")
        texts = [None] * len(clips) if descriptions is None else descriptions
        given = (texts, self._seeds(texts), clips, sample_rate, holes, self.params)
        inputs = self.prepare_infill(*given, candidates=candidates, negative=negative)
        assert inputs.part is not None
        new, codes = self._generate(inputs, progress, return_tokens=True)
        sources, index_of_row = self._prepare_clips(clips, sample_rate, len(texts), "clip")
        (start, end), rate = holes[0], self.sample_rate
        new_start = inputs.part.new_start / self.frame_rate
        whole = mx.array(
            np.stack(
                [
                    crossfade_part(source, rate, start, end, row, rate, new_start, rate).audio
                    for source, row in zip(np.array(sources)[index_of_row], np.array(new), strict=True)
                ]
            )
        )
        return (whole, codes) if return_tokens else whole

    def prepare_infill(
        self,
        descriptions: Sequence[Description],
        seeds: Sequence[int],
        audio: Sequence[AudioArray],
        sample_rate: int,
        holes: Sequence[Hole],
        params: GenerationParams,
        *,
        codes: Sequence[AudioArray] | None = None,
        candidates: int | None = None,
        negative: Negative = None,
    ) -> GenerationInputs:
        """What `generate_stream` makes a part of clips anew from.

        It yields the audio of the part, and a little before and after it.

        Args:
            audio: float `[channels, samples]` for each row, all of one length.
            holes: one part, from which second to which.
            params: of the generation; its `duration` doesn't count.
            codes: int `[K, F]` of each row's audio, where they are known, else it is encoded.
            candidates: takes that one is chosen of. Default: 8.

        Sections count from the beginning of the part. See `generate_infill` for the rest.
        """
        count = DEFAULT_CANDIDATES if candidates is None else candidates
        validate_int("candidates", count, "an integer of at least 1", lambda n: n >= 1)
        if not isinstance(holes, Sequence) or len(holes) != 1:
            raise UsageError(
                f"holes must be one part of the clip for {self.name}, [(from second, to second)]"
            )
        clips, index_of_row = self._prepare_clips(audio, sample_rate, len(descriptions), "clip")
        hop = round(self.sample_rate / self.frame_rate)
        seconds, whole = clips.shape[2] / self.sample_rate, clips.shape[2] // hop
        (part,) = hole_frames(holes, seconds, -(-clips.shape[2] // hop), self.frame_rate)
        frames = frames_of_part(
            whole,
            part,
            self._frames(params, params.max_duration),
            self._frames(params, params.extend_stride),
            self.frame_rate,
        )
        if codes is None:
            # A little more, so that the codec sees what is behind what counts.
            end = frames.following_end + margin_frames(self.frame_rate)
            seen = clips[:, :, frames.context * hop : end * hop]
            encoded = self.compression_model.encode(seen)[mx.array(index_of_row)]
        else:
            encoded = self._check_codes("codes", np.stack([np.asarray(row) for row in codes]))
            encoded = encoded[:, :, frames.context :]
        context, start, end = frames.context, frames.start, frames.end
        following = encoded[:, :, end - context : frames.following_end - context]
        prompt = encoded[:, :, : start - context] if start > context else None
        mx.eval(following, prompt)  # another thread may use them
        before = (start - context) / self.frame_rate
        inputs = self.prepare_inputs(
            [_later(text, before) for text in descriptions], seeds, negative=negative
        )
        margin = margin_frames(self.frame_rate)
        if end * hop >= clips.shape[2] or not following.shape[2]:
            count = 1
        ahead = min(round(AROUND_SECONDS * self.frame_rate), end - context)
        begin, stop = (end - ahead) * hop, end * hop + round(AROUND_SECONDS * self.sample_rate)
        last = round(holes[0][1] * self.sample_rate) - begin
        around = [Around(np.array(clip[:, begin:stop]), last, ahead) for clip in clips]
        replaced = ReplacedPart(
            end - start,
            following,
            tuple(around[index] for index in index_of_row),
            count,
            max(0, start - margin),
            margin,
        )
        return replace(inputs, prompt=prompt, part=replaced)

    def generate_stream(
        self,
        inputs: GenerationInputs,
        params: GenerationParams | Sequence[GenerationParams],
        *,
        chunk_seconds: float = 1.0,
        first_chunk_seconds: float | None = None,
        on_step: OnStep | None = None,
        on_codes: Callable[[mx.array], None] | None = None,
    ) -> Iterator[mx.array]:
        """Generate audio in chunks float32 `[batch, channels, samples]`, without the prompt.

        Each is of `chunk_seconds`, the last one of what is left. The first one may be shorter, to be heard
        sooner: those after it are twice as long each, up to `chunk_seconds`. A chunk comes as soon as the
        codec has the few frames after it that it depends on. A row's audio depends on its own inputs, seed
        and parameters only.

        Args:
            params: of all rows, or one for each with equal `batch_key`; `duration` counts the prompt, too.
            on_step: called with the steps done and the steps in all, after each step of the transformer.
            on_codes: called with the codes int32 `[batch, codebooks, n]` of the new music, as they come.

        Raises:
            UsageError: at once, for values that don't fit.
        """
        return alone(self._start(inputs, params, chunk_seconds, first_chunk_seconds, on_codes)(on_step))

    def stream_steps(
        self,
        inputs: GenerationInputs,
        params: GenerationParams | Sequence[GenerationParams],
        *,
        chunk_seconds: float = 1.0,
        first_chunk_seconds: float | None = None,
        on_step: OnStep | None = None,
        on_codes: Callable[[mx.array], None] | None = None,
    ) -> Iterator[mx.array | LMStep]:
        """`generate_stream` that yields the steps that it waits for, too, which are for the caller to take.

        So several can be generated at a time (`ContinuousBatch`).
        """
        return self._start(inputs, params, chunk_seconds, first_chunk_seconds, on_codes)(on_step)

    def generate_audio(self, gen_tokens: AudioArray) -> mx.array:
        """Audio float32 `[batch, channels, samples]` of codes int `[batch, codebooks, frames]`.

        Raises:
            UsageError: they aren't codes of this model.
            MusicGenError: the codec's weights are damaged.
        """
        require_mlx_threads()
        audio = self.compression_model.decode(self._check_codes("tokens", gen_tokens))
        if not mx.isfinite(audio).all().item():
            raise _non_finite_audio()
        return audio

    def _check_codes(self, name: str, codes: AudioArray) -> mx.array:
        """Codes from a caller as int32; `UsageError` unless they have an entry in the codec's tables."""
        codebooks, cardinality = self.compression_model.num_codebooks, self.compression_model.cardinality
        try:
            values = np.asarray(codes)
        except (TypeError, ValueError) as error:  # lists of several lengths
            raise UsageError(f"{name} must be an array of integers, not {type(codes).__name__}") from error
        if values.dtype.kind not in "iu":
            raise UsageError(f"{name} must be integers, not {values.dtype}")
        if values.ndim != 3 or values.shape[1] != codebooks or not values.size:
            raise UsageError(f"{name} must have shape [batch, {codebooks}, frames], not {list(values.shape)}")
        # A look-up beyond a table's end reads whatever is there.
        if values.min() < 0 or values.max() >= cardinality:
            raise UsageError(f"{name} must be codes from 0 to {cardinality - 1}")
        return mx.array(values.astype(np.int32))

    def _inputs(
        self,
        descriptions: Sequence[Description],
        *,
        melody_wavs: WavInputs | None = None,
        melody_sample_rate: int | None = None,
        prompt: Sequence[AudioArray] | None = None,
        prompt_sample_rate: int | None = None,
        melody_separation: str = "auto",
        negative: Negative = None,
    ) -> GenerationInputs:
        """`prepare_inputs` with the default seed and duration."""
        return self.prepare_inputs(
            descriptions,
            self._seeds(descriptions),
            melody_wavs=melody_wavs,
            melody_sample_rate=melody_sample_rate,
            prompt=prompt,
            prompt_sample_rate=prompt_sample_rate,
            duration=self.duration,
            melody_separation=melody_separation,
            negative=negative,
        )

    def _seeds(self, descriptions: Sequence[Description]) -> list[int]:
        """Each row's, of the default one."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        count = len(descriptions) if isinstance(descriptions, Sequence) else 0
        return [(seed + row) % 2**32 for row in range(count)]

    def _prepare_conditions(
        self, wavs: WavInputs, rate: int | None, rows: int, longest: float | None
    ) -> tuple[list[mx.array | Notes], list[int | None]]:
        """The melodies or styles, and which of them each row has: one that several rows share is one."""
        if self.audio_conditioner is None:
            raise UsageError(
                f"{self.name} is conditioned on text only; give a melody to a melody model (melody,"
                " stereo-melody, ...), a style to style"
            )
        given: list[Any] = [wavs] if isinstance(wavs, Notes) else clips_of(wavs, "the melody or style")
        if len(given) != rows:
            raise UsageError(f"there are {rows} descriptions, but {len(given)} melodies")
        unique, index_of_row = _unique(given)
        audios: list[mx.array | Notes] = []
        for index, wav in enumerate(unique):
            name = f"melody {index_of_row.index(index) + 1}"
            if isinstance(wav, Notes):
                if not isinstance(self.audio_conditioner, MelodyConditioner):
                    raise UsageError(f"{self.name} takes a style, which notes have none of; give it audio")
                audios.append(wav)
                continue
            audio = self._prepare_audio(wav, rate, name, longest, mixed=True)
            require_non_silent(np.asarray(audio), name)
            audios.append(audio)
        return audios, index_of_row

    def _prepare_audio(
        self,
        audio: AudioArray,
        rate: int | None,
        name: str,
        longest: float | None = None,
        mixed: bool = False,
    ) -> mx.array:
        """Float32 `[C, T]` at the model's rate and with its channels, of at most `longest` seconds.

        `mixed`: the channels are mixed into one later.
        """
        if rate is None:
            raise UsageError(f"{name} needs its sample rate")
        validate_int(
            "the sample rate",
            rate,
            f"an integer from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}",
            lambda r: MIN_SAMPLE_RATE <= r <= MAX_SAMPLE_RATE,
        )
        samples = _float32_array(audio, name)
        if samples.ndim != 2 or not 0 < samples.shape[0] <= 64 or not samples.shape[1]:
            raise UsageError(
                f"{name} must be [channels, samples] with some samples, not {list(samples.shape)}"
            )
        if longest is not None:
            samples = samples[:, : int(longest * rate)]
        if not np.isfinite(samples).all():
            raise UsageError(f"{name} has samples that are NaN or infinite")
        require_float_scale(samples, name)
        if mixed or self.audio_channels == 1:
            samples = without_cancellation(samples)
        converted = convert_audio(samples, int(rate), self.sample_rate, self.audio_channels)
        if not converted.shape[1]:
            raise UsageError(
                f"{name} is too short, with {samples.shape[1]} sample(s) at {rate} Hz: less than one at"
                f" {self.sample_rate} Hz; give longer audio"
            )
        return mx.array(np.ascontiguousarray(converted))

    def _encode_prompt(self, prompts: Sequence[AudioArray], rate: int | None, rows: int) -> mx.array:
        """Codes int32 `[B, K, F]` of what each row continues."""
        audio, index_of_row = self._prepare_clips(prompts, rate, rows, "prompt")
        codes = self.compression_model.encode(audio)[mx.array(index_of_row)]
        mx.eval(codes)  # another thread may use it
        return codes

    def _prepare_clips(
        self, clips: Sequence[AudioArray], rate: int | None, rows: int, name: str
    ) -> tuple[mx.array, list[int]]:
        """The clips `[N, C, T]` without repetition, as `_prepare_audio` makes them; which each row has."""
        unique, index_of_row = _unique(list(clips))
        audio = [self._prepare_audio(clip, rate, f"the {name}") for clip in unique]
        if not audio:
            raise UsageError(f"the {name} is empty")
        if len(clips) != rows:
            raise UsageError(f"there are {rows} descriptions, but {len(clips)} {name}s")
        if len({clip.shape[1] for clip in audio}) > 1:
            raise UsageError(f"the {name}s of a batch must be of the same length")
        return mx.stack(audio), [index or 0 for index in index_of_row]

    def _generate(self, inputs: GenerationInputs, progress: bool, return_tokens: bool) -> GenerationOutput:
        with _progress(self._progress_callback, progress) as on_step:
            whole, codes = self._collect(inputs, self.params, on_step)
        return (whole, codes) if return_tokens else whole

    def _collect(
        self, inputs: GenerationInputs, params: GenerationParams, on_step: OnStep | None
    ) -> tuple[mx.array, mx.array]:
        """Audio and codes of whole clips."""
        tokens, audio = [], []
        decoded = self._decode(inputs, params, repeat(CHUNK_FRAMES), on_step=on_step)
        for codes, samples in alone(with_wired_memory(decoded)):
            tokens.append(codes)
            audio += [] if samples is None else [samples]
        whole, codes = mx.concatenate(audio, axis=2), mx.concatenate(tokens, axis=2)
        mx.eval(whole, codes)  # else only this thread could use them
        return whole, codes

    def _start(
        self,
        inputs: GenerationInputs,
        params: GenerationParams | Sequence[GenerationParams],
        chunk_seconds: float,
        first_chunk_seconds: float | None,
        on_codes: Callable[[mx.array], None] | None = None,
    ) -> Callable[[OnStep | None], Iterator[mx.array | LMStep]]:
        """`stream_steps`, but for the callback; what can be wrong is found now."""
        first_chunk_seconds = chunk_seconds if first_chunk_seconds is None else first_chunk_seconds
        for name, seconds in (("chunk_seconds", chunk_seconds), ("first_chunk_seconds", first_chunk_seconds)):
            validate_number(
                name, seconds, "a number of at least one frame", lambda s: s * self.frame_rate >= 1
            )
        rows = params_of_rows(params, len(inputs.descriptions))
        self._plan(inputs, rows)
        first, size = int(first_chunk_seconds * self.frame_rate), int(chunk_seconds * self.frame_rate)
        hop = round(self.sample_rate / self.frame_rate)

        def generate(on_step: OnStep | None) -> Iterator[mx.array | LMStep]:
            frames = chunk_sizes(first, size)
            decoded = self._decode(inputs, rows, frames, without_prompt=True, on_step=on_step)
            audio = _audio_of(with_wired_memory(decoded), on_codes)
            return rechunk(audio, (frames * hop for frames in chunk_sizes(first, size)))

        return generate

    def _plan(self, inputs: GenerationInputs, rows: Sequence[GenerationParams]) -> list[Window]:
        """The windows of a generation. Raises `UsageError` if there is nothing to generate, or no way to."""
        params = rows[0]
        for row, text in zip(rows, inputs.negative or (), strict=False):
            if text and row.guidance.coef == 1:
                raise UsageError(
                    "a negative prompt can't work with guidance 1, which is none: set cfg_coef to 3, say, or"
                    " omit the negative prompt"
                )
        if inputs.prompt is not None:
            self._check_codes("the prompt's codes", inputs.prompt)
        frames = self.clip_frames(params)
        if inputs.part is not None:
            frames = inputs.prompt_frames + inputs.part.made_frames
        if inputs.prompt_frames >= frames:
            raise UsageError(
                f"the prompt has {inputs.prompt_frames / self.frame_rate:g} s and {params.duration:g} s are"
                " asked for in all: nothing is left to generate; ask for more, or give a shorter prompt"
            )
        longest, stride = self._window_frames(params, frames)
        return plan_windows(
            frames, longest, stride, inputs.prompt_frames, self._window_borders(inputs, frames)
        )

    def _window_frames(self, params: GenerationParams, frames: int) -> tuple[int, int]:
        """How many frames a window has, and by how many it moves on, to see `frames` frames.

        Raises `UsageError` if windows can't.
        """
        longest = self._frames(params, params.max_duration)
        stride = self._frames(params, params.extend_stride)
        if frames > longest and not 0 < stride < longest:
            limit = "longer" if not stride else f"below max_duration, {params.max_duration:g} s"
            raise UsageError(
                f"extend_stride, {params.extend_stride:g} s, must be {limit}: {frames / self.frame_rate:g} s"
                " are more than one window"
            )
        return longest, stride

    def _sections(self, inputs: GenerationInputs, frames: int) -> list[tuple[FrameSection, ...]]:
        """Each row's sections. Raises `UsageError` if they don't fit into a clip of `frames` frames."""
        sections = inputs.sections or ((),) * len(inputs.descriptions)
        return [
            frame_sections(first, later, self.frame_rate, frames)
            for first, later in zip(inputs.descriptions, sections, strict=True)
        ]

    def _window_borders(self, inputs: GenerationInputs, frames: int) -> list[int]:
        """Where sections make a new window begin: with a prefix, which can't change within one.

        Raises:
            UsageError: sections don't fit, or not to this model.
        """
        if not inputs.sections:
            return []
        sections = self._sections(inputs, frames)
        if self.audio_conditioner is None:
            return []
        if any(section.fade for row in sections for section in row):
            raise UsageError(
                f"{self.name} begins a new window at a section and can't cross-fade there; omit that"
            )
        borders = {tuple(section.frame for section in row[1:]) for row in sections}
        if len(borders) > 1:
            raise UsageError(
                f"{self.name} begins a new window at a section, so rows with different ones can't share a"
                " batch; generate them one after the other"
            )
        return list(borders.pop())

    def _decode(
        self,
        inputs: GenerationInputs,
        params: GenerationParams | Sequence[GenerationParams],
        chunk_frames: Iterator[int],
        without_prompt: bool = False,
        on_step: OnStep | None = None,
    ) -> Iterator[Decoded | LMStep]:
        """Codes and audio as they are generated, and the steps that they wait for."""
        require_mlx_threads()
        rows = params_of_rows(params, len(inputs.descriptions))
        if inputs.part is not None:
            yield from self._decode_part(inputs, inputs.part, rows, on_step)
            return
        windows = self._plan(inputs, rows)
        branches = 2 if rows[0].guidance.beta is None else 3
        if any(section.fade for row in inputs.sections for section in row):
            branches += 1
        require_memory_for(len(rows) * bytes_per_clip(self, rows[0].duration, branches))
        decoder = self.compression_model.make_decoder_stream()
        if inputs.prompt is not None and without_prompt:
            decoder.warm_up(inputs.prompt)
        elif inputs.prompt is not None:
            for start in range(0, inputs.prompt_frames, CHUNK_FRAMES):
                codes = inputs.prompt[:, :, start : start + CHUNK_FRAMES]
                audio = decoder.step(codes, is_last=False)
                evaluate_chunk(codes, audio, decoder)
                yield codes, audio
        left = windows[-1].start + windows[-1].frames - inputs.prompt_frames
        if without_prompt:
            # A stream yields its first chunk as soon as the codec can give all of it.
            chunk_frames = chain([next(chunk_frames) + decoder.lookahead_frames], chunk_frames)
        yield from decode_chunks(
            decoder, self._code_frames(inputs, rows, windows, chunk_frames, on_step), left
        )

    def _decode_part(
        self,
        inputs: GenerationInputs,
        part: ReplacedPart,
        rows: Sequence[GenerationParams],
        on_step: OnStep | None,
    ) -> Iterator[Decoded | LMStep]:
        """`_decode` of the chosen takes, with a little of what is before them."""
        takes = []
        for row in range(len(rows)):
            take = yield from self._best_take(inputs, part, rows, row, on_step)
            takes.append(take)
        codes = mx.concatenate(takes)
        decoder = self.compression_model.make_decoder_stream()
        if inputs.prompt is not None:
            lead = min(part.margin, inputs.prompt_frames)
            if inputs.prompt_frames > lead:
                decoder.warm_up(inputs.prompt[:, :, :-lead])
            codes = mx.concatenate([inputs.prompt[:, :, -lead:], codes], axis=2)
        yield from decode_chunks(decoder, in_chunks(codes, repeat(CHUNK_FRAMES)), codes.shape[2])

    def _best_take(
        self,
        inputs: GenerationInputs,
        part: ReplacedPart,
        rows: Sequence[GenerationParams],
        row: int,
        on_step: OnStep | None,
    ) -> Generator[LMStep, None, mx.array]:
        """Codes `[1, K, n]` of the take of a row's part after which what follows is most likely."""
        own, params = inputs.of_row(row), rows[row]
        windows = self._plan(own, [params])
        frames = windows[-1].start + windows[-1].frames
        branches = len(params.guidance.branches) + any(s.fade for of in own.sections for s in of)
        size = max_batch_size(self, frames / self.frame_rate, branches)
        require_memory_for(size * bytes_per_clip(self, frames / self.frame_rate, branches))
        seeds = candidate_seeds(own.seeds[0], part.candidates)
        # The same number of rows in each batch, for a progress in even steps.
        batches = -(-len(seeds) // size)
        takes = []
        for index in range(batches):
            of_batch = seeds[index::batches]
            batch = own.repeated(of_batch)
            step = None
            if on_step is not None:
                step = _share_of(on_step, row * batches + index, len(rows) * batches)
            chunks: list[mx.array] = []
            sizes = repeat(CHUNK_FRAMES)
            for item in self._code_frames(batch, [params] * len(of_batch), windows, sizes, step):
                if isinstance(item, LMStep):
                    yield item
                else:
                    chunks.append(item)
            takes.append(mx.concatenate(chunks, axis=2))
            mx.eval(takes[-1])
        codes = mx.concatenate(takes)
        if len(seeds) == 1:
            return codes
        # The text says what the part is, not what follows it.
        bare = replace(own, descriptions=(None,), sections=(), negative=None)
        conditions = self._conditions_by_window(bare, params, windows)(windows[-1])
        assert not isinstance(conditions, SectionConditions)
        losses = losses_of_takes(
            self.lm,
            conditions,
            own.prompt,
            codes[:, :, : part.frames],
            part.following[row : row + 1],
            self._frames(params, params.max_duration),
        )
        around = part.around[row]
        best = choose_take(
            losses,
            lambda alike: join_fluxes(
                self.compression_model, own.prompt, codes[mx.array(alike)], around, part.margin
            ),
        )
        return codes[best : best + 1]

    def _code_frames(
        self,
        inputs: GenerationInputs,
        params: Sequence[GenerationParams],
        windows: Sequence[Window],
        chunk_frames: Iterator[int],
        on_step: OnStep | None,
    ) -> Iterator[mx.array | LMStep]:
        """Codes `[B, K, n]` after the prompt, of `chunk_frames` each, and the steps that they wait for."""
        return decode_windows(
            LMDecoder(self.lm, self._cache_bits),
            self._conditions_by_window(inputs, params[0], windows),
            windows,
            [row.sampling for row in params],
            [row.guidance for row in params],
            inputs.seeds,
            prompt=inputs.prompt,
            on_step=on_step,
            chunk_frames=chunk_frames,
        )

    def _conditions_by_window(
        self, inputs: GenerationInputs, params: GenerationParams, windows: Sequence[Window]
    ) -> Callable[[Window], ConditionTensors | SectionConditions]:
        """A function that makes those of a window."""
        frames = windows[-1].start + windows[-1].frames
        sections = self._sections(inputs, frames) if inputs.sections else None
        if self.audio_conditioner is not None:
            several = len(windows) > 1
            return lambda window: self._conditions(inputs, params, window, several, sections)
        if sections is None:
            text = self.text_conditioner.encode(inputs.descriptions, inputs.negative)
            return lambda window: text
        changing = encode_sections(self.text_conditioner, sections, inputs.negative)
        return lambda window: changing.window(window.start, window.frames)

    def _conditions(
        self,
        inputs: GenerationInputs,
        params: GenerationParams,
        window: Window,
        several: bool,
        sections: Sequence[Sequence[FrameSection]] | None = None,
    ) -> ConditionTensors:
        """For one window: each of several has its own part of the audio, which is repeated."""
        assert self.audio_conditioner is not None
        audios = list(inputs.audios)
        if several:
            start = int(window.start / self.frame_rate * self.sample_rate)
            positions = mx.arange(start, start + int(params.max_duration * self.sample_rate))
            audios = [
                audio if isinstance(audio, Notes) else audio[:, positions % audio.shape[1]]
                for audio in audios
            ]
        texts = inputs.descriptions
        if sections is not None:
            texts = tuple(text_at(row, window.start + window.context_frames) for row in sections)
        return build_prepended_conditions(
            self.text_conditioner,
            self.audio_conditioner,
            texts,
            [None if index is None else audios[index] for index in inputs.audio_of_row],
            inputs.style_params,
            inputs.seeds,
            window.index,
            separate_null=params.guidance.two_step,
            separate_melody=inputs.separate_melody,
            negative=inputs.negative,
            notes_start=window.start / self.frame_rate,
        )


def _later(description: Description, seconds: float) -> Description:
    """A description, its sections `seconds` later; the first one still begins at 0."""
    if description is None or isinstance(description, str):
        return description
    first, later = split_description(description)
    return [
        Section(0.0, first or ""),
        *(replace(section, start=section.start + seconds) for section in later),
    ]


def _share_of(on_step: OnStep, index: int, count: int) -> OnStep:
    """`on_step` for one of `count` generations of the same length."""
    return lambda done, total: on_step(index * total + done, count * total)


def _negative_of_rows(negative: Negative, rows: int) -> tuple[str | None, ...] | None:
    """The negative text of each row; None if none has any. Raises `UsageError`."""
    if negative is None or isinstance(negative, str):
        texts: tuple[str | None, ...] = (negative,) * rows
    elif isinstance(negative, Sequence):
        texts = tuple(negative)
    else:
        raise UsageError(f"negative must be a string or a list of strings, not {type(negative).__name__}")
    if len(texts) != rows:
        raise UsageError(f"there are {rows} descriptions, but {len(texts)} negative prompts")
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise UsageError(f"a negative prompt must be a string or None, not {text!r}")
        validate_prompt(text or "")
    return texts if any(texts) else None


def decode_chunks(
    decoder: DecoderStream | StereoDecoderStream, chunks: Iterable[mx.array | LMStep], frames: int
) -> Iterator[Decoded | LMStep]:
    """Each chunk of codes `[B, K, n]`, all together `frames` frames, and the audio that is known after it.

    The steps between them are passed on.
    """
    for codes in chunks:
        if isinstance(codes, LMStep):
            yield codes
            continue
        frames -= codes.shape[2]
        audio = decoder.step(codes, is_last=frames == 0)
        evaluate_chunk(codes, audio, decoder)
        yield codes, audio


def evaluate_chunk(
    codes: mx.array, audio: mx.array | None, decoder: DecoderStream | StereoDecoderStream
) -> None:
    """Evaluate a chunk and all that `decoder` goes on with, so that any thread can go on with them.

    Raises `MusicGenError` for audio that is NaN or infinite.
    """
    finite = None if audio is None else mx.isfinite(audio).all()
    mx.eval(codes, audio, finite, decoder.state)
    if finite is not None and not finite.item():
        raise _non_finite_audio()


def _non_finite_audio() -> MusicGenError:
    return MusicGenError(
        "the codec's audio is NaN or infinite: its weights are damaged; download the model again, or use"
        " another"
    )


def _float32_array(audio: AudioArray, name: str) -> np.ndarray:
    """`audio` as NumPy's float32, from any kind of float. Raises `UsageError` for other types."""
    if isinstance(audio, mx.array):
        # NumPy has no bfloat16.
        audio = (
            np.array(audio.astype(mx.float32)) if mx.issubdtype(audio.dtype, mx.floating) else np.array(audio)
        )
    try:
        array = np.asarray(audio)
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be an array of float samples, not {type(audio).__name__}") from error
    hint = "; divide integers by their full scale" if array.dtype.kind in "iu" else ""
    raise UsageError(f"{name} must be float samples, nominally in [-1, 1], not {array.dtype}{hint}")


def clips_of(audio: Any, name: str) -> list[Any]:
    """The clips of `[batch, channels, samples]` or of a list, or the one of `[channels, samples]`.

    Raises `UsageError` for what is neither.
    """
    if isinstance(audio, memoryview):
        audio = np.asarray(audio)  # Python itself lists one of one dimension only
    dimensions = getattr(audio, "ndim", None)  # also of another library's arrays, such as torch's
    if dimensions == 2:
        return [audio]
    if dimensions == 1 and len(audio) > 64 and not getattr(audio[0], "ndim", 0):
        raise UsageError(f"{name} has one dimension; give samples as [channels, samples]")
    if dimensions or (isinstance(audio, Sequence) and not isinstance(audio, (str, bytes, bytearray))):
        with suppress(TypeError):
            return list(audio)
    raise UsageError(
        f"{name} must be an array of float samples [batch, channels, samples], or a list of such arrays"
        f" [channels, samples], not {type(audio).__name__}"
    )


def _unique(values: Sequence[AudioArray | None]) -> tuple[list[AudioArray], list[int | None]]:
    """The objects among `values` without repetition, and which of them each is; None stays None."""
    unique: list[AudioArray] = []
    indices: list[int | None] = []
    for value in values:
        index = next((i for i, known in enumerate(unique) if known is value), None)
        if index is None and value is not None:
            index = len(unique)
            unique.append(value)
        indices.append(index)
    return unique, indices


def _audio_of(
    decoded: Iterator[Decoded | LMStep], on_codes: Callable[[mx.array], None] | None
) -> Iterator[mx.array | LMStep]:
    """Their audio, as far as there is any; `on_codes` gets their codes."""
    for item in decoded:
        if isinstance(item, LMStep):
            yield item
            continue
        codes, audio = item
        if on_codes is not None:
            on_codes(codes)
        if audio is not None:
            yield audio


def _with_progress(
    generate: Callable[[OnStep | None], Iterator[mx.array]], callback: OnStep | None, show: bool
) -> Iterator[mx.array]:
    with _progress(callback, show) as on_step:
        yield from generate(on_step)


@contextmanager
def _progress(callback: OnStep | None, show: bool) -> Iterator[OnStep | None]:
    """The callback that was set, or else one that draws a bar if `show`."""
    if callback is not None or not show:
        yield callback
        return
    with progress_bar(only_terminal=False) as on_step:
        yield on_step
