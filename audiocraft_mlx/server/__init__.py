"""The page and the server: `musicgen-mlx-serve`."""
