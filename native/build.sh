#!/bin/sh
# Build the native extension and install it into PYTHON's environment, on Linux with a C++ compiler. Prints one line
# with the result. Usage: native/build.sh PYTHON
# The extension is optional: if it can't be built, this script still exits with 0.
python=$1
source=$(cd "$(dirname "$0")" && pwd)  # an absolute path: pip would look a bare name up in the package index

if [ "$(uname -s)" != Linux ]; then
  echo "native extension: not needed on $(uname -s)"
  exit 0
fi
if ! command -v "${CXX:-c++}" > /dev/null; then
  echo "native extension: no C++ compiler, so it isn't built and generation is slower; install g++ and try again"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Built against the MLX version that it will run with. Older and newer versions of pip read different variables.
"$python" -c 'from importlib.metadata import version; print("mlx==" + version("mlx"))' > "$scratch/constraints"
export PIP_CONSTRAINT="$scratch/constraints" PIP_BUILD_CONSTRAINT="$scratch/constraints"
echo "native extension: compiling, about a minute ..."
if "$python" -m pip install --quiet --force-reinstall --no-deps "$source" > "$scratch/log" 2>&1 &&
  set="$("$python" -c 'from audiocraft_mlx.ops.cpu.extension import load_extension; print(load_extension().instruction_set())' 2>> "$scratch/log")"
then
  echo "native extension: built for $(cat "$scratch/constraints"), using $set"
else
  echo "native extension: could not be built, so generation is slower: $(grep -v '^ *$' "$scratch/log" | tail -n 1)"
fi
