"""`musicgen-mlx-bench`: how fast a model is on this machine, and the bound that memory bandwidth sets."""

SHAPES = ("small", "medium", "large", "stereo-small", "stereo-medium", "stereo-large", "demo")
"""Model shapes that can be measured with random weights, without a checkpoint (`model.py`)."""
