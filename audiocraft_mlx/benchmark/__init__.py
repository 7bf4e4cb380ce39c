"""How fast a model is here, and how much of that the machine would allow: `musicgen-mlx-bench`."""

SHAPES = ("small", "medium", "large", "stereo-small", "stereo-medium", "stereo-large", "demo")
"""What can be measured without a checkpoint, with random weights (`shapes.py`)."""
