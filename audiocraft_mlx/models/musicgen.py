"""MusicGen: text to music. audiocraft's class of the same name, on MLX."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
from tqdm import tqdm

from audiocraft_mlx.arguments import check_number, check_whole
from audiocraft_mlx.checkpoints.upstream import Checkpoint, load
from audiocraft_mlx.decoding.guidance import Guidance
from audiocraft_mlx.decoding.sampling import Sampling
from audiocraft_mlx.decoding.windows import generate_windows, plan_windows
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.models.conditions import Conditions
from audiocraft_mlx.models.quantization import use_eight_bit_activations

ProgressCallback = Callable[[int, int], None]
Generated = mx.array | tuple[mx.array, mx.array]


class MusicGen:
    """A loaded model with the parameters that it generates with.

    Attributes:
        name: what it was loaded as.
        lm: the code transformer.
        compression_model: the codec; `encode` and `decode` go between audio and codes.
        duration: seconds to generate.
        extend_stride: seconds by which the window moves on when `duration` is beyond `max_duration`.
        sampling, guidance, seed: see `set_generation_params`.
    """

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.lm = checkpoint.lm
        self.compression_model = checkpoint.codec
        self._conditioner = checkpoint.conditioner
        self._defaults = checkpoint
        self._max_duration = checkpoint.max_duration
        self._progress_callback: ProgressCallback | None = None
        self.set_generation_params(duration=min(15.0, self.max_duration))

    @staticmethod
    def get_pretrained(
        name: str = "facebook/musicgen-small",
        revision: str | None = None,
        quantize: int | None = None,
        fast: bool = False,
        cache_bits: int | None = None,
    ) -> MusicGen:
        """Load a model.

        Args:
            name: a Hub repository, a short name (`small` … `stereo-large`), or a folder with a checkpoint
                in audiocraft's or transformers' format or in that of `musicgen-mlx-convert`.
            revision: branch, tag or commit on the Hub.
            quantize: 4 or 8: keep the weights of the linear layers in so many bits.
            fast: calculate a quantized model's layers with 8-bit activations, where the native extension
                for Linux CPUs does it (docs/QUANTIZATION.md says what it costs).
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
        checkpoint = load(name, revision, quantize)
        checkpoint.lm.cache_bits = cache_bits
        if fast:
            use_eight_bit_activations(checkpoint.lm)
        return MusicGen(name, checkpoint)

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
        check_number(
            "max_duration",
            seconds,
            f"between one frame and the trained {most:g} s",
            lambda s: 1 / self.frame_rate <= s <= most,
        )
        self._max_duration = float(seconds)

    def set_generation_params(
        self,
        use_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        duration: float | None = None,
        cfg_coef: float | None = None,
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
            cfg_coef: how strongly the text guides; 1 is no guidance. Default 3.
            two_step_cfg: run the guided and the unguided branch one after the other. Default: no.
            extend_stride: beyond `max_duration`, seconds by which each window moves on; the rest of it is
                context. Default 18, or 0.6 of a `max_duration` of 18 s or less.
            seed: of the first row; row i has `seed + i`. Default: a new one for each generation.

        Raises:
            UsageError: a value is out of its range.
        """
        own, guidance = self._defaults.sampling, self._defaults.guidance
        sampling = Sampling(
            use_sampling=own.use_sampling if use_sampling is None else use_sampling,
            top_k=own.top_k if top_k is None else top_k,
            top_p=own.top_p if top_p is None else top_p,
            temperature=own.temperature if temperature is None else temperature,
        )
        guidance = Guidance(
            coef=guidance.coef if cfg_coef is None else cfg_coef,
            two_step=guidance.two_step if two_step_cfg is None else two_step_cfg,
        )
        duration = self.max_duration if duration is None else duration
        frame = 1 / self.frame_rate
        check_number(
            "duration", duration, f"at least one frame, {frame:g} s", lambda d: d * self.frame_rate >= 1
        )
        if extend_stride is None:
            extend_stride = 18.0 if self.max_duration > 18 else 0.6 * self.max_duration
        check_number(
            "extend_stride",
            extend_stride,
            f"at least one frame, {frame:g} s, and below max_duration, {self.max_duration:g} s",
            lambda stride: frame <= stride < self.max_duration,
        )
        if seed is not None:
            check_whole("seed", seed, f"a whole number from 0 to {2**32 - 1}", lambda s: 0 <= s < 2**32)
        self.sampling, self.guidance, self.seed = sampling, guidance, seed
        self.duration, self.extend_stride = float(duration), float(extend_stride)

    def set_custom_progress_callback(self, progress_callback: ProgressCallback | None = None) -> None:
        """Have `progress_callback(done, total)` called after each step, in place of the progress bar."""
        self._progress_callback = progress_callback

    def generate(
        self, descriptions: Sequence[str | None], progress: bool = False, return_tokens: bool = False
    ) -> Generated:
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
        if isinstance(descriptions, str) or not isinstance(descriptions, Sequence):
            raise UsageError(f"descriptions must be a list of texts, not {type(descriptions).__name__}")
        if not descriptions:
            raise UsageError("descriptions is empty; give at least one text")
        for description in descriptions:
            if description is not None and not isinstance(description, str):
                raise UsageError(f"a description must be a text or None, not {description!r}")
        tokens = self._generate_tokens(self._conditioner.encode(descriptions), progress)
        audio = self.generate_audio(tokens)
        return (audio, tokens) if return_tokens else audio

    def generate_unconditional(
        self, num_samples: int, progress: bool = False, return_tokens: bool = False
    ) -> Generated:
        """`num_samples` clips about nothing in particular. See `generate`."""
        check_whole("num_samples", num_samples, "a whole number of at least 1", lambda n: n >= 1)
        return self.generate([None] * num_samples, progress, return_tokens)

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
        audio = self.compression_model.decode(gen_tokens)
        mx.eval(audio)
        return audio

    def _generate_tokens(self, conditions: Conditions, progress: bool) -> mx.array:
        frames = int(self.duration * self.frame_rate)
        longest = int(self.max_duration * self.frame_rate)
        stride = int(self.extend_stride * self.frame_rate)
        if frames > longest <= stride:
            raise UsageError(
                f"to make {self.duration:g} s, extend_stride ({self.extend_stride:g} s) must be below"
                f" max_duration ({self.max_duration:g} s)"
            )
        with _progress(self._progress_callback, progress) as on_step:
            made = list(
                generate_windows(
                    self.lm,
                    conditions,
                    plan_windows(frames, longest, stride),
                    self.sampling,
                    self.guidance,
                    secrets.randbits(32) if self.seed is None else self.seed,
                    on_step=on_step,
                )
            )
        tokens = mx.stack(made, axis=2)
        mx.eval(tokens)
        return tokens


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
