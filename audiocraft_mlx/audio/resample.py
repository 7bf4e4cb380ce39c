"""Converts sample rates and numbers of channels.

Equal to audiocraft's `convert_audio` (`data/audio_utils.py`), whose resampling is julius' `resample_frac`: a
windowed sinc filter, after Julius O. Smith (https://ccrma.stanford.edu/~jos/resample/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_int

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
"""Hz. The filters' size grows with the ratio of two rates."""
# julius' defaults: zero crossings on each side of the filter, and its cutoff relative to the lower rate's
# Nyquist frequency.
_ZEROS = 24
_ROLLOFF = 0.945
# Outputs per matrix: with few the products are slow, with many most of a matrix is zero.
_MAX_OUTPUTS = 512
# Input samples processed at a time.
_BLOCK = 1 << 20


def convert_audio(wav: np.ndarray, from_rate: int, to_rate: int, channels: int) -> np.ndarray:
    """`wav`, float `[..., C, T]` at `from_rate`, as float32 `[..., channels, T * to_rate // from_rate]`.

    Raises:
        UsageError: a rate isn't an integer from 1000 to 768000 Hz, or `wav` has too few channels.
    """
    return convert_audio_channels(resample(wav, from_rate, to_rate), channels)


def convert_audio_channels(wav: np.ndarray, channels: int) -> np.ndarray:
    """`[..., C, T]` → `[..., channels, T]`: the mean for 1 channel, mono repeated, else the first `channels`.

    The result may be a (read-only) view of `wav`.

    Raises:
        UsageError: `wav` has more than one channel, but fewer than `channels`.
    """
    *shape, given, length = wav.shape
    if given == channels:
        return wav
    if channels == 1:
        return wav.mean(axis=-2, keepdims=True)
    if given == 1:
        return np.broadcast_to(wav, (*shape, channels, length))
    if given < channels:
        raise UsageError(
            f"audio with {given} channels can't be made {channels}; give it with 1 or {channels}"
        )
    return wav[..., :channels, :]


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """`wav`, float `[..., T]` at `from_rate`, as float32 `[..., T * to_rate // from_rate]` at `to_rate`.

    Its first and last samples are repeated beyond its ends. At equal rates the result may be `wav` itself.

    Raises:
        UsageError: a rate isn't an integer from 1000 to 768000 Hz.
    """
    for rate in (from_rate, to_rate):
        validate_int(
            "a sample rate",
            rate,
            f"an integer from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz",
            lambda hertz: MIN_SAMPLE_RATE <= hertz <= MAX_SAMPLE_RATE,
        )
    samples = np.asarray(wav, np.float32)
    if from_rate == to_rate:
        return samples
    *shape, length = samples.shape
    divisor = math.gcd(from_rate, to_rate)
    filters = _filters(from_rate // divisor, to_rate // divisor)
    resampled = _resample(samples.reshape(math.prod(shape), length), filters)
    length = length * to_rate // from_rate
    return resampled[:, :length].reshape(*shape, length)


@dataclass(frozen=True)
class _Filters:
    """Maps one period of `inputs` samples, with their neighbours, to one of `outputs` samples."""

    inputs: int
    outputs: int
    reach: int
    """The first matrix starts this many input samples before the period."""
    matrices: tuple[tuple[int, np.ndarray], ...]
    """For consecutive outputs: the first input, counted from `-reach`, and a matrix `[inputs, outputs]`."""


@lru_cache(maxsize=8)
def _filters(old: int, new: int) -> _Filters:
    """The filters from rate `old` to rate `new`, which have no common divisor.

    The filters of neighbouring outputs overlap. One matrix makes as many outputs as span one filter's length
    of inputs, so that about half of it is not zero.
    """
    rate = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZEROS * old / rate)
    outputs_per_matrix = min(math.ceil(2 * reach * new / old), _MAX_OUTPUTS)
    periods = math.ceil(outputs_per_matrix / new)
    matrices = []
    for first in range(0, periods * new, outputs_per_matrix):
        outputs = np.arange(first, min(first + outputs_per_matrix, periods * new))
        begin, end = first * old // new, int(outputs[-1]) * old // new + 2 * reach + 2
        inputs = np.arange(begin, end)[:, None] - reach
        # In float32 and relative to the output's own period, as in the reference: between rates without a
        # large common divisor its times are inexact (1e-3 of the signal), and models expect its result.
        phase = (-(outputs % new) / new).astype(np.float32)
        position = (inputs - outputs // new * old).astype(np.float32) / np.float32(old)
        time = np.clip((phase + position) * np.float32(rate), -_ZEROS, _ZEROS)
        taps = np.sinc(time) * np.cos(time * np.float32(math.pi / _ZEROS / 2)) ** 2
        matrices.append((begin, taps / taps.sum(axis=0)))
    return _Filters(periods * old, periods * new, reach, tuple(matrices))


def _resample(rows: np.ndarray, filters: _Filters) -> np.ndarray:
    """`[N, T]` → `[N, T']`, in whole periods: T' may be longer than the result."""
    count, length = rows.shape
    periods = math.ceil(length / filters.inputs)
    periods_per_block = max(1, _BLOCK // filters.inputs)
    outputs = np.empty((count, periods, filters.outputs), np.float32)
    begin, last = filters.matrices[-1]
    beyond = begin + last.shape[0] - filters.inputs
    for first in range(0, periods, periods_per_block):
        block = outputs[:, first : first + periods_per_block]
        start = first * filters.inputs - filters.reach
        indices = np.arange(start, start + block.shape[1] * filters.inputs + beyond)
        inputs = rows.take(indices, axis=1, mode="clip")
        done = 0
        for offset, matrix in filters.matrices:
            window = as_strided(
                inputs[:, offset:],
                (count, block.shape[1], matrix.shape[0]),
                (inputs.strides[0], filters.inputs * inputs.itemsize, inputs.itemsize),
                writeable=False,
            )
            np.matmul(window, matrix, out=block[:, :, done : done + matrix.shape[1]])
            done += matrix.shape[1]
    return outputs.reshape(count, periods * filters.outputs)
