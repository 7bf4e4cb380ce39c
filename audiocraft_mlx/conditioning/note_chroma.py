"""Notes → chroma, as that of audio in which they sound would be, without its overtones and its noise.

A frame of the chroma of audio is the power spectrum of `n_fft` samples below a Hann window. A tone that
sounds during a part of them has the power of that part of the window, by Parseval's theorem the integral of
its square. That is what each sound has here.
"""

from __future__ import annotations

import math

import numpy as np

from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.notes import Notes
from audiocraft_mlx.errors import UsageError


def chroma_of_notes(
    notes: Notes, config: ChromaConfig, start: float = 0.0, frames: int | None = None
) -> np.ndarray:
    """Float32 `[frames, n_chroma]`, every `hop_length` samples from second `start` on; default: `length`.

    Frames, and silence between notes, are as `chroma` has them. One-hot, as in the released models, a frame
    has the note that is the strongest in it, or all the notes of the strongest chord, as 1. Notes are
    repeated after their duration, at least a window.

    Raises `UsageError` for a chroma whose classes aren't whole divisions of semitones.
    """
    if config.n_chroma % 12:
        raise UsageError(f"this model's chroma has {config.n_chroma} classes, and notes need 12")
    count = config.length if frames is None else frames
    window = config.n_fft / config.sample_rate
    period = max(notes.duration, window)
    starts = np.array([sound.start for sound in notes.sounds])
    ends = np.array([sound.end for sound in notes.sounds])
    classes = [
        tuple(sorted({pitch % 12 * (config.n_chroma // 12) for pitch in sound.pitches}))
        for sound in notes.sounds
    ]
    result = np.zeros((count, config.n_chroma), np.float32)
    for frame in range(count):
        centre = start + frame * config.hop_length / config.sample_rate
        left, right = max(0.0, centre - window / 2), centre + window / 2
        energies: dict[tuple[int, ...], float] = {}
        for turn in range(math.floor(left / period), math.floor(right / period) + 1):
            begin = turn * period
            # Sounds are in order, and don't overlap.
            first = int(np.searchsorted(ends, left - begin, side="right"))
            last = int(np.searchsorted(starts, right - begin, side="left"))
            heard = slice(first, last)
            from_, to = (
                (np.clip(times[heard] + begin, left, right) - centre) / window for times in (starts, ends)
            )
            for index, energy in enumerate(_energy(to) - _energy(from_), start=first):
                energies[classes[index]] = energies.get(classes[index], 0.0) + float(energy)
        _add(result[frame], energies, config.one_hot)
    return result


def _add(frame: np.ndarray, energies: dict[tuple[int, ...], float], one_hot: bool) -> None:
    if not one_hot:
        for classes, energy in energies.items():
            frame[list(classes)] += energy
        frame /= max(float(frame.max()), 1e-6)
    elif energies and max(energies.values()) > 0:
        # Of two that are as strong, at the border between them, the later one, which begins there.
        strongest = max(reversed(energies), key=lambda classes: round(energies[classes], 9))
        frame[list(strongest)] = 1
    else:
        frame[0] = 1


def _energy(x: np.ndarray) -> np.ndarray:
    """The integral of the square of a Hann window from its centre to `x`, of its width."""
    return 3 / 8 * x + np.sin(2 * np.pi * x) / (4 * np.pi) + np.sin(4 * np.pi * x) / (32 * np.pi)
