#!/bin/sh
# Make music with what packaging/install.sh installed, with no compiler and no other program in the PATH. On Linux the
# native extension has to load, without a warning. Usage: packaging/try.sh VENV
set -eu
venv=$(cd "$1" && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" # so that nothing of a checkout is imported by accident
unset PYTHONPATH MUSICGEN_MLX_NATIVE MUSICGEN_MLX_CPU || true

PATH="$venv/bin" "$venv/bin/python" -W error - << 'EOF'
import shutil
import sys

for compiler in ("cc", "c++", "gcc", "g++", "clang", "clang++"):
    if shutil.which(compiler):
        sys.exit(f"{compiler} is in the PATH")
if sys.platform == "linux":
    from importlib.metadata import requires, version

    from audiocraft_mlx.ops.cpu.extension import load_extension

    extension = load_extension()
    if extension is None:
        sys.exit("there is no native extension")
    if f"mlx[cpu]=={version('mlx')}" not in requires("audiocraft-mlx-native"):
        sys.exit(f"it doesn't require the MLX that it was built for: {requires('audiocraft-mlx-native')}")
    print(f"native extension {version('audiocraft-mlx-native')}: {extension.instruction_set()}")
EOF
HF_HUB_OFFLINE=1 PATH="$venv/bin" "$venv/bin/musicgen-mlx" "a slow piano" -m demo -d 1 --seed 1 -o clip.wav --no-open
PATH="$venv/bin" "$venv/bin/python" - << 'EOF'
import sys

import soundfile

samples, rate = soundfile.read("clip.wav")
if samples.shape != (rate,) or abs(samples).max() < 0.01:
    sys.exit(f"clip.wav isn't a second of music: {samples.shape}, {rate} Hz, peak {abs(samples).max()}")
EOF
