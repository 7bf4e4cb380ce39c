"""Whose commands a shell finds: another package on the index installs some of the same names."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.doctor.finding import Finding, ok, warning, wrong

COMMANDS = (
    "musicgen-mlx",
    "audiogen-mlx",
    "musicgen-mlx-convert",
    "musicgen-mlx-bench",
    "musicgen-mlx-doctor",
    "musicgen-mlx-serve",
    "musicgen-mlx-train",
)
_OURS = "audiocraft_mlx"
_PACKAGES = {_OURS: "this program", "mlx_audiocraft": "the package mlx-audiocraft"}
# Console scripts are Python files of a few lines, whatever installed them.
_SCRIPT_BYTES = 8192
_IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
_ENTRY_POINT = re.compile(r"EASY-INSTALL-\S*SCRIPT: '([\w.-]+)")
_INTERPRETER = re.compile(r"^#!\s*(/\S*python[\w.]*)|'''exec' \"?(/[^\"\n]*python[\w.]*)", re.MULTILINE)
_STANDARD = frozenset({"re", "sys", "importlib", "pkg_resources", "__future__"})


@dataclass(frozen=True)
class Script:
    """A console script.

    Attributes:
        package: what it imports; "" if that can't be told.
        interpreter: the Python that runs it, if it says.
    """

    path: Path
    package: str
    interpreter: Path | None

    @property
    def owner(self) -> str:
        return _PACKAGES.get(self.package, f"a package {self.package}" if self.package else "something else")


def find_script(name: str, search_path: str) -> Script | None:
    """The first command `name` in the folders of `search_path`; nothing is run."""
    found = shutil.which(name, path=search_path)
    if found is None:
        return None
    path = Path(found)
    try:
        with path.open("rb") as file:
            text = file.read(_SCRIPT_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    imported = (match.partition(".")[0] for match in _IMPORT.findall(text))
    package = next((module for module in imported if module not in _STANDARD), "")
    entry_point = _ENTRY_POINT.search(text)
    if entry_point and not package:
        package = entry_point[1].replace("-", "_")
        package = {"musicgen_mlx": _OURS}.get(package, package)
    interpreter = _INTERPRETER.search(text)
    return Script(path, package, Path(interpreter[1] or interpreter[2]) if interpreter else None)


def commands(search_path: str | None = None, interpreter: Path | None = None) -> Finding:
    """Whose the commands of our names are. `search_path` is PATH's, `interpreter` this Python's."""
    search_path = os.environ.get("PATH", "") if search_path is None else search_path
    interpreter = Path(sys.executable) if interpreter is None else interpreter
    scripts = {name: find_script(name, search_path) for name in COMMANDS}
    first = scripts["musicgen-mlx"]
    values = {
        "path": None if first is None else str(first.path),
        "package": None if first is None else first.package,
    }
    foreign = [script for script in scripts.values() if script and script.package != _OURS]
    without = f"{interpreter} -m audiocraft_mlx is this program in any case"
    if foreign:
        names = " and ".join(script.path.name for script in foreign)
        text = (
            f"{names} {'is' if len(foreign) == 1 else 'are'} not of this program, but of {foreign[0].owner}: "
        )
        return wrong(
            text + str(foreign[0].path),
            f"{_foreign_advice(foreign[0], search_path, interpreter)}; {without}",
            **values,
        )
    if first is None:
        return warning(
            "no musicgen-mlx on the PATH",
            f"add its folder to the PATH ({interpreter.parent}, or what make install says); {without}",
            **values,
        )
    if first.interpreter is not None and _folder(first.interpreter) != _folder(interpreter):
        return warning(
            f"{first.path}: this program, but installed elsewhere than this doctor ({interpreter.parent})",
            "this report is about the doctor's installation; run the doctor beside that command",
            **values,
        )
    return ok(f"{first.path}, of this program", **values)


def _foreign_advice(foreign: Script, search_path: str, interpreter: Path) -> str:
    folders = search_path.split(os.pathsep)
    ours = next(
        (
            folder
            for folder in folders
            if (script := find_script("musicgen-mlx", folder)) is not None and script.package == _OURS
        ),
        None,
    )
    if foreign.interpreter is not None and _folder(foreign.interpreter) == _folder(interpreter):
        package = foreign.package.replace("_", "-") or "it"
        return f"it has replaced ours: {interpreter} -m pip uninstall {package}, and install this again"
    if ours is not None:
        return f"put {ours} before {foreign.path.parent} in your PATH, or uninstall the other"
    return f"put {interpreter.parent} first in your PATH, or uninstall the other"


def _folder(interpreter: Path) -> str:
    """The real folder of an interpreter; its own link, in a virtual environment, isn't followed."""
    return os.path.realpath(interpreter.parent)
