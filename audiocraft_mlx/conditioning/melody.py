"""Audio → source separation → chroma of vocals and other instruments → projection: the melody condition.

Equal to audiocraft's `ChromaStemConditioner` (`modules/conditioners.py`) with Demucs' `shifts=0`, except that
each melody is encoded by itself: also in a batch a short one is repeated to the full length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.conditioning.chroma import ChromaConfig, melody_chroma, null_chroma
from audiocraft_mlx.conditioning.note_chroma import chroma_of_notes
from audiocraft_mlx.conditioning.notes import Notes

if TYPE_CHECKING:
    from audiocraft_mlx.networks.htdemucs import HTDemucs

MELODIC_STEMS = ("vocals", "other")
"""Without drums and bass, whose pitch isn't that of a melody."""
SEPARATION_MARGIN = 20.0
"""Seconds of a long melody that are separated beyond its chroma: separation looks ahead by less."""


class MelodyConditioner:
    """Chroma, its projection, and the source separation network, which is loaded with the first melody."""

    def __init__(
        self, config: ChromaConfig, output_proj: nn.Linear, load_separator: Callable[[], HTDemucs]
    ) -> None:
        self.config = config
        self.output_proj = output_proj
        self._load_separator = load_separator

    def encode(
        self, melodies: Sequence[mx.array | Notes | None], separate: bool = True, start: float = 0.0
    ) -> list[mx.array]:
        """Tokens float32 `[length, dim]` of each melody, float `[C, T]` at the model's rate, notes, or None.

        One that several rows share is encoded once. `separate`: audio without drums and bass, as in the
        reference. `start`: the second from which on notes are taken.
        """
        tokens: list[mx.array] = []
        for row, melody in enumerate(melodies):
            shared = next((other for other in range(row) if melodies[other] is melody), None)
            if shared is not None:
                tokens.append(tokens[shared])
            elif melody is None:
                tokens.append(self.null_tokens())
            elif isinstance(melody, Notes):
                tokens.append(self.output_proj(mx.array(chroma_of_notes(melody, self.config, start))))
            else:
                chroma = self.chroma(melody) if separate else self.chroma_of_mix(melody)
                tokens.append(self.output_proj(chroma))
        return tokens

    def null_tokens(self) -> mx.array:
        """Tokens float32 `[length, dim]` for no melody: those of silence."""
        return self.output_proj(null_chroma(self.config)[0])

    def chroma(self, melody: mx.array) -> mx.array:
        """The chroma float32 `[length, n_chroma]` of a melody, float `[C, T]` at the model's rate.

        Only of its vocals and other instruments.
        """
        config = self.config
        used_seconds = (config.length * config.hop_length + config.n_fft) / config.sample_rate
        melody = melody[:, : int((used_seconds + SEPARATION_MARGIN) * config.sample_rate)]
        network = self._separator
        wav = np.asarray(melody[None].astype(mx.float32))
        wav = convert_audio(wav, config.sample_rate, network.sample_rate, network.channels)
        stems = network.separate(mx.array(wav))[0]
        mix = stems[network.sources.index(MELODIC_STEMS[0])] + stems[network.sources.index(MELODIC_STEMS[1])]
        wav = convert_audio(np.asarray(mix[None]), network.sample_rate, config.sample_rate, 1)
        return melody_chroma(mx.array(wav), config)[0]

    def chroma_of_mix(self, melody: mx.array) -> mx.array:
        """`chroma`, but of all of the audio: for a voice or an instrument alone, which separation damages."""
        rate = self.config.sample_rate
        wav = convert_audio(np.asarray(melody[None].astype(mx.float32)), rate, rate, 1)
        return melody_chroma(mx.array(wav), self.config)[0]

    @cached_property
    def _separator(self) -> HTDemucs:
        return self._load_separator()
