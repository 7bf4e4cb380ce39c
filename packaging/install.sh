#!/bin/sh
# Install the wheels in FOLDER into a new virtual environment of PYTHON, with no compiler and no other program in the
# PATH. Of several native wheels, pip selects the one for this machine. Usage: packaging/install.sh PYTHON FOLDER VENV
set -eu
python=$1 folder=$2 venv=$3

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$venv"
set -- "$folder"/musicgen_mlx-*.whl
wheels="$1"
if [ "$(uname -s)" = Linux ]; then
  # By its path, so that none is taken from an index; the extra's bounds hold all the same.
  "$venv/bin/python" -m pip download --quiet --no-index --no-deps --find-links "$folder" --dest "$scratch" \
    audiocraft-mlx-native
  wheels="$1[native] $scratch/$(ls "$scratch")"
fi
# shellcheck disable=SC2086
PATH="$venv/bin" "$venv/bin/python" -m pip install --quiet --no-cache-dir $wheels
