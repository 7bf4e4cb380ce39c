"""Fused operations for musicgen-mlx on Linux CPUs. Used through `audiocraft_mlx.ops`, never directly."""
