"""Which frames an iteration of masked decoding masks: spans of neighbouring frames, least probable first.

audiocraft's `MagnetLMModel._generate_stage` and `_least_probable_span_masking` (`models/lm_magnet.py`), for
codes that are given anywhere, not only in front. Where scores tie, the lowest frame counts as the highest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

_KEPT = np.float32(-1e4)
"""The score of what isn't masked again."""


def mask_rates(iterations: int) -> np.ndarray:
    """The part that is masked in each iteration, float32: a cosine from 1 to about 0.

    In float32 throughout, as torch's `cos(linspace(0, 1, iterations) * pi / 2)`: with 10 iterations, the
    seventh's is below a half, and half of 166 spans are 82.
    """
    index = np.arange(iterations)
    step = np.float32(1 / max(iterations - 1, 1))
    # torch's `linspace` counts from the nearer end.
    time = np.where(
        index < iterations / 2, step * index.astype(np.float32), 1 - step * (iterations - 1 - index)
    ).astype(np.float32)
    angle = time * np.float32(np.pi) * np.float32(0.5)
    return np.cos(angle.astype(np.float64)).astype(np.float32)


class Spans(ABC):
    """The masks of one sequence.

    Attributes:
        known: bool `[T]`, the frames whose codes are given.
        count: how many units (spans or frames) are to be generated.
    """

    known: np.ndarray
    count: int

    def masked_count(self, rate: np.float32) -> int:
        """How many units an iteration masks."""
        return max(int(np.float32(rate) * np.float32(self.count)), 1)

    @abstractmethod
    def first_scores(self) -> np.ndarray:
        """The scores of the first iteration, float32, one for each unit."""

    @abstractmethod
    def select(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The frames of the `count` units with the highest scores, bool `[T]`; given codes may be in it."""

    @abstractmethod
    def score(self, selected: np.ndarray, masked: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The next iteration's scores.

        Args:
            selected: what `select` returned.
            masked: bool `[T]`, where the network got masks: in the first iteration everywhere but at the
                given codes, then where `selected` and not given.
            probabilities: of the codes that were drawn where either is true, float32 `[T]`.
        """


class SeparateSpans(Spans):
    """Spans side by side (`nonoverlap`): the units are spans, scored by their most probable code."""

    def __init__(self, known: np.ndarray, length: int) -> None:
        """The frames are a multiple of `length`."""
        self.known, self._length = known, length
        self._given = known.reshape(-1, length).all(axis=1)
        self.count = int((~self._given).sum())

    def first_scores(self) -> np.ndarray:
        return np.where(self._given, _KEPT, np.float32(0))

    def select(self, scores: np.ndarray, count: int) -> np.ndarray:
        spans = np.zeros(len(scores), bool)
        spans[_highest_first(scores)[:count]] = True
        return np.repeat(spans, self._length)

    def score(self, selected: np.ndarray, masked: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        best = probabilities.reshape(-1, self._length).max(axis=1)
        return np.where(selected[:: self._length], 1 - best, _KEPT)


class OverlappingSpans(Spans):
    """Spans that begin at any frame (`stride1`): the units are frames, spans are scored by all codes."""

    def __init__(self, known: np.ndarray, length: int) -> None:
        """There are at least `length` frames."""
        self.known, self._length = known, length
        self.count = int((~known).sum())

    def first_scores(self) -> np.ndarray:
        return np.where(self.known, _KEPT, np.float32(0))

    def select(self, scores: np.ndarray, count: int) -> np.ndarray:
        if self._length == 1:
            return self._union(_highest_first(scores)[:count])
        spans = scores[: len(scores) - self._length + 1].copy()
        for shift in range(1, self._length):
            spans += scores[shift : len(scores) - self._length + 1 + shift]
        order = _highest_first(spans)
        # How many spans cover `count` frames: between so many apart and so many one frame after the other.
        count = max(count, self._length)
        fewest, most = count // self._length, count - self._length + 1
        middle = round(0.5 * (fewest + most))
        mask = self._union(order[:middle])
        while fewest < middle < most:
            # Not the best one that was seen but the last, as in audiocraft.
            mask = self._union(order[:middle])
            if mask.sum() > count:
                most = middle
            else:
                fewest = middle
            middle = round(0.5 * (fewest + most))
        return mask

    def score(self, selected: np.ndarray, masked: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        return np.where(masked, -np.log(np.where(masked, probabilities, 1), dtype=np.float32), _KEPT)

    def _union(self, starts: np.ndarray) -> np.ndarray:
        mask = np.zeros(len(self.known), bool)
        for shift in range(self._length):
            mask[starts + shift] = True
        return mask


def make_spans(arrangement: str, known: np.ndarray, length: int) -> Spans:
    """The masks of a sequence with the `known` frames, in one of `validation.SPAN_ARRANGEMENTS`."""
    kind = SeparateSpans if arrangement == "nonoverlap" and length > 1 else OverlappingSpans
    return kind(known, length)


def _highest_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")
