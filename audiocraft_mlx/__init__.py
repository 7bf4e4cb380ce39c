"""MusicGen on Apple's MLX: text to music, with the released weights and without PyTorch."""

__version__ = "0.1.0"
