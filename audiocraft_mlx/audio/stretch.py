"""Makes a loop longer or shorter without changing its pitch: WSOLA, by pieces that overlap.

W. Verhelst and M. Roelands, "An overlap-add technique based on waveform similarity (WSOLA) for high quality
time-scale modification of speech", ICASSP 1993.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

# From one piece to the next, and by how much a piece may be taken earlier or later to fit what is before it.
_PIECE_SECONDS, _REACH_SECONDS = 0.03, 0.012


def stretch_loop(audio: np.ndarray, rate: int, samples: int) -> np.ndarray:
    """`audio`, float32 `[channels, n]`, whose end goes on at its beginning, as one of `samples` samples.

    Of a change by a few percent only what is neither attack nor tone becomes another.
    """
    length = audio.shape[1]
    if length == samples:
        return audio
    pieces = max(1, round(samples / (_PIECE_SECONDS * rate)))
    reach = min(round(_REACH_SECONDS * rate), length // 4)
    starts = np.round(np.arange(pieces + 1) * samples / pieces).astype(int)
    result = np.zeros((len(audio), samples), np.float32)
    mono = audio.mean(axis=0)
    place = 0  # of the piece in `audio`
    for number, (start, end) in enumerate(pairwise(starts)):
        size = int(end - start)
        wanted = round(number * length / pieces)
        if number:
            # What would follow the piece before, had that been longer.
            natural = mono[np.arange(place, place + size) % length]
            choices = mono[np.arange(wanted - reach, wanted + reach + size) % length]
            place = wanted - reach + _most_alike(natural, choices)
        following = end % samples if number + 1 < pieces else 0
        window = _rising(size)
        # It rises over the piece before it (its own size), and falls over the next one.
        result[:, start:end] += audio[:, np.arange(place, place + size) % length] * window
        next_size = int(starts[number + 2] - end) if number + 2 <= pieces else int(starts[1])
        tail = audio[:, np.arange(place + size, place + size + next_size) % length]
        result[:, following : following + next_size] += tail * (1 - _rising(next_size))
        place += size
    return result


def _rising(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)


def _most_alike(wanted: np.ndarray, choices: np.ndarray) -> int:
    """Where in `choices` the stretch begins that is most like `wanted`."""
    size = 1 << (len(choices) - 1).bit_length()
    spectrum = np.fft.rfft(choices, size) * np.conj(np.fft.rfft(wanted, size))
    count = len(choices) - len(wanted) + 1
    products = np.fft.irfft(spectrum, size)[:count]
    energy = np.concatenate([[0], np.cumsum(np.square(choices, dtype=np.float64))])
    energies = energy[len(wanted) :] - energy[:count]
    return int(np.argmax(products / np.sqrt(np.maximum(energies, 1e-9))))
