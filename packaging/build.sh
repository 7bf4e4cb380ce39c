#!/bin/sh
# Build the wheels of this checkout into FOLDER: the package's and, on Linux, the native extension's.
# Usage: packaging/build.sh PYTHON FOLDER
set -eu
python=$1 folder=$2
checkout=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$checkout"
if [ "$(uname -s)" = Linux ]; then
  sh "$checkout/native/wheel.sh" "$python" "$folder"
fi
