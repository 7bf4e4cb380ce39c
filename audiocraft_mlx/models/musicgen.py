"""MusicGen: text, melody or style to music. audiocraft's class of the same name, on MLX."""

from __future__ import annotations

from collections.abc import Sequence

from audiocraft_mlx.conditioning.style import StyleConditioner, StyleParams
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.models.genmodel import Description, GenerationOutput, GenModel, Negative, WavInputs


class MusicGen(GenModel):
    """See `GenModel`."""

    default_name = "facebook/musicgen-small"

    def generate_with_chroma(
        self,
        descriptions: Sequence[Description],
        melody_wavs: WavInputs,
        melody_sample_rate: int | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        melody_separation: str = "auto",
        negative: Negative = None,
    ) -> GenerationOutput:
        """Music for each of `descriptions` with the melody, or for a style model in the style, of an audio.

        A melody model also follows notes: those of a MIDI file (`read_midi`), or chords (`chord_notes`).

        Args:
            melody_wavs: float `[batch, channels, samples]`, `[channels, samples]` for one description, or a
                list with `[channels, samples]`, `Notes` or None for each; or `Notes` for one description. A
                melody that is shorter than the model's trained length is repeated; of a style an excerpt is
                used (`set_style_conditioner_params`).
            melody_sample_rate: samples per second of audio.
            melody_separation: `off` for a melody of a voice or an instrument alone, which separation may
                damage; see `prepare_inputs`.

        See `generate` for the rest.

        Raises:
            UsageError: also if the model has neither condition, or an audio is silent or of a wrong shape.
            CheckpointError, DownloadError: the network for source separation can't be loaded (melody models).
        """
        inputs = self._inputs(
            descriptions,
            melody_wavs=melody_wavs,
            melody_sample_rate=melody_sample_rate,
            melody_separation=melody_separation,
            negative=negative,
        )
        return self._generate(inputs, progress, return_tokens)

    def set_style_conditioner_params(
        self,
        eval_q: int = 3,
        excerpt_length: float = 3.0,
        ds_factor: int | None = None,
    ) -> None:
        """Set how a style model uses a style; see `StyleParams`. Raises `UsageError`."""
        if not isinstance(self.audio_conditioner, StyleConditioner):
            raise UsageError(f"{self.name} has no style condition; load the model style")
        params = StyleParams(eval_q, excerpt_length, ds_factor)
        self.audio_conditioner.validate_params(params)
        self.style_params = params
