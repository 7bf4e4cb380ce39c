"""Audio → vocals and other instruments → chroma → projection: the melody condition of the code transformer.

Equal to audiocraft's `ChromaStemConditioner` (`modules/conditioners.py`), with Demucs' `shifts=0`, except
that each melody is heard by itself: one that is shorter than the others of a batch is repeated, as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.conditioning.chroma import ChromaConfig, melody_chroma, null_chroma
from audiocraft_mlx.networks.htdemucs import HTDemucs

MELODIC_STEMS = ("vocals", "other")
"""Without drums and bass, whose pitch is no melody's."""
SEPARATION_MARGIN = 20.0
"""Seconds of a long melody behind what is heard of it: separation looks ahead by less."""


class MelodyConditioner:
    """Chroma, its projection, and the network that takes music apart, loaded with the first melody."""

    def __init__(
        self, config: ChromaConfig, output_proj: nn.Linear, load_separator: Callable[[], HTDemucs]
    ) -> None:
        self.config = config
        self.output_proj = output_proj
        self._load_separator = load_separator

    def encode(self, melodies: Sequence[mx.array | None]) -> list[mx.array]:
        """Tokens float32 `[length, dim]` of each melody, float `[C, T]` at the model's rate, or of None."""
        heard: dict[int, mx.array] = {}  # the same melody for several rows is heard once
        for melody in melodies:
            if id(melody) not in heard:
                tokens = self.null() if melody is None else self.output_proj(self.chroma(melody))
                heard[id(melody)] = tokens
        return [heard[id(melody)] for melody in melodies]

    def null(self) -> mx.array:
        """The same for no melody: that of silence."""
        return self.output_proj(null_chroma(self.config)[0])

    def chroma(self, melody: mx.array) -> mx.array:
        """What is heard of a melody `[C, T]`: float32 `[length, n_chroma]`."""
        config = self.config
        heard = (config.length * config.hop_length + config.n_fft) / config.sample_rate
        melody = melody[:, : int((heard + SEPARATION_MARGIN) * config.sample_rate)]
        network = self._separator
        audio = convert_audio(melody[None], config.sample_rate, network.sample_rate, network.channels)
        stems = network.separate(audio)[0]
        mix = stems[network.sources.index(MELODIC_STEMS[0])] + stems[network.sources.index(MELODIC_STEMS[1])]
        wav = convert_audio(mix[None], network.sample_rate, config.sample_rate, 1)
        return melody_chroma(wav, config)[0]

    @cached_property
    def _separator(self) -> HTDemucs:
        return self._load_separator()
