"""The peaks of a waveform that is drawn: 0 to 255, `PEAKS_PER_SECOND` of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from audiocraft_mlx.server.schema import PEAKS_PER_SECOND


class PeakMeter:
    """The peaks of audio that comes in pieces."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._rest = np.zeros(0, np.float32)
        self._count = 0

    def add(self, audio: np.ndarray) -> bytes:
        """The peaks that are complete with float `[channels, n]`."""
        levels = np.concatenate([self._rest, np.abs(audio).max(axis=0, initial=0)])
        start = self._edge(self._count)
        complete = (start + len(levels)) * PEAKS_PER_SECOND // self._rate - self._count
        edges = [self._edge(self._count + index) - start for index in range(complete + 1)]
        self._count += complete
        self._rest = levels[edges[-1] :].astype(np.float32)
        return b"" if not complete else _to_bytes(np.maximum.reduceat(levels[: edges[-1]], edges[:-1]))

    def finish(self) -> bytes:
        """The peak of what is left, if there is something."""
        rest, self._rest = self._rest, self._rest[:0]
        return _to_bytes(rest.max(keepdims=True)) if len(rest) else b""

    def _edge(self, index: int) -> int:
        """The first sample of a peak."""
        return -(-index * self._rate // PEAKS_PER_SECOND)


def peaks_of(blocks: Iterable[np.ndarray], rate: int, scale: float = 1.0) -> bytes:
    """The peaks of whole audio in blocks float `[channels, n]`, each times `scale`."""
    meter = PeakMeter(rate)
    peaks = b"".join([meter.add(block * scale) for block in blocks])
    return peaks + meter.finish()


def _to_bytes(levels: np.ndarray) -> bytes:
    return np.rint(np.clip(np.nan_to_num(levels), 0, 1) * 255).astype(np.uint8).tobytes()
