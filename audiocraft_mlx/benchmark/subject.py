"""What is measured: a model, or only the shape of one."""

from __future__ import annotations

from dataclasses import dataclass

from audiocraft_mlx.benchmark.shapes import random_checkpoint
from audiocraft_mlx.checkpoints.checkpoint import Checkpoint
from audiocraft_mlx.checkpoints.upstream import load, read
from audiocraft_mlx.models.quantization import quantize, use_eight_bit_activations
from audiocraft_mlx.ops.blas import use_fast_blas


@dataclass(frozen=True)
class Subject:
    name: str
    """A model's, as `load` takes it; or a shape's, one of `SHAPES`."""
    random: bool
    """Whether it is the shape, with random weights."""

    def read(self) -> Checkpoint:
        """The model, its weights only promised yet. Raises `MusicGenError`."""
        return random_checkpoint(self.name) if self.random else read(self.name)

    def load(self, bits: int | None, fast: bool = False, cache_bits: int | None = None) -> Checkpoint:
        """The model, ready to be used; the arguments are those of `MusicGen.get_pretrained`.

        Raises `MusicGenError`.
        """
        if self.random:
            use_fast_blas()
            checkpoint = self.read()
            if bits is not None:
                quantize(checkpoint, bits)
            checkpoint.evaluate()
        else:
            checkpoint = load(self.name, quantize_to=bits)
        checkpoint.lm.cache_bits = cache_bits
        if fast:
            use_eight_bit_activations(checkpoint.lm)
        return checkpoint
