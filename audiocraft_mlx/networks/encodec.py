"""EnCodec: audio ↔ codes. SEANet encoder and decoder with an LSTM, and a residual vector quantizer.

Défossez et al. 2022, "High Fidelity Neural Audio Compression"; equal to audiocraft's `EncodecModel`
(`models/encodec.py`, `modules/seanet.py`, `modules/conv.py`, `quantization/core_vq.py`) and to
transformers' `EncodecModel`, for the non-causal codecs that MusicGen and AudioGen use.
Layers take and return `[B, T, channels]`. They run chunk by chunk: `make_stream` gives a layer's state for
one clip (see `streaming.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.configs import (
    CARDINALITY,
    CHANNELS,
    CODEBOOKS,
    KERNEL,
    SAMPLE_RATE,
    WIDTH,
    ConfigSection,
    Range,
    shown,
)
from audiocraft_mlx.networks.rvq import ResidualVectorQuantizer, pack_codebooks
from audiocraft_mlx.networks.streaming import (
    Stateless,
    StreamingConv1d,
    StreamingConvTranspose1d,
    StreamingLayer,
    StreamingLSTM,
    StreamingResidual,
    StreamingSequential,
)
from audiocraft_mlx.networks.weights import Weights, check_tensor, fold_weight_norm, rename
from audiocraft_mlx.ops.activations import elu
from audiocraft_mlx.ops.device import require_mlx_threads

CHUNK_FRAMES = 100
"""Frames encoded or decoded at a time, so that the memory needed doesn't grow with the clip."""
FEW_LAYERS = Range(0, 16)
"""LSTMs, or residual blocks between two changes of the rate."""
DILATION_BASE = Range(1, 16)
RATIOS = Range(1, 256)
FRAME_RATE = Range(4, 1000)


@dataclass(frozen=True)
class EncodecConfig:
    sample_rate: int
    channels: int
    dimension: int
    """Of the latents."""
    num_filters: int
    num_residual_layers: int
    ratios: tuple[int, ...]
    """Upsampling factors of the decoder; the encoder downsamples by them in reverse order."""
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    dilation_base: int
    pad_mode: str
    compress: int
    num_lstm_layers: int
    num_codebooks: int
    cardinality: int

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    def checked(
        self,
        config: ConfigSection,
        filters_key: str = "num_filters",
        ratios_key: str = "ratios",
        dilation_key: str = "dilation_base",
    ) -> EncodecConfig:
        """This configuration, if its numbers fit together, else `CheckpointError`.

        `config` is where it was read from, and has the numbers under these keys.
        """
        widest = self.num_filters * 2 ** len(self.ratios)
        if widest not in WIDTH:
            raise config.error(filters_key, f"gives layers of {widest} channels, not {WIDTH}")
        if self.compress > self.num_filters:
            raise config.error(
                "compress",
                f"is {self.compress}, more than the {self.num_filters} channels of the first layer",
            )
        frame_rate = self.sample_rate / self.hop_length
        if frame_rate not in FRAME_RATE:
            raise config.error(ratios_key, f"gives {frame_rate:g} frames per second, not {FRAME_RATE}")
        reach = (self.residual_kernel_size - 1) * self.dilation_base ** max(0, self.num_residual_layers - 1)
        if reach + 1 not in KERNEL:
            raise config.error(dilation_key, f"gives convolutions over {reach + 1} samples, not {KERNEL}")
        return self

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> EncodecConfig:
        """Read a `config.json` of type `encodec`; absent keys take the defaults of `EncodecConfig`."""
        for key, supported, default in (
            ("model_type", "encodec", "encodec"),
            ("use_causal_conv", False, True),
            ("use_conv_shortcut", False, True),
            ("norm_type", "weight_norm", "weight_norm"),
            ("normalize", False, False),
            ("chunk_length_s", None, None),
        ):
            config.require(key, supported, default)
        cardinality = config.integer("codebook_size", 1024, CARDINALITY)
        dimension = config.integer("hidden_size", 128, WIDTH)
        config.require("codebook_dim", dimension, dimension)
        sample_rate = config.integer("sampling_rate", 24000, SAMPLE_RATE)
        ratios = read_ratios(config, "upsampling_ratios")
        bandwidths = config.numbers("target_bandwidths", (1.5, 3.0, 6.0, 12.0, 24.0), Range(0, 1e4))
        # As in `EncodecConfig.num_quantizers`: bits per second over bits per codebook and second.
        frame_rate = math.ceil(sample_rate / math.prod(ratios))
        bits = math.ceil(math.log2(cardinality))
        num_codebooks = int(1000 * bandwidths[-1] // (frame_rate * bits)) if bandwidths else 0
        if num_codebooks < 1:
            raise config.error(
                "target_bandwidths", f"is {shown(list(bandwidths))}, too low for a single codebook"
            )
        if num_codebooks not in CODEBOOKS:
            raise config.error("target_bandwidths", f"gives {num_codebooks} codebooks, not {CODEBOOKS}")
        return cls(
            sample_rate=sample_rate,
            channels=config.integer("audio_channels", 1, CHANNELS),
            dimension=dimension,
            num_filters=config.integer("num_filters", 32, WIDTH),
            num_residual_layers=config.integer("num_residual_layers", 1, FEW_LAYERS),
            ratios=ratios,
            kernel_size=config.integer("kernel_size", 7, KERNEL),
            last_kernel_size=config.integer("last_kernel_size", 7, KERNEL),
            residual_kernel_size=config.integer("residual_kernel_size", 3, KERNEL),
            dilation_base=config.integer("dilation_growth_rate", 2, DILATION_BASE),
            pad_mode=read_pad_mode(config),
            compress=config.integer("compress", 2, WIDTH),
            num_lstm_layers=config.integer("num_lstm_layers", 2, FEW_LAYERS),
            num_codebooks=num_codebooks,
            cardinality=cardinality,
        ).checked(config, ratios_key="upsampling_ratios", dilation_key="dilation_growth_rate")

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> EncodecConfig:
        """Read `xp.cfg` of a `compression_state_dict.bin`; absent keys take the builders' defaults."""
        config.require("compression_model", "encodec")
        codec, seanet, rvq = (config.section(name) for name in ("encodec", "seanet", "rvq"))
        codec.require("autoencoder", "seanet")
        codec.require("quantizer", "rvq")
        codec.require("causal", False, False)
        codec.require("renormalize", False, False)
        for key, supported, default in (
            ("causal", False, False),
            ("true_skip", True, True),
            ("activation", "ELU", "ELU"),
            ("activation_params", {"alpha": 1.0}, {"alpha": 1.0}),
            ("encoder", {}, {}),
        ):
            seanet.require(key, supported, default)
        seanet.section("decoder").require("final_activation", None, None)
        dimension = seanet.integer("dimension", 128, WIDTH)
        rvq.require("dimension", dimension, dimension)
        return cls(
            sample_rate=codec.integer("sample_rate", within=SAMPLE_RATE),
            channels=codec.integer("channels", within=CHANNELS),
            dimension=dimension,
            num_filters=seanet.integer("n_filters", 32, WIDTH),
            num_residual_layers=seanet.integer("n_residual_layers", 3, FEW_LAYERS),
            ratios=read_ratios(seanet, "ratios"),
            kernel_size=seanet.integer("kernel_size", 7, KERNEL),
            last_kernel_size=seanet.integer("last_kernel_size", 7, KERNEL),
            residual_kernel_size=seanet.integer("residual_kernel_size", 3, KERNEL),
            dilation_base=seanet.integer("dilation_base", 2, DILATION_BASE),
            pad_mode=read_pad_mode(seanet),
            compress=seanet.integer("compress", 2, WIDTH),
            num_lstm_layers=seanet.integer("lstm", 0, FEW_LAYERS),
            num_codebooks=rvq.integer("n_q", 8, CODEBOOKS),
            cardinality=rvq.integer("bins", 1024, CARDINALITY),
        ).checked(seanet, filters_key="n_filters")


def read_ratios(config: ConfigSection, key: str) -> tuple[int, ...]:
    """The value of `key`, if it has at least one ratio, else `CheckpointError`."""
    ratios = config.integers(key, (8, 5, 4, 2), RATIOS, most=12)
    if not ratios:
        raise config.error(key, "is empty")
    return ratios


def read_pad_mode(config: ConfigSection) -> str:
    """The value of `pad_mode`, if it is supported, else `CheckpointError`."""
    return config.choice("pad_mode", ("reflect", "constant"), "reflect")


class Conv1d(nn.Module):
    """A strided or dilated convolution: `[B, T, inputs]` → `[B, ceil(T / stride), outputs]`."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, pad_mode: str, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, stride=stride, dilation=dilation)
        self.pad_mode = pad_mode

    def make_stream(self) -> StreamingLayer:
        return StreamingConv1d(self.conv, self.pad_mode)


class ConvTranspose1d(nn.Module):
    """A transposed convolution: `[B, T, inputs]` → `[B, T * stride, outputs]`."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel_size, stride=stride)

    def make_stream(self) -> StreamingLayer:
        return StreamingConvTranspose1d(self.conv)


class ELU(nn.Module):
    def make_stream(self) -> StreamingLayer:
        return Stateless(elu)


class ResidualBlock(nn.Module):
    """`x + conv(elu(conv(elu(x))))` through `dim / compress` channels."""

    def __init__(self, config: EncodecConfig, dim: int, dilation: int) -> None:
        super().__init__()
        hidden = dim // config.compress
        self.block = [
            ELU(),
            Conv1d(dim, hidden, config.residual_kernel_size, config.pad_mode, dilation=dilation),
            ELU(),
            Conv1d(hidden, dim, 1, config.pad_mode),
        ]

    def make_stream(self) -> StreamingLayer:
        return StreamingResidual(StreamingSequential([layer.make_stream() for layer in self.block]))


class LSTM(nn.Module):
    """Stacked LSTMs with one skip connection around all of them."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = [nn.LSTM(dim, dim) for _ in range(num_layers)]

    def make_stream(self) -> StreamingLayer:
        return StreamingResidual(StreamingSequential([StreamingLSTM(layer) for layer in self.lstm]))


class Sequential(nn.Module):
    """Layers in a row, with the indices that audiocraft and transformers give them."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def make_stream(self) -> StreamingLayer:
        return StreamingSequential([layer.make_stream() for layer in self.layers])


def _residual_blocks(config: EncodecConfig, dim: int) -> list[nn.Module]:
    return [ResidualBlock(config, dim, config.dilation_base**j) for j in range(config.num_residual_layers)]


def _lstm(config: EncodecConfig, dim: int) -> list[nn.Module]:
    return [LSTM(dim, config.num_lstm_layers)] if config.num_lstm_layers else []


def build_encoder(config: EncodecConfig) -> Sequential:
    """Audio `[B, T, channels]` → latents `[B, ceil(T / hop_length), dimension]`."""
    dim = config.num_filters
    layers: list[nn.Module] = [Conv1d(config.channels, dim, config.kernel_size, config.pad_mode)]
    for ratio in reversed(config.ratios):
        layers += _residual_blocks(config, dim)
        layers += [ELU(), Conv1d(dim, 2 * dim, 2 * ratio, config.pad_mode, stride=ratio)]
        dim *= 2
    layers += _lstm(config, dim)
    layers += [ELU(), Conv1d(dim, config.dimension, config.last_kernel_size, config.pad_mode)]
    return Sequential(layers)


def build_decoder(config: EncodecConfig) -> Sequential:
    """Latents `[B, F, dimension]` → audio `[B, F * hop_length, channels]`."""
    dim = config.num_filters * 2 ** len(config.ratios)
    layers: list[nn.Module] = [Conv1d(config.dimension, dim, config.kernel_size, config.pad_mode)]
    layers += _lstm(config, dim)
    for ratio in config.ratios:
        layers += [ELU(), ConvTranspose1d(dim, dim // 2, 2 * ratio, ratio)]
        dim //= 2
        layers += _residual_blocks(config, dim)
    layers += [ELU(), Conv1d(dim, config.channels, config.last_kernel_size, config.pad_mode)]
    return Sequential(layers)


class DecoderStream:
    """One clip's decoder: codes in, audio out, chunk by chunk."""

    def __init__(self, codec: Encodec) -> None:
        self._quantizer, self._hop = codec.quantizer, codec.config.hop_length
        layers = codec.decoder.layers
        recurrent = max((i for i, layer in enumerate(layers) if isinstance(layer, LSTM)), default=0)
        # What depends on all codes before, and what depends on a few of the neighbouring frames.
        self._recurrent = StreamingSequential([layer.make_stream() for layer in layers[: recurrent + 1]])
        self._local = StreamingSequential([layer.make_stream() for layer in layers[recurrent + 1 :]])
        self.lookahead_frames = -(-self._local.delay(self._recurrent.delay(0)) // self._hop)
        """Frames after a frame that all of its audio depends on."""
        self._unwanted = 0
        """Samples to come that `warm_up` is about."""

    @property
    def state(self) -> list[mx.array]:
        """All that the next step goes on with. Evaluated, it can be used by another thread."""
        return self._recurrent.state + self._local.state

    def warm_up(self, codes: mx.array) -> None:
        """Read codes int `[B, K, n]` of what precedes the clip; their audio isn't made.

        The recurrent layers read all of them, the others as many frames as the clip's audio depends on.
        """
        # They reach as far back as ahead; and at their own beginning they pad what isn't one.
        needed = 2 * self.lookahead_frames + 2
        recent: mx.array | None = None
        frames, seen = codes.shape[2], 0
        for start in range(0, frames, CHUNK_FRAMES):
            chunk = self._quantizer.decode(codes[:, :, start : start + CHUNK_FRAMES])
            latents = self._recurrent.step(chunk, is_last=False)
            if latents is not None:
                seen += latents.shape[1]
                recent = latents if recent is None else mx.concatenate([recent, latents], axis=1)
                recent = recent[:, -needed:]
                mx.eval(recent)
        kept = 0
        if recent is not None:
            kept = recent.shape[1]
            audio = self._local.step(recent, is_last=False)
            self._unwanted = -(0 if audio is None else audio.shape[1])
        self._unwanted += (kept + frames - seen) * self._hop

    def step(self, codes: mx.array, is_last: bool) -> mx.array | None:
        """The audio `[B, C, m]` that is known after the next codes int `[B, K, n]`; None for none yet."""
        latents = self._recurrent.step(self._quantizer.decode(codes), is_last)
        audio = None if latents is None else self._local.step(latents, is_last)
        if audio is not None and self._unwanted:
            dropped = min(self._unwanted, audio.shape[1])
            self._unwanted -= dropped
            audio = audio[:, dropped:] if dropped < audio.shape[1] else None
        return None if audio is None else audio.transpose(0, 2, 1)


class Encodec(nn.Module):
    """A codec for audio of `channels` channels."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.decoder = build_decoder(config)
        self.quantizer = ResidualVectorQuantizer(config.num_codebooks, config.cardinality, config.dimension)
        self.num_codebooks = config.num_codebooks
        """How many of the codebooks `encode` uses: the first N."""

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def cardinality(self) -> int:
        return self.config.cardinality

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.config.sample_rate / self.config.hop_length

    def encode(self, audio: mx.array) -> mx.array:
        """Codes int32 `[B, K, F]` of `audio` float `[B, C, T]`, `F = ceil(T / hop_length)`."""
        require_mlx_threads()
        self.encoder.set_dtype(mx.float32)  # its weights may be as they are in the file
        stream, length = self.encoder.make_stream(), audio.shape[2]
        chunk = CHUNK_FRAMES * self.config.hop_length
        codes = []
        for start in range(0, length, chunk):
            end = start + chunk
            latents = stream.step(audio[:, :, start:end].transpose(0, 2, 1), end >= length)
            if latents is not None:
                codes.append(self.quantizer.encode(latents, self.num_codebooks))
                mx.eval(codes[-1])
        return _evaluated(mx.concatenate(codes, axis=2))

    def decode(self, codes: mx.array) -> mx.array:
        """Audio float32 `[B, C, F * hop_length]` of `codes` int `[B, K, F]`."""
        require_mlx_threads()
        stream, frames = self.make_decoder_stream(), codes.shape[2]
        audio = []
        for start in range(0, frames, CHUNK_FRAMES):
            end = start + CHUNK_FRAMES
            samples = stream.step(codes[:, :, start:end], end >= frames)
            if samples is not None:
                audio.append(samples)
                mx.eval(samples)
        return _evaluated(mx.concatenate(audio, axis=2))

    def make_decoder_stream(self) -> DecoderStream:
        return DecoderStream(self)

    def sanitize(self, weights: Weights) -> Weights:
        """Parameters from the names and layouts of audiocraft or transformers; weight norm is folded."""
        weights = rename(
            weights,
            [
                (r"^(encoder|decoder)\.model\.", r"\1.layers."),
                (r"^quantizer\.vq\.", "quantizer."),
                (r"\._codebook\.", ".codebook."),
                (r"\.convtr\.convtr\.", ".conv."),
                (r"\.conv\.conv\.", ".conv."),
            ],
        )
        pack_codebooks(weights, "quantizer", self.config.num_codebooks)
        fold_weight_norm(weights)
        transposed = {
            f"decoder.layers.{index}.conv.weight"
            for index, layer in enumerate(self.decoder.layers)
            if isinstance(layer, ConvTranspose1d)
        }
        for name in [name for name in weights if name.endswith(".conv.weight")]:
            check_tensor(weights, name, [None] * 3)
            # torch: [out, in, k], and [in, out, k] if transposed; MLX: [out, k, in] for both.
            weights[name] = weights[name].transpose((1, 2, 0) if name in transposed else (0, 2, 1))
        for name in [name for name in weights if re.search(r"\.lstm\.bias_ih_l\d+$", name)]:
            # torch has two biases that are only ever added
            other = name.replace("bias_ih", "bias_hh")
            check_tensor(weights, name, [None])
            check_tensor(weights, other, weights[name].shape)
            weights[name] = weights[name].astype(mx.float32) + weights.pop(other)
        return rename(
            weights,
            [
                (r"\.lstm\.weight_ih_l(\d+)$", r".lstm.\1.Wx"),
                (r"\.lstm\.weight_hh_l(\d+)$", r".lstm.\1.Wh"),
                (r"\.lstm\.bias_ih_l(\d+)$", r".lstm.\1.bias"),
            ],
        )


class InterleavedStereoCodec:
    """A mono codec applied to each of two channels, their codebooks interleaved: L0 R0 L1 R1 …

    As audiocraft's `InterleaveStereoCompressionModel`.
    """

    channels = 2

    def __init__(self, mono: Encodec) -> None:
        self.mono = mono

    @property
    def sample_rate(self) -> int:
        return self.mono.sample_rate

    @property
    def cardinality(self) -> int:
        return self.mono.cardinality

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.mono.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Of both channels together."""
        return 2 * self.mono.num_codebooks

    def encode(self, audio: mx.array) -> mx.array:
        """Codes int32 `[B, K, F]` of `audio` float `[B, 2, T]`."""
        batch, channels, length = audio.shape
        return _evaluated(interleave(self.mono.encode(audio.reshape(batch * channels, 1, length))))

    def decode(self, codes: mx.array) -> mx.array:
        """Audio float32 `[B, 2, F * hop_length]` of `codes` int `[B, K, F]`."""
        return _evaluated(merge_channels(self.mono.decode(deinterleave(codes))))

    def make_decoder_stream(self) -> StereoDecoderStream:
        return StereoDecoderStream(self.mono)


class StereoDecoderStream:
    """`DecoderStream` for two channels."""

    def __init__(self, mono: Encodec) -> None:
        self._mono = mono.make_decoder_stream()
        self.lookahead_frames = self._mono.lookahead_frames

    @property
    def state(self) -> list[mx.array]:
        """See `DecoderStream.state`."""
        return self._mono.state

    def warm_up(self, codes: mx.array) -> None:
        """See `DecoderStream.warm_up`."""
        self._mono.warm_up(deinterleave(codes))

    def step(self, codes: mx.array, is_last: bool) -> mx.array | None:
        """As `DecoderStream.step`: codes int `[B, K, n]` → audio float32 `[B, 2, m]`, or None."""
        audio = self._mono.step(deinterleave(codes), is_last)
        return None if audio is None else merge_channels(audio)


def interleave(codes: mx.array) -> mx.array:
    """`[2 * B, K / 2, F]`, left and right in turn, → `[B, K, F]`."""
    rows, num_codebooks, frames = codes.shape
    codes = codes.reshape(rows // 2, 2, num_codebooks, frames).transpose(0, 2, 1, 3)
    return codes.reshape(rows // 2, 2 * num_codebooks, frames)


def deinterleave(codes: mx.array) -> mx.array:
    """The inverse of `interleave`: `[B, K, F]` → `[2 * B, K / 2, F]`."""
    batch, num_codebooks, frames = codes.shape
    codes = codes.reshape(batch, num_codebooks // 2, 2, frames).transpose(0, 2, 1, 3)
    return codes.reshape(2 * batch, num_codebooks // 2, frames)


def merge_channels(audio: mx.array) -> mx.array:
    """`[2 * B, 1, T]`, left and right in turn, → `[B, 2, T]`."""
    return audio.reshape(-1, 2, audio.shape[2])


def _evaluated(array: mx.array) -> mx.array:
    """`array`, which other threads can use then: what isn't evaluated belongs to the thread that made it."""
    mx.eval(array)
    return array
