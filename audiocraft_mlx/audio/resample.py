"""Another sample rate, another number of channels.

Equal to audiocraft's `convert_audio` (`data/audio_utils.py`), whose resampling is julius' `resample_frac`: a
sinc filter under a squared cosine, after Julius O. Smith (https://ccrma.stanford.edu/~jos/resample/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_int

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
"""Hz. The filters' size grows with the ratio of two rates."""
# The filter reaches so many zero crossings to each side, and lets pass so much of the lower rate's band.
_ZEROS = 24
_ROLLOFF = 0.945
# Outputs that share a matrix: few make slow products, and many waste them on inputs beyond a filter's reach.
_MOST_OUTPUTS = 512
# Input samples that are worked on at a time.
_BLOCK = 1 << 20


def convert_audio(wav: mx.array | np.ndarray, from_rate: int, to_rate: int, channels: int) -> mx.array:
    """`wav`, float `[..., C, T]` at `from_rate`, as float32 `[..., channels, T * to_rate // from_rate]`.

    Raises `UsageError` for a rate that is no whole number of hertz from 1000 to 768000, or too few channels.
    """
    return convert_audio_channels(resample(wav, from_rate, to_rate), channels)


def convert_audio_channels(wav: mx.array, channels: int) -> mx.array:
    """`[..., C, T]` → `[..., channels, T]`: the mean for one channel, copies of one, else the first ones.

    Raises `UsageError` if there are fewer than asked for and more than one.
    """
    *shape, given, length = wav.shape
    if given == channels:
        return wav
    if channels == 1:
        return wav.mean(axis=-2, keepdims=True)
    if given == 1:
        return mx.broadcast_to(wav, (*shape, channels, length))
    if given < channels:
        raise UsageError(
            f"audio with {given} channels can't be made {channels}; give it with 1 or {channels}"
        )
    return wav[..., :channels, :]


def resample(wav: mx.array | np.ndarray, from_rate: int, to_rate: int) -> mx.array:
    """`wav`, float `[..., T]` at `from_rate`, as float32 `[..., T * to_rate // from_rate]` at `to_rate`.

    Outside of `wav` its first and last samples are held. Raises `UsageError` as `convert_audio`.
    """
    for rate in (from_rate, to_rate):
        validate_int(
            "a sample rate",
            rate,
            f"a whole number of hertz from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}",
            lambda hertz: MIN_SAMPLE_RATE <= hertz <= MAX_SAMPLE_RATE,
        )
    if from_rate == to_rate:
        return mx.array(wav).astype(mx.float32)
    # With NumPy, whose matrix products are fast on every machine.
    samples = np.asarray(wav.astype(mx.float32) if isinstance(wav, mx.array) else wav, np.float32)
    *shape, length = samples.shape
    divisor = math.gcd(from_rate, to_rate)
    filters = _filters(from_rate // divisor, to_rate // divisor)
    resampled = _resample(samples.reshape(math.prod(shape), length), filters)
    length = length * to_rate // from_rate
    return mx.array(resampled[:, :length].reshape(*shape, length))


@dataclass(frozen=True)
class _Filters:
    """A period: from its `inputs` and some around them to its `outputs`, each matrix making some of these."""

    inputs: int
    outputs: int
    reach: int
    """The first matrix's inputs begin so many samples before the period."""
    matrices: tuple[tuple[int, np.ndarray], ...]
    """Each with its first input, counted from `reach` samples before the period; `[inputs, outputs]`."""


@lru_cache(maxsize=8)
def _filters(old: int, new: int) -> _Filters:
    """The filters from rate `old` to rate `new`, which have no common divisor.

    Each output is made of the inputs around it, and those of neighbours are nearly the same: a matrix makes
    so many outputs that as many inputs again as one filter has are common to all.
    """
    rate = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZEROS * old / rate)
    share = min(math.ceil(2 * reach * new / old), _MOST_OUTPUTS)
    periods = math.ceil(share / new)
    matrices = []
    for first in range(0, periods * new, share):
        outputs = np.arange(first, min(first + share, periods * new))
        begin, end = first * old // new, int(outputs[-1]) * old // new + 2 * reach + 2
        inputs = np.arange(begin, end)[:, None] - reach
        # In float32 and counted from the output's own period, as in the reference: between rates without a
        # large common divisor its times are coarse (1e-3 of the sound), and a model should hear the same.
        phase = (-(outputs % new) / new).astype(np.float32)
        place = (inputs - outputs // new * old).astype(np.float32) / np.float32(old)
        time = np.clip((phase + place) * np.float32(rate), -_ZEROS, _ZEROS)
        taps = np.sinc(time) * np.cos(time * np.float32(math.pi / _ZEROS / 2)) ** 2
        matrices.append((begin, taps / taps.sum(axis=0)))
    return _Filters(periods * old, periods * new, reach, tuple(matrices))


def _resample(rows: np.ndarray, filters: _Filters) -> np.ndarray:
    """`[N, T]` → `[N, T']`, with whole periods: T' is at least as long as it should be."""
    count, length = rows.shape
    periods = math.ceil(length / filters.inputs)
    at_once = max(1, _BLOCK // filters.inputs)
    outputs = np.empty((count, periods, filters.outputs), np.float32)
    begin, last = filters.matrices[-1]
    beyond = begin + last.shape[0] - filters.inputs
    for first in range(0, periods, at_once):
        block = outputs[:, first : first + at_once]
        start = first * filters.inputs - filters.reach
        places = np.arange(start, start + block.shape[1] * filters.inputs + beyond)
        inputs = rows.take(places, axis=1, mode="clip")
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
