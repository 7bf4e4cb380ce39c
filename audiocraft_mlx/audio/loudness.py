"""Normalizes audio by its peak or its loudness, and fades it out.

Audio is float32 `[channels, samples]`, nominally in [-1, 1]. Silence is left unchanged. The strategies and
their defaults are audiocraft's (`data/audio_utils.py`), and `to_peak` and `to_loudness` are its functions.
`normalize_audio` limits in another way: audiocraft's tanh changes all samples, and what comes out is quieter
than what was asked for.
"""

from __future__ import annotations

import math

import numpy as np

from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import LUFS, validate_number

STRATEGIES = ("none", "peak", "loudness")

# Audio with a lower RMS is taken for silence, and not amplified (audiocraft's `energy_floor`).
_SILENCE = 2e-3
# The loudness gate of BS.1770-4: blocks of 0.4 s, four hops long. Blocks below the absolute threshold (LUFS)
# are ignored, then those that are further (LU) below the mean of the others.
_HOP_SECONDS, _HOPS_PER_BLOCK = 0.1, 4
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, 10.0
# Long audio is filtered in chunks; after this time the filters' response to earlier samples is negligible.
_CHUNK_HOPS, _MEMORY_SECONDS = 100, 0.25
# The limiter leaves samples below its knee as they are, and bends the others so that none exceeds full scale.
_KNEE = 0.9
# How much gain (dB) may make up for the loudness that the limiter takes, and how near (LU) the target is near
# enough. What the limiter does to music at this gain is nothing that anybody wants more of.
_MAX_MAKEUP, _TOLERANCE = 20.0, 0.05
_MAX_MEASUREMENTS = 12


def normalize_audio(
    audio: np.ndarray, sample_rate: int, strategy: str = "peak", lufs: float = -14.0
) -> np.ndarray:
    """`audio`, brought to a level; float32 `[channels, samples]`.

    Args:
        strategy: `none` (unchanged), `peak` (the peak 1 dB below full scale), or `loudness` (within 0.2 LU of
            `lufs`; samples above 0.9 of full scale are limited to it with a soft knee).
        lufs: the target: the integrated loudness after ITU-R BS.1770-4 in LUFS, from -70 to 0. The gain is
            raised for what limiting takes, by up to 20 dB. What needs more, such as a few short clicks, comes
            out quieter than the target. Audio that is nearly silent (an RMS below 0.002), or too quiet for
            its loudness to be measured, is left unchanged.

    Raises:
        UsageError: there is no such strategy, or `lufs` is out of range.
    """
    LUFS.validate("lufs", lufs)
    if strategy == "none":
        return audio
    if strategy == "peak":
        return to_peak(audio)
    if strategy == "loudness":
        return _to_limited_loudness(audio, sample_rate, lufs)
    raise UsageError(f"the normalization must be one of {', '.join(STRATEGIES)}, not {strategy!r}")


def to_peak(audio: np.ndarray, headroom_db: float = 1.0, boost_quiet: bool = True) -> np.ndarray:
    """`audio` with its peak `headroom_db` below full scale; without `boost_quiet` it is only ever lowered."""
    peak = float(np.abs(audio).max())
    if peak == 0:
        return audio
    gain = _gain(-headroom_db) / peak
    return audio * np.float32(gain) if boost_quiet or gain < 1 else audio


def to_loudness(
    audio: np.ndarray, sample_rate: int, lufs: float = -14.0, compress: bool = False
) -> np.ndarray:
    """`audio` with a gain to `lufs`, clipped to full scale or, with `compress`, with a tanh of all samples.

    audiocraft's `normalize_loudness`: the result is quieter than `lufs` by what clipping or the tanh takes.
    Audio that is nearly silent, or too short or quiet for its loudness to be measured, is left unchanged.
    """
    if _rms(audio) < _SILENCE:
        return audio
    # As torchaudio: very loud audio is measured a little too quiet.
    loudness = integrated_loudness(audio, sample_rate, clip=True)
    if loudness == -math.inf:
        return audio
    scaled = audio * np.float32(_gain(lufs - loudness))
    return np.tanh(scaled) if compress else np.clip(scaled, -1, 1)


def _to_limited_loudness(audio: np.ndarray, sample_rate: int, lufs: float) -> np.ndarray:
    """`audio` with a loudness of `lufs` after limiting; see `normalize_audio`."""
    if _rms(audio) < _SILENCE:
        return audio
    loudness = integrated_loudness(audio, sample_rate)
    if loudness == -math.inf:
        return audio
    gain = lufs - loudness  # dB
    most = gain + _MAX_MAKEUP
    slope = 1.0  # of the loudness over the gain: below 1 where the limiter takes some of it
    result, measured = _limited(audio, sample_rate, gain)
    for _ in range(_MAX_MEASUREMENTS):
        missing = lufs - measured
        if abs(missing) < _TOLERANCE or not math.isfinite(missing) or (gain == most and missing > 0):
            break
        # The slope only falls as the gain rises: by that of the last step the next one isn't too far.
        step = min(missing / slope, most - gain)
        before = measured
        result, measured = _limited(audio, sample_rate, gain + step)
        gain += step
        slope = min(1.0, max((measured - before) / step, 0.05))
    return result


def _limited(audio: np.ndarray, sample_rate: int, gain: float) -> tuple[np.ndarray, float]:
    """`audio` with a gain in dB, limited, and its loudness."""
    result = _limit(audio * np.float32(_gain(gain)))
    return result, integrated_loudness(result, sample_rate)


def _limit(audio: np.ndarray) -> np.ndarray:
    """`audio` with samples above the knee bent smoothly towards full scale."""
    size, room = np.abs(audio), np.float32(1 - _KNEE)
    bent = np.float32(_KNEE) + room * np.tanh((size - np.float32(_KNEE)) / room)
    return np.where(size > _KNEE, np.copysign(bent, audio), audio)


def fade_out(audio: np.ndarray, sample_rate: int, seconds: float) -> np.ndarray:
    """`audio` with its last `seconds` (or all of it, if shorter) faded to silence along half a cosine.

    Raises:
        UsageError: `seconds` is negative or not finite.
    """
    validate_number("the fade-out", seconds, "a number of seconds, 0 or more", lambda value: value >= 0)
    samples = round(min(seconds * sample_rate, audio.shape[1]))
    faded = audio.copy()
    faded[:, audio.shape[1] - samples :] *= 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, samples))
    return faded


def integrated_loudness(audio: np.ndarray, sample_rate: int, clip: bool = False) -> float:
    """The gated loudness of `audio` after ITU-R BS.1770-4, in LUFS; -inf if all of it is below the gate.

    With `clip` the filtered audio is clipped to full scale, as torchaudio does for audiocraft.
    """
    if audio.shape[1] < _HOPS_PER_BLOCK:
        return -math.inf
    hops = _hop_energies(audio, sample_rate, clip)
    blocks = np.lib.stride_tricks.sliding_window_view(hops, _HOPS_PER_BLOCK).mean(axis=1)
    blocks = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
    if not blocks.size:
        return -math.inf
    return float(_lufs(blocks[_lufs(blocks) > _lufs(blocks.mean()) - _RELATIVE_GATE].mean()))


def _hop_energies(audio: np.ndarray, sample_rate: int, clip: bool) -> np.ndarray:
    """Each hop's mean square after K-weighting, summed over channels: `[hops]`, at least one block's."""
    # Audio shorter than a block is one block.
    hop = min(round(_HOP_SECONDS * sample_rate), audio.shape[1] // _HOPS_PER_BLOCK)
    memory = round(_MEMORY_SECONDS * sample_rate)
    end = audio.shape[1] // hop * hop
    length = min(_CHUNK_HOPS * hop, end)
    # Filtering in the frequency domain is circular: zeros for the filters' decay.
    size = 1 << (memory + length + memory - 1).bit_length()
    filters = _k_weighting(sample_rate, size)
    energies = []
    for start in range(0, end, length):
        before = min(start, memory)
        stop = min(start + length, end)
        chunk = audio[:, start - before : stop]
        for response in filters:
            filtered = np.fft.irfft(np.fft.rfft(chunk, size) * response, size)
            chunk = filtered[:, : before + stop - start]
            if clip:
                np.clip(chunk, -1, 1, out=chunk)
        energies.append((chunk[:, before:] ** 2).reshape(len(audio), -1, hop).mean(axis=2).sum(axis=0))
    return np.concatenate(energies)


def _k_weighting(sample_rate: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The frequency responses of K-weighting's two filters, for an FFT of `size`: `[size // 2 + 1]` each."""
    # Biquads of the Audio EQ Cookbook. First a high shelf: 4 dB above 1500 Hz, slope 1.
    root = 10 ** (4 / 40)
    up, down = root + 1, root - 1
    cos, slope = _cos_sin(1500, sample_rate)
    slope *= math.sqrt(2 * root)
    shelf_zeros = up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope
    shelf_poles = up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope
    # Then a high pass: 38 Hz, Q 0.5.
    cos, sin = _cos_sin(38, sample_rate)
    pass_zeros = (1 + cos) / 2, -(1 + cos), (1 + cos) / 2
    pass_poles = 1 + sin, -2 * cos, 1 - sin

    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    shelf = root * np.polyval(shelf_zeros[::-1], delay) / np.polyval(shelf_poles[::-1], delay)
    high_pass = np.polyval(pass_zeros[::-1], delay) / np.polyval(pass_poles[::-1], delay)
    return shelf, high_pass


def _cos_sin(frequency: float, sample_rate: int) -> tuple[float, float]:
    angle = 2 * math.pi * frequency / sample_rate
    return math.cos(angle), math.sin(angle)


def _lufs(energy: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(energy)


def _rms(audio: np.ndarray) -> float:
    return math.sqrt(np.square(audio, dtype=np.float64).mean())


def _gain(decibels: float) -> float:
    return 10.0 ** (decibels / 20)
