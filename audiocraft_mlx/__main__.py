"""`python -m audiocraft_mlx` is the command `musicgen-mlx`."""

import sys

from audiocraft_mlx.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
