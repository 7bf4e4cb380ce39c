"""What is measured of every backend, and the workload, which is the same for all of them."""

from __future__ import annotations

from typing import Protocol

from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.sampling import SamplingParams

PROMPT = "an energetic drum and bass track with a deep bass line, bright synths and a catchy melody"
SAMPLING = SamplingParams()
GUIDANCE = GuidanceParams()
WARM_UP_STEPS = 2
TIMED_STEPS = 16
"""As many as `decoding.frames.NOISE_CHUNK`: the random noise of one chunk is part of what is timed."""


class Backend(Protocol):
    """A program that runs the model. Every timing method runs its work once and returns seconds."""

    def encode_text(self) -> float:
        """Encode one prompt."""
        ...

    def step(self, second: float) -> float:
        """Mean time of one guided step for one clip, over the `TIMED_STEPS` up to `second` of the music."""
        ...

    def decode(self, duration: float) -> float:
        """Decode `duration` seconds of codes to audio."""
        ...

    def generate(self, duration: float) -> float:
        """Generate `duration` seconds of music, from the prompt to the audio."""
        ...

    def peak_memory(self) -> float:
        """Bytes; see `measure.peak_memory`."""
        ...
