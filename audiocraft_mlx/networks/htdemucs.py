"""HTDemucs: source separation by two U-Nets, on spectrogram and waveform, with a transformer across both.

Rouard et al. 2022, "Hybrid Transformers for Music Source Separation"; equal to Demucs' `htdemucs`
(`demucs/htdemucs.py`, `hdemucs.py`, `demucs.py`, `transformer.py`, `spec.py`, `apply.py` with shifts=0).
Inside, arrays are `[B, F, T, channels]` in the spectral branch and `[B, T, channels]` in the temporal branch,
whose names have a `t` as in Demucs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import reduce

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.configs import (
    CHANNELS,
    HEADS,
    HIDDEN_WIDTH,
    LAYERS,
    SAMPLE_RATE,
    SCALE,
    ConfigSection,
    Range,
    shown,
)
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.weights import Weights, check_tensor, rename
from audiocraft_mlx.ops.activations import gelu, glu
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.convolution import conv1d, conv_transpose1d
from audiocraft_mlx.ops.linear import linear
from audiocraft_mlx.ops.normalization import group_norm, moments

DEPTH = 4
"""Layers of each encoder and decoder; each encoder layer doubles the channels."""
KERNEL, STRIDE = 8, 4
PADDING = KERNEL // 4
N_FFT = 4096
HOP = N_FFT // 4
# Frame j of the spectrogram is centered on sample (j + 1/2) * HOP, to be aligned with the temporal branch.
EDGE = (N_FFT - HOP) // 2
OVERLAP = 0.25
"""Overlap of neighboring segments as a fraction of their length: Demucs' default."""
EPS = 1e-5
# Of a configuration.
MAX_SOURCES = 16
MAX_SEGMENT_SECONDS = 60
FIRST_WIDTH = Range(1, 4096)
DIM = Range(4, 2**14)
DCONV_DEPTH = Range(1, 8)
MAX_PERIOD = Range(1, 1e9)


@dataclass(frozen=True)
class HTDemucsConfig:
    sources: tuple[str, ...]
    sample_rate: int
    channels: int
    """Of the audio."""
    segment: int
    """Samples that the network processes at once."""
    width: int
    """Channels of the first layer."""
    dconv_depth: int
    dconv_compress: int
    freq_emb_scale: float
    dim: int
    """Of the transformer, as all that follows."""
    hidden_dim: int
    num_layers: int
    """In each branch: self-attention and cross-attention in turn."""
    num_heads: int
    max_period: float
    pos_emb_scale: float

    @classmethod
    def from_demucs(cls, config: ConfigSection) -> HTDemucsConfig:
        """Read the arguments stored in a Demucs file; absent ones take the defaults of `HTDemucs`."""
        for key, supported, default in (
            ("channels_time", None, None),
            ("growth", 2, 2),
            ("nfft", N_FFT, N_FFT),
            ("cac", True, True),
            ("depth", DEPTH, DEPTH),
            ("rewrite", True, True),
            ("kernel_size", KERNEL, KERNEL),
            ("stride", STRIDE, STRIDE),
            ("context", 1, 1),
            ("context_enc", 0, 0),
            ("dconv_mode", 3, 1),
            ("t_emb", "sin", "sin"),
            ("t_norm_in", True, True),
            ("t_norm_in_group", False, False),
            ("t_group_norm", False, False),
            ("t_norm_first", True, True),
            ("t_norm_out", True, True),
            ("t_layer_scale", True, True),
            ("t_gelu", True, True),
            ("t_sin_random_shift", 0, 0),
            ("t_sparse_self_attn", False, False),
            ("t_sparse_cross_attn", False, False),
            ("t_cross_first", False, False),
            ("use_train_segment", True, True),
        ):
            config.require(key, supported, default)
        if "multi_freqs" in config:
            config.require("multi_freqs", [])
        if config.integer("norm_starts", DEPTH, Range(0, 100)) < DEPTH:
            raise config.error("norm_starts", f"is less than {DEPTH}; layers with norms are not supported")
        sources = config.strings("sources")
        # They are part of the names of files.
        if not 0 < len(set(sources)) == len(sources) <= MAX_SOURCES or not all(
            re.fullmatch(r"[A-Za-z0-9_-]{1,32}", source) for source in sources
        ):
            raise config.error(
                "sources", f"is {shown(list(sources))}, not up to {MAX_SOURCES} different names"
            )
        sample_rate = config.integer("samplerate", 44100, SAMPLE_RATE)
        seconds = Range(N_FFT / sample_rate, max(MAX_SEGMENT_SECONDS, N_FFT / sample_rate))
        samples = config.number("segment", 10, seconds) * sample_rate
        width = config.integer("channels", 48, FIRST_WIDTH)
        compress = config.integer("dconv_comp", 8, FIRST_WIDTH)
        if compress > width:
            raise config.error("dconv_comp", f"is more than the {width} channels of the first layer")
        dim = config.integer("bottom_channels", 0, DIM)
        hidden = int(dim * config.number("t_hidden_scale", 4.0, SCALE))
        if hidden not in HIDDEN_WIDTH:
            raise config.error("t_hidden_scale", f"gives {hidden} channels, not {HIDDEN_WIDTH}")
        num_heads = config.integer("t_heads", 8, HEADS)
        if dim % 4 or dim % num_heads:
            raise config.error("bottom_channels", f"is {dim}, not a multiple of 4 and of {num_heads} heads")
        return cls(
            sources=sources,
            sample_rate=sample_rate,
            channels=config.integer("audio_channels", 2, CHANNELS),
            # Rounded: the seconds are a fraction, which as a float may be just too small.
            segment=int(round(samples, 6)),
            width=width,
            dconv_depth=config.integer("dconv_depth", 2, DCONV_DEPTH),
            dconv_compress=compress,
            freq_emb_scale=config.number("freq_emb", 0.2, SCALE) * config.number("emb_scale", 10, SCALE),
            dim=dim,
            hidden_dim=hidden,
            num_layers=config.integer("t_layers", 5, LAYERS),
            num_heads=num_heads,
            max_period=config.number("t_max_period", 10000.0, MAX_PERIOD),
            pos_emb_scale=config.number("t_weight_pos_embed", 1.0, SCALE),
        )


def downsample(layer: nn.Conv1d, x: mx.array) -> mx.array:
    """Stride 4 over `F` of `[B, F, T, C]`, or over `T` of `[B, T, C]` (rounded up)."""
    if x.ndim == 4:
        weight = layer.weight[:, :, None]
        return mx.conv2d(x, weight, stride=(STRIDE, 1), padding=(PADDING, 0)) + layer.bias
    x = mx.pad(x, [(0, 0), (PADDING, PADDING + -x.shape[1] % STRIDE), (0, 0)])
    return conv1d(x, layer.weight, layer.bias, STRIDE, 1)


def upsample(layer: nn.ConvTranspose1d, x: mx.array, length: int) -> mx.array:
    """The inverse of `downsample`, to `length` frequencies or samples."""
    if x.ndim == 4:
        batch, frequencies, time, channels = x.shape
        columns = x.transpose(0, 2, 1, 3).reshape(batch * time, frequencies, channels)
        return upsample(layer, columns, length).reshape(batch, time, length, -1).transpose(0, 2, 1, 3)
    return conv_transpose1d(x, layer.weight, layer.bias, STRIDE)[:, PADDING : PADDING + length]


def conv_k3(layer: nn.Conv1d | nn.Conv2d, x: mx.array) -> mx.array:
    """Kernel size 3, padding 1: over `F` and `T` of `[B, F, T, C]`, or over `T` of `[B, T, C]`."""
    if x.ndim == 4:
        return mx.conv2d(x, layer.weight, padding=1) + layer.bias
    return conv1d(mx.pad(x, [(0, 0), (1, 1), (0, 0)]), layer.weight, layer.bias, 1, 1)


class DConv(nn.Module):
    """One layer of Demucs' `DConv`: a dilated residual branch of `hidden` channels over time, `[N, T, C]`."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv1d(channels, hidden, 3)
        self.squeeze_norm = nn.GroupNorm(1, hidden)
        self.expand = nn.Linear(hidden, 2 * channels)
        self.expand_norm = nn.GroupNorm(1, 2 * channels)
        self.scale = mx.zeros(channels)
        self.dilation = dilation

    def __call__(self, x: mx.array) -> mx.array:
        padded = mx.pad(x, [(0, 0), (self.dilation, self.dilation), (0, 0)])
        y = conv1d(padded, self.squeeze.weight, self.squeeze.bias, 1, self.dilation)
        y = gelu(group_norm(y, self.squeeze_norm.weight, self.squeeze_norm.bias, EPS))
        # LayerScale, folded into the norm: it scales the first half of the GLU, which is linear.
        scale = mx.concatenate([self.scale, mx.ones_like(self.scale)])
        norm = self.expand_norm
        return x + glu(group_norm(linear(self.expand, y), norm.weight * scale, norm.bias * scale, EPS))


def dconv_layers(config: HTDemucsConfig, channels: int) -> list[DConv]:
    hidden = channels // config.dconv_compress
    return [DConv(channels, hidden, 2**index) for index in range(config.dconv_depth)]


def apply_over_time(layers: list[DConv], x: mx.array) -> mx.array:
    """Apply `layers` over time, `[B, T, C]`, or for each frequency, `[B, F, T, C]`."""
    y = x.reshape(-1, *x.shape[-2:])
    for layer in layers:
        y = layer(y)
    return y.reshape(x.shape)


class EncoderLayer(nn.Module):
    """Downsamples by 4, in either branch."""

    def __init__(self, config: HTDemucsConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, KERNEL)
        self.dconv = dconv_layers(config, outputs)
        self.rewrite = nn.Linear(outputs, 2 * outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return glu(linear(self.rewrite, apply_over_time(self.dconv, gelu(downsample(self.conv, x)))))


class DecoderLayer(nn.Module):
    """Upsamples by 4, after adding the encoder's `skip`."""

    def __init__(self, config: HTDemucsConfig, inputs: int, outputs: int, spectral: bool, last: bool) -> None:
        super().__init__()
        self.rewrite = (nn.Conv2d if spectral else nn.Conv1d)(inputs, 2 * inputs, 3)
        self.dconv = dconv_layers(config, inputs)
        self.conv = nn.ConvTranspose1d(inputs, outputs, KERNEL)
        self.last = last

    def __call__(self, x: mx.array, skip: mx.array, length: int) -> mx.array:
        y = apply_over_time(self.dconv, glu(conv_k3(self.rewrite, x + skip)))
        y = upsample(self.conv, y, length)
        return y if self.last else gelu(y)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.num_heads = num_heads

    def __call__(self, x: mx.array, source: mx.array) -> mx.array:
        batch, length, _ = x.shape
        q = linear(self.q_proj, x).reshape(batch, length, self.num_heads, -1).transpose(0, 2, 1, 3)
        kv = linear(self.kv_proj, source).reshape(batch, source.shape[1], 2, self.num_heads, -1)
        k, v = kv.transpose(2, 0, 3, 1, 4)
        return linear(self.out_proj, attention(q, k, v, None))


class Block(nn.Module):
    """A layer of the transformer: self-attention, or cross-attention to the other branch if `cross`."""

    def __init__(self, config: HTDemucsConfig, cross: bool) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm = nn.LayerNorm(dim, EPS)
        if cross:
            self.source_norm = nn.LayerNorm(dim, EPS)
        self.attention = Attention(dim, config.num_heads)
        self.attention_scale = mx.zeros(dim)
        self.ff_norm = nn.LayerNorm(dim, EPS)
        self.ff_in = nn.Linear(dim, config.hidden_dim)
        self.ff_out = nn.Linear(config.hidden_dim, dim)
        self.ff_scale = mx.zeros(dim)
        self.norm = nn.GroupNorm(1, dim)
        self.cross = cross

    def __call__(self, x: mx.array, other: mx.array) -> mx.array:
        queries = self.attention_norm(x)
        source = self.source_norm(other) if self.cross else queries
        x = x + self.attention_scale * self.attention(queries, source)
        y = linear(self.ff_out, linear(self.ff_in, x, norm=self.ff_norm, gelu=True))
        return group_norm(x + self.ff_scale * y, self.norm.weight, self.norm.bias, EPS)


class CrossTransformer(nn.Module):
    """The same kinds of layers for both branches; every second layer is cross-attention between them."""

    def __init__(self, config: HTDemucsConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_in = nn.LayerNorm(config.dim, EPS)
        self.norm_in_t = nn.LayerNorm(config.dim, EPS)
        self.layers = [Block(config, index % 2 == 1) for index in range(config.num_layers)]
        self.layers_t = [Block(config, index % 2 == 1) for index in range(config.num_layers)]

    def __call__(self, x: mx.array, xt: mx.array) -> tuple[mx.array, mx.array]:
        batch, frequencies, time, dim = x.shape
        period, scale = self.config.max_period, self.config.pos_emb_scale
        x = self.norm_in(x) + scale * sin_embedding_2d(frequencies, time, dim, period)
        x = x.transpose(0, 2, 1, 3).reshape(batch, time * frequencies, dim)
        xt = self.norm_in_t(xt) + scale * sin_embedding_1d(xt.shape[1], dim, period)
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            x, xt = layer(x, xt), layer_t(xt, x)
        return x.reshape(batch, time, frequencies, dim).transpose(0, 2, 1, 3), xt


def sin_embedding_1d(length: int, dim: int, period: float) -> mx.array:
    """float32 `[length, dim]`: all cosines, then all sines (Demucs' `create_sin_embedding`)."""
    half = dim // 2
    phase = np.arange(length)[:, None] / period ** (np.arange(half) / (half - 1))
    return mx.array(np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32))


def sin_embedding_2d(frequencies: int, time: int, dim: int, period: float) -> mx.array:
    """float32 `[frequencies, time, dim]` (Demucs' `create_2d_sin_embedding`).

    The first half of the channels for the time, the other for the frequency, sines and cosines interleaved.
    """
    half = dim // 2

    def along(length: int) -> np.ndarray:
        phase = np.arange(length)[:, None] * np.exp(np.arange(0, half, 2) * -(math.log(period) / half))
        return np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(length, half)

    shape = (frequencies, time, half)
    positions = np.concatenate(
        [np.broadcast_to(along(time), shape), np.broadcast_to(along(frequencies)[:, None], shape)], axis=-1
    )
    return mx.array(positions.astype(np.float32))


def stft(audio: mx.array) -> mx.array:
    """`[B, channels, samples]` → `[B, F, T, channels * 2]`: real and imaginary parts as channels.

    `F = N_FFT / 2`, without the Nyquist frequency; `T = ceil(samples / HOP)`.
    """
    batch, channels, length = audio.shape
    frames = -(-length // HOP)
    right = EDGE + frames * HOP - length
    x = mx.concatenate([audio[..., EDGE:0:-1], audio, audio[..., -2 : -2 - right : -1]], axis=-1)
    size = x.shape[-1]
    x = mx.as_strided(x, (batch, channels, frames, N_FFT), (channels * size, size, HOP, 1))
    z = mx.fft.rfft(x * mx.array(_hann() / math.sqrt(N_FFT), mx.float32))[..., :-1]
    parts = mx.stack([mx.real(z), mx.imag(z)], axis=2)
    return parts.transpose(0, 4, 3, 1, 2).reshape(batch, N_FFT // 2, frames, 2 * channels)


def istft(x: mx.array, length: int) -> mx.array:
    """The inverse of `stft`: `[B, F, T, channels * 2]` → `[B, channels, length]`."""
    batch, bins, frames, channels = x.shape
    channels //= 2
    x = x.reshape(batch, bins, frames, channels, 2).transpose(0, 3, 2, 1, 4)
    z = x.reshape(batch, channels, frames, 2 * bins).view(mx.complex64)
    # The squared windows, of which four overlap everywhere, add up to 3/2.
    window = mx.array(_hann() * (math.sqrt(N_FFT) / 1.5), mx.float32)
    hops = (mx.fft.irfft(z, n=N_FFT) * window).reshape(batch, channels, frames, -1, HOP)
    count = hops.shape[3]
    overlapped = reduce(
        mx.add,
        (
            mx.pad(hops[:, :, :, hop], [(0, 0), (0, 0), (hop, count - 1 - hop), (0, 0)])
            for hop in range(count)
        ),
    )
    return overlapped.reshape(batch, channels, -1)[..., EDGE : EDGE + length]


def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)


def standardize(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Each row of the batch with mean 0 and standard deviation 1, and the original mean and deviation."""
    mean, variance = moments(x)
    count = x.size // x.shape[0]
    std = mx.sqrt(variance * (count / (count - 1)))
    return (x - mean) / (EPS + std), mean, std


class HTDemucs(nn.Module):
    def __init__(self, config: HTDemucsConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**index for index in range(DEPTH)]
        audio, stems = config.channels, config.channels * len(config.sources)
        inputs = widths[:-1]
        self.encoder = [
            EncoderLayer(config, *shape) for shape in zip([2 * audio, *inputs], widths, strict=True)
        ]
        self.tencoder = [EncoderLayer(config, *shape) for shape in zip([audio, *inputs], widths, strict=True)]
        self.freq_emb = nn.Embedding(N_FFT // 2 // STRIDE, config.width)
        bottom = widths[-1]
        self.channel_upsampler = nn.Linear(bottom, config.dim)
        self.channel_upsampler_t = nn.Linear(bottom, config.dim)
        self.crosstransformer = CrossTransformer(config)
        self.channel_downsampler = nn.Linear(config.dim, bottom)
        self.channel_downsampler_t = nn.Linear(config.dim, bottom)
        self.decoder, self.tdecoder = (
            [
                DecoderLayer(config, widths[index], [outputs, *widths][index], spectral, index == 0)
                for index in reversed(range(DEPTH))
            ]
            for outputs, spectral in ((2 * stems, True), (stems, False))
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the stems."""
        return self.config.sources

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    def __call__(self, mix: mx.array) -> mx.array:
        """Stems `[B, sources, channels, segment]` of one segment, `mix` float `[B, channels, segment]`."""
        batch, _, length = mix.shape
        x, mean, std = standardize(stft(mix))
        xt, mean_t, std_t = standardize(mix.transpose(0, 2, 1))
        skips: list[tuple[mx.array, mx.array]] = []
        lengths: list[tuple[int, int]] = []
        for down, down_t in zip(self.encoder, self.tencoder, strict=True):
            lengths.append((x.shape[1], xt.shape[1]))
            x, xt = down(x), down_t(xt)
            if not skips:
                x = x + self.config.freq_emb_scale * self.freq_emb.weight[:, None]
            skips.append((x, xt))
        x, xt = self.crosstransformer(linear(self.channel_upsampler, x), linear(self.channel_upsampler_t, xt))
        x, xt = linear(self.channel_downsampler, x), linear(self.channel_downsampler_t, xt)
        for up, up_t in zip(self.decoder, self.tdecoder, strict=True):
            (skip, skip_t), (frequencies, samples) = skips.pop(), lengths.pop()
            x, xt = up(x, skip, frequencies), up_t(xt, skip_t, samples)
        stems = istft(x * std + mean, length) + (xt * std_t + mean_t).transpose(0, 2, 1)
        return stems.reshape(batch, len(self.sources), self.channels, length)

    def separate(self, audio: mx.array) -> mx.array:
        """Stems float32 `[B, sources, channels, T]` of `audio` float `[B, channels, T]` at `sample_rate`.

        Segment by segment and row by row: the network's memory depends neither on the length nor on the
        batch. Neighboring segments overlap by `OVERLAP` and are crossfaded.
        """
        batch, channels, length = audio.shape
        segment = self.config.segment
        # A triangle; where segments overlap, the weights are normalized to a sum of 1.
        fade = np.minimum(np.arange(1, segment + 1), np.arange(segment, 0, -1)).astype(np.float32)
        segments = [
            (start, min(start + segment, length)) for start in range(0, length, int((1 - OVERLAP) * segment))
        ]
        total = np.zeros(length, np.float32)
        for start, end in segments:
            total[start:end] += fade[: end - start]
        stems = mx.zeros((batch, len(self.sources), channels, length))
        for row in range(batch):
            for start, end in segments:
                separated = self._separate_segment(audio[row : row + 1], start, end)
                weight = mx.array(fade[: end - start] / total[start:end])
                stems[row : row + 1, :, :, start:end] += weight * separated
                mx.eval(stems)
        return stems

    def _separate_segment(self, audio: mx.array, start: int, end: int) -> mx.array:
        """Stems of the samples `start` to `end`, centered in a segment of the audio around them."""
        missing = self.config.segment - (end - start)
        first = start - missing // 2
        last = first + self.config.segment
        inside = audio[..., max(0, first) : last]
        before = max(0, -first)
        after = self.config.segment - before - inside.shape[-1]
        stems = self(mx.pad(inside, [(0, 0), (0, 0), (before, after)]))
        return stems[..., start - first : end - first]

    @staticmethod
    def sanitize(weights: Weights) -> Weights:
        """Parameters from Demucs' names and layouts."""
        weights = rename(
            weights,
            [
                (r"\.dconv\.layers\.(\d+)\.0\.", r".dconv.\1.squeeze."),
                (r"\.dconv\.layers\.(\d+)\.1\.", r".dconv.\1.squeeze_norm."),
                (r"\.dconv\.layers\.(\d+)\.3\.", r".dconv.\1.expand."),
                (r"\.dconv\.layers\.(\d+)\.4\.", r".dconv.\1.expand_norm."),
                (r"\.dconv\.layers\.(\d+)\.6\.", r".dconv.\1."),
                (r"\.conv_tr\.", ".conv."),
                (r"^freq_emb\.embedding\.", "freq_emb."),
                (r"\.norm1\.", ".attention_norm."),
                (r"\.norm_out\.", ".norm."),
                (r"\.gamma_1\.scale$", ".attention_scale"),
                (r"\.gamma_2\.scale$", ".ff_scale"),
                (r"\.linear1\.", ".ff_in."),
                (r"\.linear2\.", ".ff_out."),
                (r"\.(self|cross)_attn\.in_proj_", r".\1_attn.in_proj."),
                # `norm2` is for the feed-forward in self-attention layers, for the source in others.
                (r"(layers(?:_t)?\.\d*[13579])\.norm2\.", r"\1.source_norm."),
                (r"\.norm[23]\.", ".ff_norm."),
                (r"\.(self|cross)_attn\.", ".attention."),
            ],
        )
        for name in list(weights):
            if name.endswith(".conv.weight") and "decoder." in name:
                if weights[name].ndim < 3:
                    check_tensor(weights, name, [None] * 3)
                weights[name] = weights[name].swapaxes(0, 1)  # torch: [in, out, k]
            if weights[name].ndim > 2:
                weights[name] = _channels_last(weights[name])
            if ".attention.in_proj." in name:
                sizes = weights[name].shape
                if not sizes or sizes[0] % 3:
                    raise CheckpointError(f"{name} has shape {list(sizes)}, not a multiple of 3 rows")
                q, k, v = mx.split(weights.pop(name), 3)
                weights[name.replace("in_proj", "q_proj")] = q
                weights[name.replace("in_proj", "kv_proj")] = mx.concatenate([k, v])
        return weights


def _channels_last(weight: mx.array) -> mx.array:
    """torch's `[out, in, kernel…]` → `[out, kernel…, in]`, without kernel axes of length 1."""
    weight = mx.moveaxis(weight, 1, -1)
    return weight.squeeze([axis for axis in range(1, weight.ndim - 1) if weight.shape[axis] == 1])
