"""The docs say what is there: options, environment variables, the tree of the package, links and commands."""

from __future__ import annotations

import argparse
import ast
import io
import re
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from audiocraft_mlx.cli import arguments, audiogen, bench, convert, doctor, generate, serve, train
from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN

from . import soak

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "audiocraft_mlx"
CLI = ROOT / "docs" / "CLI.md"
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
DOCS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "native/*.md", "training/*.md", "audiocraft_mlx/demo/*.md")
    for path in ROOT.glob(pattern)
)
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "docs", "training")
    for path in (ROOT / folder).glob("*.py")
)
MAINS = {
    "musicgen-mlx": generate.main,
    "audiogen-mlx": audiogen.main,
    "musicgen-mlx-convert": convert.main,
    "musicgen-mlx-bench": bench.main,
    "musicgen-mlx-doctor": doctor.main,
    "musicgen-mlx-serve": serve.main,
    "musicgen-mlx-train": train.main,
}
Options = dict[str, str]
"""From an option as the table writes it to its default."""


class Parsed(Exception):
    """Raised in place of parsing."""


def parser_of(main: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    found = []

    def find(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", find)
        with pytest.raises(Parsed):
            main([])
    return found[0]


def options(parser: argparse.ArgumentParser) -> Options:
    return {_name(action): _default(action) for action in parser._actions}


def _name(action: argparse.Action) -> str:
    """As `-m, --model NAME`; the positional arguments by their metavar."""
    value = action.metavar
    if value is None and action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"{value} ..." if action.nargs == "*" else str(value)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def _default(action: argparse.Action) -> str:
    """What --help says that the default is; it names the parser's own default, if there is one."""
    text = (action.help or "") % {**vars(action), "prog": "", "default": action.default}
    match = re.search(r"\(default: ([^()]*)\)$|^default: (.*)$", text)
    stated = (match[1] or match[2]) if match else ""
    if action.default not in (None, argparse.SUPPRESS) and not isinstance(action.default, (bool, list)):
        default = action.default
        assert stated == (f"{default:g}" if isinstance(default, float) else str(default)), action.dest
    return stated


def section(heading: str) -> str:
    """The text of `docs/CLI.md` under a heading of the second level."""
    parts = re.split(r"^## (.+)$", CLI.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def table_rows(text: str) -> Options:
    """The first two cells of all tables' rows, without the marks of code."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("| Option", "| Variable", "|---")):
            name, default, *_ = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
            assert name not in rows
            rows[name] = default
    return rows


@pytest.mark.parametrize("command", [name for name in MAINS if name != "audiogen-mlx"])
def test_the_table_of_a_command_has_its_options_and_defaults(command: str) -> None:
    assert table_rows(section(command)) == options(parser_of(MAINS[command]))


def test_the_table_of_audiogen_has_the_defaults_that_differ() -> None:
    music, sounds = (options(parser_of(MAINS[name])) for name in ("musicgen-mlx", "audiogen-mlx"))
    assert music.keys() == sounds.keys()
    differing = {name: default for name, default in sounds.items() if default != music[name]}
    assert table_rows(section("audiogen-mlx")) == differing


def test_all_environment_variables_are_in_the_table() -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "native" / "src").iterdir()]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = {name for name in table_rows(section("Environment variables")) if name.startswith("MUSICGEN")}
    assert named == set(re.findall(r"MUSICGEN_MLX_[A-Z]+", code))


def test_the_tree_in_the_docs_is_the_tree() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    tree = re.search(r"^audiocraft_mlx/\n(.*?)^native/", text, re.MULTILINE | re.DOTALL)
    assert tree
    documented, folders = [], {}
    for line in tree[1].splitlines():
        depth, entry = len(line) - len(line.lstrip()), line.split()[0]
        folder = max((d for d in folders if d < depth), default=None)
        path = ("" if folder is None else folders[folder]) + entry
        if entry.endswith("/"):
            folders = {d: f for d, f in folders.items() if d < depth} | {depth: path}
            assert (PACKAGE / path).is_dir()
        else:
            documented.append(path)
    real = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    assert sorted(documented) == sorted(path for path in real if not path.endswith("__init__.py"))


def test_the_layers_in_the_docs_are_those_that_are_checked() -> None:
    checked = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert checked
    layers = "\n".join(re.findall(r'"(.+)"', checked[1]))
    assert f"```\n{layers}\n```" in ARCHITECTURE.read_text(encoding="utf-8")


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("doc", DOCS, ids=str)
def test_links_point_at_files_and_headings(doc: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / doc).read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / doc).parent / file if file else ROOT / doc
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("doc", DOCS, ids=str)
def test_files_in_code_marks_exist(doc: Path) -> None:
    text = (ROOT / doc).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w./]+/[\w.]+\.(?:py|md|h|cpp|txt|sh))`", text):
        folders = (ROOT, PACKAGE, ROOT / "native", (ROOT / doc).parent)
        assert any((folder / name).exists() for folder in folders), name


def _commands(doc: Path) -> list[str]:
    """The calls of our commands in the code blocks, each without what it is piped into."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / doc).read_text(encoding="utf-8"), re.M | re.S)
    # A bar line of chords is no pipe: no command begins with a capital.
    parts = re.split(r"\n|&&|\|(?=\s*[a-z])", "\n".join(blocks))
    return [part.strip() for part in parts if part.split()[:1] and part.split()[0] in MAINS]


@pytest.mark.parametrize("doc", DOCS, ids=str)
def test_commands_in_the_docs_have_valid_arguments(
    doc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = _commands(doc)
    assert commands or doc != Path("README.md")
    monkeypatch.chdir(tmp_path)
    for table in re.findall(r"^```csv\n(.*?)^```", (ROOT / doc).read_text(encoding="utf-8"), re.M | re.S):
        Path("list.csv").write_text(table, encoding="utf-8")
    for line in commands:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a brass band")))
        command, *words = shlex.split(line, comments=True)
        if command in ("musicgen-mlx", "audiogen-mlx"):
            arguments.parse(words, MUSICGEN if command == "musicgen-mlx" else AUDIOGEN)
        else:
            parser_of(MAINS[command]).parse_args(words)


def test_the_python_of_the_first_screen_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code[1].replace('"small"', '"demo"').replace("duration=8", "duration=0.5"), names)
    assert names["audio"].shape == (1, 1, 16000)  # type: ignore[attr-defined]
    assert names["rate"] == 32000


def test_the_first_screen_of_the_readme_fits() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 200
    assert max(map(len, lines[:40])) <= 80


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_import_what_the_package_has(script: Path) -> None:
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("audiocraft_mlx"):
            for alias in node.names:
                assert hasattr(import_module(str(node.module)), alias.name), f"{node.module}.{alias.name}"


def test_the_soak_runs_the_server_as_the_documented_unit_does() -> None:
    unit = (ROOT / "docs" / "SERVER.md").read_text().partition("[Service]")[2].partition("```")[0]
    lines = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("Environment=")]
    assert lines == [f"{name}={value}" for name, value in soak.ENVIRONMENT.items()]
