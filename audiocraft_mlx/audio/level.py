"""Audio from users whose level would make the music silent: another full scale, channels that cancel out."""

from __future__ import annotations

import numpy as np

from audiocraft_mlx.errors import UsageError

# 24 dB above full scale: no float audio is so loud, and integers that were stored as floats hardly so quiet.
_MAX_PEAK = 16.0
# NaN, infinity and what no integer scale has either.
_MAX_INTEGER = 2.0**31
# -90 dB: the noise that 16-bit files have in place of silence.
_SILENCE = 10 ** (-90 / 20)
# A mean of the channels that is quieter than they are by this factor (40 dB) is no audio of theirs.
_CANCELLED = 0.01


def require_float_scale(audio: np.ndarray, name: str) -> None:
    """Raise `UsageError` if full scale of float `audio` is not 1, as it seems; `name` is for the message."""
    peak = float(max(audio.max(initial=0), -audio.min(initial=0)))
    if not peak <= _MAX_INTEGER:  # also false for NaN
        raise UsageError(
            f"{name} has samples that are NaN, infinite or far beyond full scale; export it again"
        )
    if peak > _MAX_PEAK:
        full = next(2**bits for bits in (15, 23, 31) if peak <= 2**bits)
        raise UsageError(
            f"{name} has samples up to {peak:.0f}, where full scale is 1; divide them by {full} if they are"
            " integers stored as floats"
        )


def without_cancellation(audio: np.ndarray) -> np.ndarray:
    """`audio`, float `[C, T]`, if its channels can be mixed; else its loudest one (antiphase)."""
    if len(audio) < 2:
        return audio
    powers = np.square(audio, dtype=np.float64).mean(axis=1)
    mixed = np.square(audio.mean(axis=0), dtype=np.float64).mean()
    if mixed >= _CANCELLED**2 * powers.mean():
        return audio
    loudest = int(powers.argmax())
    return audio[loudest : loudest + 1]


def require_non_silent(audio: np.ndarray, name: str) -> None:
    """Raise `UsageError` if `audio` is silent: silence has no melody and no style.

    `name` is what the message calls it: the file's name, or what the user knows it by.
    """
    if np.abs(audio).max(initial=0) < _SILENCE:
        raise UsageError(f"{name} is silent; give audio that isn't")
