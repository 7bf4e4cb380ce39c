"""A small EnCodec in torch, for training: transformers' network with our own quantizer and losses.

Each codebook is about one stem of a song: drums, bass, lead or harmony, whose codes hardly depend on the
others. The latents have a part for each, and codebooks are 0 in the other parts: it is EnCodec's residual
quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import processes
import torch
import torch.nn.functional as F
from song import STEMS
from torch import nn
from torch.nn.utils import parametrize
from transformers import EncodecConfig, EncodecModel

SAMPLE_RATE, HOP = 32000, 640
CODEBOOKS, CODES, DIMENSION, FILTERS = 8, 512, 96, 24
BLOCK = DIMENSION // len(STEMS)
"""Of the latents, for each stem: codebook `k` is of stem `k % len(STEMS)`."""


@cache
def has_bfloat16() -> bool:
    """Whether the CPU has instructions for it; emulated it is slower than float32."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and any(flag in cpu.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


def make_encodec() -> EncodecModel:
    """transformers' network without its weight norm, which only makes training slower here."""
    model = EncodecModel(
        EncodecConfig(
            sampling_rate=SAMPLE_RATE,
            num_filters=FILTERS,
            hidden_size=DIMENSION,
            codebook_dim=DIMENSION,
            codebook_size=CODES,
            upsampling_ratios=[8, 5, 4, 4],
            num_lstm_layers=1,
            use_causal_conv=False,
            use_conv_shortcut=False,
            pad_mode="reflect",
            target_bandwidths=[SAMPLE_RATE / HOP * math.log2(CODES) * CODEBOOKS / 1000],
        )
    )
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        _initialize(module)
    return model


@torch.no_grad()
def _initialize(layer: nn.Module) -> None:
    """Weights that keep the signal's level; with torch's own each layer's output is 5 dB below its input."""
    if isinstance(layer, nn.Conv1d):
        inputs = layer.in_channels * layer.kernel_size[0]
    elif isinstance(layer, nn.ConvTranspose1d):
        inputs = layer.in_channels * layer.kernel_size[0] / layer.stride[0]
    else:
        return
    # From the level of audio to that of the layers, back again, and between them what ELU takes.
    level = 5.0 if layer.in_channels == 1 else 0.1 if layer.out_channels == 1 else 1.2
    layer.weight.normal_(0, level / math.sqrt(inputs))
    layer.bias.zero_()


def _conv(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    conv = layer.conv
    padding = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    if padding:
        x = F.pad(x, (padding - padding // 2, padding // 2), mode="reflect")
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, dilation=conv.dilation)


def _conv_transpose(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # As a convolution with one output channel per phase: exact, faster, and correct in bfloat16, where
    # the gradient of torch 2.13's own transposed convolution is wrong.
    conv = layer.conv
    stride = conv.stride[0]
    inputs, outputs, kernel = conv.weight.shape
    weight = torch.stack([conv.weight[:, :, stride:], conv.weight[:, :, :stride]], -1)
    y = F.conv1d(F.pad(x, (1, 1)), weight.permute(1, 2, 0, 3).reshape(outputs * stride, inputs, 2))
    batch, _, length = y.shape
    y = y.view(batch, outputs, stride, length).permute(0, 1, 3, 2).reshape(batch, outputs, length * stride)
    padding = kernel - stride
    y = y + conv.bias.to(y.dtype)[:, None]
    return y[..., padding - padding // 2 : y.shape[-1] - padding // 2]


def run_layers(layers: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Apply an encoder's or decoder's layers, in a form that trains fast on a CPU."""
    for layer in layers:
        match type(layer).__name__:
            case "EncodecConv1d" if layer.conv.out_channels == 1:
                # The output layer: the rounding of bfloat16 samples would be audible.
                with torch.autocast("cpu", enabled=False):
                    x = _conv(layer, x.float())
            case "EncodecConv1d":
                x = _conv(layer, x)
            case "EncodecConvTranspose1d":
                x = _conv_transpose(layer, x)
            case "EncodecResnetBlock":
                x = x + _conv(layer.block[3], F.elu(_conv(layer.block[1], F.elu(x))))
            case "EncodecLSTM":
                steps = x.permute(2, 0, 1)
                x = (layer.lstm(steps)[0] + steps).permute(1, 2, 0)
            case "ELU":
                x = F.elu(x)
            case name:
                raise TypeError(name)
    return x


class Quantizer(nn.Module):
    """Residual vector quantizer with EMA codebook updates (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self) -> None:
        super().__init__()
        shape = (CODEBOOKS, CODES, BLOCK)
        self.register_buffer("codebooks", torch.zeros(shape))
        self.register_buffer("sizes", torch.ones(shape[:2]))
        self.register_buffer("sums", torch.zeros(shape))

    @staticmethod
    def nearest(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        return (2 * x @ codebook.T - codebook.pow(2).sum(1)).argmax(1)

    def init_kmeans(self, latents: torch.Tensor, rounds: int = 12) -> None:
        """Initialize one codebook after the other with k-means of `latents` `[n, DIMENSION]`."""
        residuals = list(latents.clone().split(BLOCK, 1))
        for k in range(CODEBOOKS):
            residual = residuals[k % len(STEMS)]
            codebook = residual[torch.randperm(len(residual))[:CODES]].clone()
            for _ in range(rounds):
                codes = self.nearest(residual, codebook)
                counts = torch.bincount(codes, minlength=CODES).float()
                sums = torch.zeros_like(codebook).index_add_(0, codes, residual)
                fresh = residual[torch.randint(len(residual), (CODES,))]
                codebook = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
            self.codebooks[k], self.sizes[k], self.sums[k] = codebook, 1.0, codebook
            residuals[k % len(STEMS)] = residual - codebook[self.nearest(residual, codebook)]

    def forward(
        self, latents: torch.Tensor, update: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantized latents `[B, D, F]` (straight-through gradients), commitment loss, codes `[B, K, F]`.

        `update` moves the codebooks towards the latents.
        """
        batch, dimension, frames = latents.shape
        flat = latents.permute(0, 2, 1).reshape(-1, dimension).float()
        parts = flat.split(BLOCK, 1)
        totals = [torch.zeros_like(part) for part in parts]
        commitment, codes = torch.zeros(()), []
        for k in range(CODEBOOKS):
            stem = k % len(STEMS)
            residual = parts[stem].detach() - totals[stem]
            chosen = self.nearest(residual, self.codebooks[k])
            entries = self.codebooks[k][chosen]
            commitment = commitment + F.mse_loss(parts[stem] - totals[stem], entries)
            if update:
                self._ema_update(k, chosen, residual)
            codes.append(chosen.view(batch, frames))
            totals[stem] = totals[stem] + entries
        quantized = flat + (torch.cat(totals, 1) - flat).detach()
        return quantized.view(batch, frames, dimension).permute(0, 2, 1), commitment, torch.stack(codes, 1)

    @torch.no_grad()
    def _ema_update(self, k: int, chosen: torch.Tensor, residual: torch.Tensor, decay: float = 0.99) -> None:
        counts = torch.bincount(chosen, minlength=CODES).float()
        sums = torch.zeros_like(self.sums[k]).index_add_(0, chosen, residual)
        processes.sum_up([counts, sums])
        self.sizes[k].mul_(decay).add_(counts, alpha=1 - decay)
        self.sums[k].mul_(decay).add_(sums, alpha=1 - decay)
        dead = self.sizes[k] < 0.03
        if dead.any():
            fresh = residual[torch.randint(len(residual), (int(dead.sum()),))]
            self.sizes[k][dead], self.sums[k][dead] = 0.3, 0.3 * fresh
        self.codebooks[k] = self.sums[k] / self.sizes[k][:, None]


class Codec(nn.Module):
    """Encoder, quantizer and decoder; audio `[B, samples]`."""

    def __init__(self) -> None:
        super().__init__()
        self.encodec = make_encodec()
        self.quantizer = Quantizer()

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Latents `[B, DIMENSION, frames]`."""
        return run_layers(self.encodec.encoder.layers, audio[:, None])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return run_layers(self.encodec.decoder.layers, latents)[:, 0].float()

    def encode_stems(self, stems: torch.Tensor) -> torch.Tensor:
        """Latents `[B, DIMENSION, frames]` of stems `[STEMS * B, samples]`: of each its own part.

        Those of one song follow each other.
        """
        return own_parts(self.encode(stems))

    @torch.no_grad()
    def codes(self, audio: torch.Tensor) -> torch.Tensor:
        return self.quantizer(self.encode(audio).float())[2]

    def network_parameters(self) -> list[nn.Parameter]:
        return [*self.encodec.encoder.parameters(), *self.encodec.decoder.parameters()]


def own_parts(latents: torch.Tensor) -> torch.Tensor:
    """`[B, DIMENSION, frames]` of latents of stems `[STEMS * B, DIMENSION, frames]`: of each its own part."""
    latents = latents.float().unflatten(0, (-1, len(STEMS)))
    parts = [latents[:, i, i * BLOCK : (i + 1) * BLOCK] for i in range(len(STEMS))]
    return torch.cat(parts, 1)


def mel_filters(n_fft: int, mels: int, low: float = 30.0, high: float = 16000.0) -> torch.Tensor:
    """Triangular filters `[mels, bins]`, each with sum 1."""
    points = 700 * (
        10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (low, high)), mels + 2) / 2595) - 1
    )
    bins = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    filters = filters[filters.sum(1) > 0]
    return torch.tensor(filters / filters.sum(1, keepdims=True), dtype=torch.float32)


class SpectralLoss:
    """Losses of audio `[B, samples]`: log-mel distance (nats), spectral convergence, waveform error."""

    RESOLUTIONS = ((2048, 512, 96), (512, 128, 48), (128, 64, 20))
    FLOOR = 2e-4  # about 74 dB below a full-scale sine

    def __init__(self) -> None:
        self.windows = [torch.hann_window(n) for n, _, _ in self.RESOLUTIONS]
        self.filters = [mel_filters(n, mels) for n, _, mels in self.RESOLUTIONS]

    def __call__(
        self, predicted: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mel = spectral = torch.zeros(())
        for (n, hop, _), window, filters in zip(self.RESOLUTIONS, self.windows, self.filters, strict=True):
            a, b = (
                (
                    torch.view_as_real(torch.stft(x, n, hop, window=window, return_complex=True))
                    .pow(2)
                    .sum(-1)
                    + 1e-10
                )
                .sqrt()
                .div(window.sum())
                for x in (predicted, target)
            )
            log_a, log_b = (torch.log(filters @ x + self.FLOOR) for x in (a, b))
            mel = mel + (log_a - log_b).abs().mean()
            distance = (a - b).pow(2).sum((1, 2)).add(1e-9).sqrt()
            spectral = spectral + (distance / (b.pow(2).sum((1, 2)).sqrt() + 1e-3)).mean()
        wave = ((predicted - target).pow(2).sum(1) / (target.pow(2).sum(1) + 1.0)).mean()
        return mel / 3, spectral / 3, wave


def si_sdr(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, for each row (Le Roux et al. 2019)."""
    scale = (predicted * target).sum(1, keepdim=True) / target.pow(2).sum(1, keepdim=True)
    scaled = scale * target
    return 10 * torch.log10(scaled.pow(2).sum(1) / (predicted - scaled).pow(2).sum(1))
