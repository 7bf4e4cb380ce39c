"""The delay pattern: how the codebooks of a frame are spread over the transformer's steps.

Copet et al. 2023, section 2.2; audiocraft's `DelayedPatternProvider` (`modules/codebooks_patterns.py`).
Step 0 is all special; the code of codebook k for frame t stands at step `1 + t + delays[k]`; positions
that belong to no frame are special.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class DelayPattern:
    delays: tuple[int, ...]
    frames: int

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def steps(self) -> int:
        """Steps of the whole sequence, the special one at its start included."""
        return 1 + self.frames + self.max_delay

    def mask(self, frames: int) -> np.ndarray:
        """Where a code of one of the first `frames` frames stands, bool `[K, steps]`."""
        frame = np.arange(self.steps)[None, :] - 1 - np.array(self.delays)[:, None]
        return (frame >= 0) & (frame < frames)

    def first_step(self, frame: int) -> int:
        """The first step that holds a code of `frame`."""
        return 1 + frame + min(self.delays)

    def build_sequence(self, codes: mx.array, special: int) -> mx.array:
        """The sequence `[B, K, steps]` of `codes` `[B, K, frames]`."""
        before = [1 + delay for delay in self.delays]
        rows = [
            mx.pad(codes[:, k], [(0, 0), (n, self.steps - n - codes.shape[2])], constant_values=special)
            for k, n in enumerate(before)
        ]
        return mx.stack(rows, axis=1)

    def revert_sequence(self, sequence: mx.array) -> mx.array:
        """The codes `[B, K, frames]` of a whole `sequence` `[B, K, steps]`."""
        rows = [sequence[:, k, 1 + delay : 1 + delay + self.frames] for k, delay in enumerate(self.delays)]
        return mx.stack(rows, axis=1)
