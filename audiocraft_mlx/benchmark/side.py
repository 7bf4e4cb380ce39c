"""What is measured of both programs, and with what work, so that it is the same for both."""

from __future__ import annotations

from typing import Protocol

from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams

PROMPT = "an energetic drum and bass track with a deep bass line, bright synths and a catchy melody"
SAMPLING = SamplingParams()
GUIDANCE = GuidanceParams()
WARM_UP_STEPS = 2
STEPS = 16
"""Steps whose time is taken. Ours makes its random numbers for so many at once."""


class Side(Protocol):
    """One program with the model. Every method does some work and says in seconds how long it took."""

    def encode_text(self) -> float:
        """The conditions of one prompt."""
        ...

    def step(self, second: float) -> float:
        """One guided step for one clip, of the `STEPS` up to `second` of its music."""
        ...

    def decode(self, duration: float) -> float:
        """The audio of `duration` seconds of codes."""
        ...

    def generate(self, duration: float) -> float:
        """`duration` seconds of music from the prompt to the audio."""
        ...

    def peak_memory(self) -> float:
        """Bytes; see `measure.peak_memory`."""
        ...
