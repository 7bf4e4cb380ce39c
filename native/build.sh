#!/bin/sh
# Build the native extension into the environment of PYTHON, where it is of use and can be built; one line says
# what was done. Usage: native/build.sh PYTHON
# Without it everything works, slower; so a failure here is none of the caller's.
python=$1
source=$(cd "$(dirname "$0")" && pwd)  # a path: a bare word would be a package of the index

if [ "$(uname -s)" != Linux ]; then
  echo "native extension: not needed on $(uname -s)"
  exit 0
fi
if ! command -v "${CXX:-c++}" > /dev/null; then
  echo "native extension: no C++ compiler, so it isn't built and steps take longer; install g++ and try again"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Built against the very MLX that it will run with; older and newer pips take that from different variables.
"$python" -c 'from importlib.metadata import version; print("mlx==" + version("mlx"))' > "$scratch/constraints"
export PIP_CONSTRAINT="$scratch/constraints" PIP_BUILD_CONSTRAINT="$scratch/constraints"
if "$python" -m pip install --quiet --force-reinstall --no-deps "$source" > "$scratch/log" 2>&1 &&
  set="$("$python" -c 'from audiocraft_mlx.ops.cpu.extension import load_extension; print(load_extension().instruction_set())' 2>> "$scratch/log")"
then
  echo "native extension: built for $(cat "$scratch/constraints"), using $set"
else
  echo "native extension: could not be built, so steps take longer: $(grep -v '^ *$' "$scratch/log" | tail -n 1)"
fi
