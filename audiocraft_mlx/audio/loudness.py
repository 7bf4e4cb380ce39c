"""Brings audio to a level: by its peak, its power, or its loudness as it is heard; and fades it out.

Audio is float32 `[channels, samples]`, nominally in [-1, 1]. What is silent stays as it is. The strategies
and their defaults are audiocraft's.
"""

from __future__ import annotations

import math

import numpy as np

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import validate_number

STRATEGIES = ("none", "peak", "clip", "rms", "loudness")

# Below this power (as a root mean square) audio counts as silence, whose loudness is not to be raised.
_SILENCE = 2e-3
# The loudness gate of BS.1770-4: blocks of 0.4 s, four hops long; quieter ones than this (LUFS) don't count,
# nor those that are this much (dB) below the mean of the rest.
_HOP_SECONDS, _HOPS_PER_BLOCK = 0.1, 4
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, 10.0
# Long audio is measured in pieces; after this time the weighting filters have forgotten what they heard.
_PIECE_HOPS, _MEMORY_SECONDS = 100, 0.25


def normalize_audio(
    audio: np.ndarray, sample_rate: int, strategy: str = "peak", lufs: float = -14.0
) -> np.ndarray:
    """`audio` at the level that `strategy` says, with audiocraft's headrooms.

    Args:
        strategy: `none` (as it is), `peak` (the peak 1 dB below full scale), `clip` (cut off there), `rms`
            (a power of -18 dB), `loudness` (at `lufs`, what goes beyond full scale bent softly).
        lufs: the loudness aimed at, in LUFS, from -70 to 0.

    Raises:
        UsageError: there is no such strategy, or `lufs` is out of range.
    """
    validate_number("lufs", lufs, "a number from -70 to 0", lambda value: -70 <= value <= 0)
    if strategy == "none":
        return audio
    if strategy == "peak":
        return to_peak(audio)
    if strategy == "clip":
        return clip(audio)
    if strategy == "rms":
        return to_rms(audio)
    if strategy == "loudness":
        return to_loudness(audio, sample_rate, lufs, compress=True)
    raise UsageError(f"the normalization must be one of {', '.join(STRATEGIES)}, not {strategy!r}")


def to_peak(audio: np.ndarray, headroom_db: float = 1.0, boost_quiet: bool = True) -> np.ndarray:
    """`audio` with its peak `headroom_db` below full scale; what is below that stays unless `boost_quiet`."""
    return _scaled(audio, float(np.abs(audio).max()), -headroom_db, boost_quiet)


def to_rms(audio: np.ndarray, headroom_db: float = 18.0, boost_quiet: bool = True) -> np.ndarray:
    """`audio` with a root mean square (of the mono mix) of -`headroom_db` dB, clipped to full scale."""
    mono = audio.mean(axis=0)
    return np.clip(_scaled(audio, _rms(mono), -headroom_db, boost_quiet), -1, 1)


def clip(audio: np.ndarray, headroom_db: float = 1.0) -> np.ndarray:
    """`audio` with all that goes beyond -`headroom_db` dB cut off."""
    limit = np.float32(_gain(-headroom_db))
    return np.clip(audio, -limit, limit)


def to_loudness(
    audio: np.ndarray, sample_rate: int, lufs: float = -14.0, compress: bool = False
) -> np.ndarray:
    """`audio` with a loudness of `lufs`, clipped to full scale or, with `compress`, bent to it by a tanh.

    What is next to silent, or too short or too low to have a loudness, stays as it is.
    """
    if _rms(audio) < _SILENCE:
        return audio
    loudness = integrated_loudness(audio, sample_rate)
    if loudness == -math.inf:
        return audio
    louder = audio * np.float32(_gain(lufs - loudness))
    return np.tanh(louder) if compress else np.clip(louder, -1, 1)


def fade_out(audio: np.ndarray, sample_rate: int, seconds: float) -> np.ndarray:
    """`audio` whose last `seconds` (all of it, if it is shorter) fall to silence along half a cosine.

    Raises:
        UsageError: `seconds` is negative or not finite.
    """
    validate_number("the fade-out", seconds, "a number of seconds, 0 or more", lambda value: value >= 0)
    samples = round(min(seconds * sample_rate, audio.shape[1]))
    faded = audio.copy()
    faded[:, audio.shape[1] - samples :] *= 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, samples))
    return faded


def integrated_loudness(audio: np.ndarray, sample_rate: int) -> float:
    """The gated loudness of `audio`, ITU-R BS.1770-4, in LUFS; -inf if all of it is too quiet.

    As in audiocraft (torchaudio), what the weighting raises beyond full scale is cut off there: audio that
    is loud enough for that is measured a little too quiet.
    """
    if audio.shape[1] < _HOPS_PER_BLOCK:
        return -math.inf
    hops = _hop_energies(audio, sample_rate)
    blocks = np.lib.stride_tricks.sliding_window_view(hops, _HOPS_PER_BLOCK).mean(axis=1)
    blocks = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
    if not blocks.size:
        return -math.inf
    return float(_lufs(blocks[_lufs(blocks) > _lufs(blocks.mean()) - _RELATIVE_GATE].mean()))


def _hop_energies(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The mean square of each hop after K-weighting, summed over the channels: `[hops]`, at least a block."""
    # Audio that is shorter than a block is a block.
    hop = min(round(_HOP_SECONDS * sample_rate), audio.shape[1] // _HOPS_PER_BLOCK)
    memory = round(_MEMORY_SECONDS * sample_rate)
    end = audio.shape[1] // hop * hop
    length = min(_PIECE_HOPS * hop, end)
    # The filters go round in the frequency domain: room for what they add behind the audio.
    size = 1 << (memory + length + memory - 1).bit_length()
    filters = _k_weighting(sample_rate, size)
    energies = []
    for start in range(0, end, length):
        before = min(start, memory)
        stop = min(start + length, end)
        piece = audio[:, start - before : stop]
        for response in filters:
            filtered = np.fft.irfft(np.fft.rfft(piece, size) * response, size)
            piece = np.clip(filtered[:, : before + stop - start], -1, 1)
        energies.append((piece[:, before:] ** 2).reshape(len(audio), -1, hop).mean(axis=2).sum(axis=0))
    return np.concatenate(energies)


def _k_weighting(sample_rate: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The responses of K-weighting's two filters at the frequencies of an FFT of `size`."""
    # Biquads of the Audio EQ Cookbook. First a high shelf: 4 dB from 1500 Hz on, with a slope of 1.
    root = 10 ** (4 / 40)
    up, down = root + 1, root - 1
    cos, slope = _circle(1500, sample_rate)
    slope *= math.sqrt(2 * root)
    shelf_zeros = up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope
    shelf_poles = up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope
    # Then a high pass: 38 Hz, with a quality of 0.5.
    cos, sin = _circle(38, sample_rate)
    pass_zeros = (1 + cos) / 2, -(1 + cos), (1 + cos) / 2
    pass_poles = 1 + sin, -2 * cos, 1 - sin

    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    shelf = root * np.polyval(shelf_zeros[::-1], delay) / np.polyval(shelf_poles[::-1], delay)
    high_pass = np.polyval(pass_zeros[::-1], delay) / np.polyval(pass_poles[::-1], delay)
    return shelf, high_pass


def _circle(frequency: float, sample_rate: int) -> tuple[float, float]:
    angle = 2 * math.pi * frequency / sample_rate
    return math.cos(angle), math.sin(angle)


def _lufs(energy: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(energy)


def _scaled(audio: np.ndarray, level: float, target_db: float, boost_quiet: bool) -> np.ndarray:
    """`audio` scaled so that its `level` comes to `target_db`."""
    if level == 0:
        return audio
    gain = _gain(target_db) / level
    return audio * np.float32(gain) if boost_quiet or gain < 1 else audio


def _rms(audio: np.ndarray) -> float:
    return math.sqrt(np.square(audio, dtype=np.float64).mean())


def _gain(decibels: float) -> float:
    return 10.0 ** (decibels / 20)
