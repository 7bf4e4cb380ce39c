#!/bin/sh
# Install what builds the native extension into PYTHON's environment, for `pip wheel --no-build-isolation`. MLX's wheels
# are put in place whatever this machine's glibc: building against them only reads headers and symbols, and the wheels
# of the extension are built with an older glibc than MLX needs. Usage: native/build_requirements.sh PYTHON
set -eu
python=$1
source=$(cd "$(dirname "$0")" && pwd)

# The list of pyproject.toml, one a line; Python 3.10 has no TOML reader.
requires=$("$python" - "$source/pyproject.toml" << 'EOF'
import ast, re, sys
print(*ast.literal_eval(re.search(r"^requires = (\[.*\])$", open(sys.argv[1]).read(), re.M)[1]), sep="\n")
EOF
)
mlx=$(echo "$requires" | grep '^mlx')
others=$(echo "$requires" | grep -v '^mlx')
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

# scikit-build-core adds these two by itself only in an isolated build.
# shellcheck disable=SC2086
"$python" -m pip install --quiet $others 'cmake>=3.25' ninja
"$python" -m pip install --quiet --target "$packages" --platform "manylinux_2_35_$(uname -m)" --only-binary :all: "$mlx"
