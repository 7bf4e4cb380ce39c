"""What is measured: a model, or only the shape of one."""

from __future__ import annotations

from dataclasses import dataclass

from audiocraft_mlx.benchmark.shapes import random_checkpoint
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.quantization import enable_int8_activations, quantize
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas


@dataclass(frozen=True)
class Subject:
    name: str
    """A model's, as `load` takes it; or a shape's, one of `SHAPES`."""
    random: bool
    """Whether it is the shape, with random weights."""

    def read(self) -> ModelBundle:
        """The model, its weights only promised yet. Raises `MusicGenError`."""
        return random_checkpoint(self.name) if self.random else load(self.name, lazy=True)

    def load(self, bits: int | None, fast: bool = False, cache_bits: int | None = None) -> ModelBundle:
        """The model, ready to be used; the arguments are those of `MusicGen.get_pretrained`.

        Raises `MusicGenError`.
        """
        if self.random:
            patch_mlx_blas()
            checkpoint = self.read()
            if bits is not None:
                quantize(checkpoint, bits)
            checkpoint.materialize()
        else:
            checkpoint = load(self.name, quantize_to=bits)
        checkpoint.lm.cache_bits = cache_bits
        if fast:
            enable_int8_activations(checkpoint.lm)
        return checkpoint
