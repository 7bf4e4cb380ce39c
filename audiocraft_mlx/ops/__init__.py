"""The seam for speed: what the networks call where some machine has a faster way than MLX's own.

Pure MLX is always one of the ways, and the one that the others are tested against.
"""
