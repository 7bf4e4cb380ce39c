"""`musicgen-mlx-doctor`: is everything right on this machine? Facts, and the demo model tested."""
